import dataclasses
import gzip
import struct

import numpy as np
import pytest

from edgepipe import data
from edgepipe.data import DataPaths, IdxPair
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.schema import Preprocessing, TensorSpec


@dataclasses.dataclass(frozen=True)
class FakeModel:
    data: DataPaths | None
    name: str = "m"
    inputs: list = dataclasses.field(default_factory=lambda: [TensorSpec("x", [-1, 1, 4, 4], layout="NCHW")])
    preprocessing: Preprocessing = dataclasses.field(default_factory=lambda: Preprocessing("NCHW"))
    labels: list = dataclasses.field(default_factory=lambda: ["a", "b", "c"])
    task: str = "image-classification"
    given: object = None


def good(count=5):
    return {"inputs": np.zeros((count, 4, 4, 1), np.uint8), "labels": np.arange(count) % 3}


@pytest.fixture
def fake(tmp_path):
    def make(**arrays):
        path = tmp_path / "d.npz"
        np.savez(path, **arrays)
        return FakeModel(DataPaths("NHWC", path, path))

    return make


def test_reads_what_was_written(fake):
    model = fake(**good())
    for dataset in (data.calibration(model), data.evaluation(model), data.evaluation(model, "shipped")):
        assert dataset.inputs.shape == (5, 4, 4, 1)
        assert dataset.labels.tolist() == [0, 1, 2, 0, 1]
        assert dataset.layout == "NHWC"
        assert len(dataset.sha256) == 64


def test_labels_are_optional(fake):
    assert data.calibration(fake(inputs=good()["inputs"])).labels is None


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"inputs": np.zeros((5, 4, 4, 3), np.uint8)}, "per sample"),
        ({"inputs": np.zeros((5, 16), np.uint8)}, "per sample"),
        ({"inputs": np.zeros((5, 1, 4, 4), np.uint8)}, "per sample"),
        ({"inputs": np.zeros((0, 4, 4, 1), np.uint8), "labels": np.zeros(0, int)}, "empty"),
        ({"inputs": np.full((5, 4, 4, 1), np.nan)}, "NaN"),
        ({"inputs": np.full((5, 4, 4, 1), np.inf)}, "NaN or infinity"),
        ({"inputs": np.full((5, 4, 4, 1), "x")}, "not numbers"),
        ({"inputs": np.full((5, 4, 4, 1), 1j)}, "not numbers"),
        ({"labels": np.arange(4)}, "labels are"),
        ({"labels": np.zeros(5)}, "labels are"),
        ({"labels": np.zeros((5, 3), int)}, "labels are"),
        ({"labels": np.full(5, 3)}, "labels go from"),
        ({"labels": np.full(5, -1)}, "labels go from"),
    ],
)
def test_bad_arrays(fake, change, what):
    with pytest.raises(IntegrityError, match=what):
        data.calibration(fake(**{**good(), **change}))


