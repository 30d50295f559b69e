"""Data and preprocessing named on the command line: read, checked, split, and used for what they are."""

import json

import numpy as np
import pytest

from edgepipe import convert, data, export, given
from edgepipe.cache import Cache, hash_file
from edgepipe.errors import EdgepipeError, GateError, IntegrityError, UsageError
from edgepipe.given import Said
from edgepipe.progress import Silent
from edgepipe.schema import Preprocessing
from tests.unit import formats_kit as kit
from tests.unit import onnx_kit

DECLARED = "layout=NCHW scale=1/255 mean=0.5,0.4,0.3 std=0.2,0.3,0.4 color=RGB range=0,255"
NAMES = {"onnx": "model.onnx", "openvino": "model.xml", "tflite": "model.tflite"}


def bare(name):
    """An exported file of the tiny network, away from its card and manifest."""
    import shutil
    from pathlib import Path

    folder = kit.home() / "bare" / name
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(kit.made(name).artifact.path).parent
    for ref in kit.made(name).artifact.files:
        if not (folder / ref.name).exists():
            shutil.copyfile(source / ref.name, folder / ref.name)
    return folder / NAMES[name]


def loaded(ref, **words):
    return given.load(ref, Said(**words))


def samples(name, count=16):
    return kit.prepared("NHWC" if name == "tflite" else "NCHW")[:count]


@pytest.mark.parametrize("name", NAMES)
def test_a_bare_file_is_quantised_on_data_of_the_users_and_judged_on_what_was_held_out(name, tmp_path):
    path = tmp_path / "calib.npz"
    np.savez(path, samples(name))
    request = convert.Request(str(bare(name)), (name,), tmp_path / "out", "int8", 0.1, said=Said(calibration=str(path)))
    kit.use_home()
    result = convert.convert(request, Silent())
    (made,) = result.exports
    document = json.loads(json.dumps(result.document(), allow_nan=False))
    assert document["calibration"] == {
        "source": "calib.npz",
        "sha256": hash_file(path),
        "samples": 12,
        "held_out": 4,
    }
    assert "calibrated on 12 samples of calib.npz" in made.made.steps[-1].note
    accuracy = made.ladder.accuracy
    assert accuracy.metric == "agreement with the float model"
    assert (accuracy.baseline, accuracy.samples) == (1.0, 4)
    assert accuracy.exported >= 0.9
    assert "held-out samples of calib.npz" in accuracy.dataset
    assert [rung.rung for rung in made.ladder.parity] == ["exported", "quantized:int8"]
    assert made.ladder.parity[0].max_abs < 1e-5 < made.ladder.parity[1].max_abs


def test_the_gate_of_a_bare_file_is_agreement(tmp_path, monkeypatch):
    from edgepipe.tasks import null

    kit.use_home()
    np.save(tmp_path / "calib.npy", samples("onnx"))
    monkeypatch.setattr(null, "disagreement", lambda a, b: 0.0 if np.array_equal(a[0], b[0]) else 0.04)
    request = convert.Request(
        str(bare("onnx")), ("onnx",), tmp_path, "int8", 0.01, said=Said(calibration=str(tmp_path / "calib.npy"))
    )
    with pytest.raises(GateError, match=r"agreement fell by 4\.00%"):
        convert.convert(request, Silent())
    assert not list(tmp_path.rglob("model.onnx"))


def test_images_go_through_the_declared_preprocessing(tmp_path):
    from PIL import Image

    pixels = np.load(kit.tiny().folder / "evaluation.npz")["inputs"][:8]
    folder = tmp_path / "pictures"
    folder.mkdir()
    for place, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{place}.png")
    found = loaded(str(bare("onnx")), calibration=str(folder), preprocessing=DECLARED)
    held = np.arange(8) % 4 == 3
    fed = found.given.calibration.feeds(found.inputs, found.preprocessing)["image"]
    assert np.allclose(fed, kit.prepared("NCHW", 8)[~held], atol=1e-6)
    assert found.raw_layout == "NHWC"
    with pytest.raises(UsageError, match="images need the preprocessing"):
        loaded(str(bare("onnx")), calibration=str(folder))
    Image.fromarray(pixels[0][:5]).save(folder / "9.png")
    with pytest.raises(UsageError, match="8 x 5, the model takes 8 x 8"):
        loaded(str(bare("onnx")), calibration=str(folder), preprocessing=DECLARED)
    (folder / "9.png").write_bytes(b"no image")
    with pytest.raises(IntegrityError, match="not an image"):
        loaded(str(bare("onnx")), calibration=str(folder), preprocessing=DECLARED)