def test_pickles_are_refused_and_not_run(fake, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    with pytest.raises(IntegrityError):
        data.calibration(fake(inputs=np.array([Evil()], object)))
    assert not (tmp_path / "owned").exists()


def test_damaged_files(fake, tmp_path):
    model = fake(**good())
    content = (tmp_path / "d.npz").read_bytes()
    for bad in (b"", b"PK", content[: len(content) // 2], b"x" * 100, content[:60] + b"\xff" * 40 + content[100:]):
        (tmp_path / "d.npz").write_bytes(bad)
        with pytest.raises(IntegrityError):
            data.calibration(model)


def test_no_inputs_array(fake):
    with pytest.raises(IntegrityError, match="no array named inputs"):
        data.calibration(fake(images=good()["inputs"]))


def test_too_large_to_unpack(fake, monkeypatch):
    model = fake(**good())
    monkeypatch.setattr(data, "NPZ_LIMIT", 10)
    with pytest.raises(IntegrityError, match="unpack"):
        data.calibration(model)


def test_no_data():
    for paths in (None, DataPaths()):
        with pytest.raises(UsageError, match="no calibration data"):
            data.calibration(FakeModel(paths))
        assert data.evaluation(FakeModel(paths)) is None
        with pytest.raises(UsageError):
            data.evaluation(FakeModel(paths), "shipped")
        with pytest.raises(UsageError):
            data.evaluation(FakeModel(paths), "full")
    with pytest.raises(UsageError, match="no such evaluation set"):
        data.evaluation(FakeModel(None), "half")


def test_missing_file(tmp_path):
    with pytest.raises(UsageError, match="no such data file"):
        data.calibration(FakeModel(DataPaths("NHWC", tmp_path / "none.npz")))


@pytest.fixture
def idx(tmp_path):
    images = np.arange(7 * 16, dtype=np.uint8).reshape(7, 4, 4)
    labels = (np.arange(7) % 3).astype(np.uint8)
    with gzip.open(tmp_path / "i.gz", "wb") as file:
        file.write(struct.pack(">IIII", 2051, 7, 4, 4) + images.tobytes())
    with gzip.open(tmp_path / "l.gz", "wb") as file:
        file.write(struct.pack(">II", 2049, 7) + labels.tobytes())
    np.savez(tmp_path / "d.npz", **good())
    pair = IdxPair(tmp_path / "i.gz", tmp_path / "l.gz", "some-package", 6)
    paths = DataPaths("NHWC", evaluation=tmp_path / "d.npz", full=pair)
    return FakeModel(paths), images, labels


def test_full_set_where_installed(idx):
    model, images, labels = idx
    for which in ("auto", "full"):
        dataset = data.evaluation(model, which)
        assert dataset.inputs.shape == (6, 4, 4, 1)
        assert (dataset.inputs[..., 0] == images[:6]).all()
        assert dataset.labels.tolist() == labels[:6].tolist()
    assert len(data.evaluation(model, "shipped").inputs) == 5


def test_full_set_not_installed(idx, tmp_path):
    model, *_ = idx
    (tmp_path / "l.gz").unlink()
    assert len(data.evaluation(model).inputs) == 5
    with pytest.raises(UsageError, match="not installed") as caught:
        data.evaluation(model, "full")
    assert "some-package" in caught.value.fix


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x00",
        struct.pack(">IIII", 2050, 7, 4, 4),
        struct.pack(">IIII", 2051, 7, 4, 4) + b"short",
        struct.pack(">IIII", 2051, 2**31, 2**31, 2**31),
    ],
)
def test_bad_idx_files(idx, tmp_path, content):
    with gzip.open(tmp_path / "i.gz", "wb") as file:
        file.write(content)
    with pytest.raises(IntegrityError):
        data.evaluation(idx[0], "full")


def test_truncated_gzip(idx, tmp_path):
    content = (tmp_path / "i.gz").read_bytes()
    (tmp_path / "i.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(IntegrityError):
        data.evaluation(idx[0], "full")


def test_training_leaves_out_what_is_judged_on(idx, tmp_path):
    """Samples of the validation and evaluation sets never teach."""
    _, images, labels = idx
    pair = IdxPair(tmp_path / "i.gz", tmp_path / "l.gz")
    np.savez(tmp_path / "v.npz", inputs=images[:2, ..., None], labels=labels[:2].astype(np.int64))
    np.savez(tmp_path / "e.npz", inputs=images[5:6, ..., None], labels=labels[5:6].astype(np.int64))
    paths = DataPaths("NHWC", evaluation=tmp_path / "e.npz", validation=tmp_path / "v.npz", full_training=pair)
    found = data.training(FakeModel(paths))
    assert (found.inputs[..., 0] == images[[2, 3, 4, 6]]).all()
    assert found.labels.tolist() == labels[[2, 3, 4, 6]].tolist()
    assert len(data.validation(FakeModel(paths)).inputs) == 2
    assert data.training(FakeModel(DataPaths("NHWC"))) is None
    print_before = data.fingerprint(FakeModel(paths), "training")
    np.savez(tmp_path / "v.npz", inputs=images[:1, ..., None], labels=labels[:1].astype(np.int64))
    assert data.fingerprint(FakeModel(paths), "training") != print_before
    assert data.fingerprint(FakeModel(paths), "") == ""


def test_synthetic_data_is_in_range_and_the_same_each_time():
    model = FakeModel(None)
    first, again = data.synthetic(model, 8), data.synthetic(model, 8)
    assert (first.inputs == again.inputs).all()
    low, high = model.preprocessing.range
    assert low <= first.inputs.min() < first.inputs.max() <= high
    assert len(first.inputs) == 8