def test_two_inputs_are_fed_by_name(tmp_path):
    from onnx import helper

    nodes = [
        helper.make_node("MatMul", ["left", "w"], ["m"]),
        helper.make_node("Add", ["m", "right"], ["y"]),
    ]
    shapes = {"left": [1, 6], "right": [1, 4]}
    path = onnx_kit.save(tmp_path / "two.onnx", nodes, {"w": onnx_kit.weight(6, 4)}, shapes, {"y": [1, 4]})
    random = np.random.default_rng(0)
    left, right = (random.uniform(-1, 1, (count, size)).astype("f") for count, size in ((60, 6), (60, 4)))
    onnx_kit.samples(tmp_path / "two.npz", right=right, left=left)
    kit.use_home()
    request = convert.Request(
        path,
        ("onnx", "openvino"),
        tmp_path / "out",
        "int8",
        said=Said(calibration=str(tmp_path / "two.npz")),
    )
    for made in convert.convert(request, Silent()).exports:
        assert made.ladder.accuracy.samples == 15
        assert made.ladder.parity[-1].cosine > 0.999
    np.savez(tmp_path / "one.npz", left=left)
    with pytest.raises(UsageError, match="the data has arrays left; the inputs are left, right"):
        loaded(path, calibration=str(tmp_path / "one.npz"))
    np.savez(tmp_path / "uneven.npz", left=left, right=right[:3])
    with pytest.raises(UsageError, match=r"\[3, 60\] samples"):
        loaded(path, calibration=str(tmp_path / "uneven.npz"))


def test_a_folder_of_arrays_is_joined_in_the_order_of_names(tmp_path):
    folder = tmp_path / "arrays"
    folder.mkdir()
    np.save(folder / "b.npy", samples("onnx")[1])
    np.savez(folder / "a.npz", image=samples("onnx")[:1])
    np.savez(folder / "c.npz", samples("onnx")[2:5])
    found = loaded(str(bare("onnx")), calibration=str(folder)).given
    assert np.array_equal(found.calibration.inputs, samples("onnx")[[0, 1, 2, 4]])
    assert np.array_equal(found.held.inputs, samples("onnx")[[3]])
    np.save(folder / "d.npy", samples("onnx")[0][:, :4])
    with pytest.raises(UsageError, match="differ in shape"):
        loaded(str(bare("onnx")), calibration=str(folder))
    (folder / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match=r"notes\.txt is no sample"):
        loaded(str(bare("onnx")), calibration=str(folder))


def test_one_sample_leaves_nothing_to_judge_by(tmp_path):
    np.save(tmp_path / "one.npy", samples("onnx", 1))
    found = loaded(str(bare("onnx")), calibration=str(tmp_path / "one.npy"))
    assert found.given.held is None
    assert data.evaluation(found) is None


def test_data_takes_the_place_of_the_cards(tmp_path):
    images = np.load(kit.tiny().folder / "evaluation.npz")["inputs"][:9]
    np.savez(tmp_path / "mine.npz", images)
    found = loaded(str(kit.tiny().folder), calibration=str(tmp_path / "mine.npz"))
    assert data.calibration(found).inputs.shape == (7, 8, 8, 3)
    assert data.calibration(found).layout == "NHWC"
    assert data.evaluation(found).name == "evaluation"
    with pytest.raises(UsageError, match="reads the data that model"):
        export.check(found, "smooth+int8", ["onnx"])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda x: x[:, :, :4], "takes samples of \\[3, 8, 8\\]"),
        (lambda x: x[0], "takes samples of"),
        (lambda x: x[:0], "samples"),
        (lambda x: x * np.nan, "NaN or infinity"),
        (lambda x: x * np.inf, "NaN or infinity"),
        (lambda x: x.astype("complex64"), "is complex64"),
        (lambda x: x > 0, "is bool"),
        (lambda x: x.astype("S4"), "is \\|S4"),
        (lambda x: x * 0, "everywhere"),
    ],
)
def test_data_that_does_not_fit_is_one_clear_error(make, says, tmp_path):
    path = tmp_path / "calib.npz"
    with np.errstate(all="ignore"):
        np.savez(path, image=make(samples("onnx")))
    with pytest.raises(UsageError, match=says) as caught:
        loaded(str(bare("onnx")), calibration=str(path))
    assert str(path) in caught.value.where
    assert caught.value.fix


def test_damaged_and_missing_data(tmp_path):
    (tmp_path / "calib.npz").write_bytes(b"PK\x03\x04 no archive")
    (tmp_path / "calib.npy").write_bytes(b"\x93NUMPY nothing")
    np.save(tmp_path / "pickled.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "empty").mkdir()
    for name in ("calib.npz", "calib.npy", "pickled.npy"):
        with pytest.raises(IntegrityError, match="can't be read"):
            loaded(str(bare("onnx")), calibration=str(tmp_path / name))
    for name, says in (("empty", "no samples"), ("none.npz", "no such data")):
        with pytest.raises(UsageError, match=says):
            loaded(str(bare("onnx")), calibration=str(tmp_path / name))


def test_values_outside_the_declared_range_are_refused(tmp_path):
    np.savez(tmp_path / "done.npz", samples("onnx"))
    with pytest.raises(UsageError, match="raw data lies in 0 to 255"):
        loaded(str(bare("onnx")), calibration=str(tmp_path / "done.npz"), preprocessing=DECLARED)


def test_integers_must_fit_the_input(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Cast", ["tokens"], ["y"], to=TensorProto.FLOAT)]
    ends = [helper.make_tensor_value_info("tokens", TensorProto.INT32, [1, 3])]
    graph = helper.make_graph(nodes, "g", ends, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])])
    path = tmp_path / "tokens.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    for values, says in ((np.full((4, 3), 1 << 40), "beyond int32"), (np.ones((4, 3), "f"), "takes int32")):
        np.savez(tmp_path / "t.npz", values)
        with pytest.raises(UsageError, match=says):
            loaded(str(path), calibration=str(tmp_path / "t.npz"))


def test_preprocessing_is_read_from_words_and_from_a_file(tmp_path):
    found = given.parse(DECLARED)
    assert found == Preprocessing("NCHW", "float32", [0.0, 255.0], 1 / 255, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], "RGB")
    (tmp_path / "p.toml").write_text("[preprocessing]\nlayout = 'NCHW'\nscale = 2.0\n")
    assert given.parse(str(tmp_path / "p.toml")) == Preprocessing("NCHW", scale=2.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("scal=1", "unknown key 'scal'"),
        ("scale", "not key=value"),
        ("scale=1 scale=2", "said twice"),
        ("scale=x", "not a number: x"),
        ("scale=1/0", "not a number: 1/0"),
        ("scale=0", "scale is 0"),
        ("std=1,0,1", "std holds 0"),
        ("mean=nan", "finite"),
        ("range=1", "range is two numbers"),
        ("range=5,1", "the lower one first"),
        ("color=PINK", "no such colour order"),
        ("layout=NCCW", "each letter once"),
        ("layout=NC", "not that of an input"),
        ("layout=NCHW mean=1,2", "for 2 channels, the input has 3"),
        ("layout=NCHW color=GRAY", "the input has 3"),
        ("dtype=float99", "no such dtype"),
        ("none.toml", "can't be read"),
    ],
)
def test_preprocessing_that_makes_no_sense(text, says):
    with pytest.raises(UsageError, match=says):
        loaded(str(bare("onnx")), preprocessing=text)


def test_what_a_card_says_is_not_said_again():
    for words in ({"preprocessing": DECLARED}, {"task": "image-classification"}):
        with pytest.raises(EdgepipeError, match="models without a card"):
            loaded(str(kit.tiny().folder), **words)
    with pytest.raises(UsageError, match="no such task"):
        loaded(str(bare("onnx")), task="juggling")


def test_the_cache_tells_data_apart(tmp_path):
    kit.use_home()
    made = []
    for seed in (0, 1):
        values = samples("onnx") * (1 + seed)
        np.savez(tmp_path / "calib.npz", values)
        found = loaded(str(bare("onnx")), calibration=str(tmp_path / "calib.npz"))
        made.append(export.make(found, "int8", "onnx", cache=Cache(kit.home() / "work")).artifact.sha256)
    assert made[0] != made[1]


def test_labels_beside_the_inputs_give_the_tasks_own_metric(tmp_path):
    labels = kit.torch_outputs(16).argmax(1)
    np.savez(tmp_path / "calib.npz", inputs=samples("onnx"), labels=labels)
    kit.use_home()
    said = Said(calibration=str(tmp_path / "calib.npz"), task="image-classification")
    (made,) = convert.convert(convert.Request(str(bare("onnx")), ("onnx",), tmp_path, said=said), Silent()).exports
    assert (made.ladder.accuracy.metric, made.ladder.accuracy.baseline) == ("top1", 1.0)
    np.savez(tmp_path / "calib.npz", inputs=samples("onnx"), labels=labels[:3])
    with pytest.raises(UsageError, match=r"\[3, 16\] samples"):
        loaded(str(bare("onnx")), calibration=str(tmp_path / "calib.npz"), task="image-classification")
