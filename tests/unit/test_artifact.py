import gzip
import json
from pathlib import Path

import pytest

from edgepipe import artifact
from edgepipe.artifact import Output
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.schema import Preprocessing, TensorSpec


@pytest.fixture
def built(tmp_path):
    (tmp_path / "m.xml").write_bytes(b"<net>" + b"a" * 5000)
    (tmp_path / "m.bin").write_bytes(bytes(range(256)) * 20)
    output = Output(["m.xml", "m.bin"], [TensorSpec("x", [1, 3])], [TensorSpec("y", [1, 2])], Preprocessing("NC"))
    return artifact.build("openvino", tmp_path, output, model="m", recipe="int8", parent_sha256="0" * 64)


def test_sizes_and_hash(built, tmp_path):
    assert built.bytes == 5005 + 5120
    assert built.sha256 == built.files[0].sha256
    assert [ref.name for ref in built.files] == ["m.xml", "m.bin"]
    assert Path(built.path) == tmp_path / "m.xml"
    expected = sum(len(gzip.compress((tmp_path / ref.name).read_bytes(), 6)) for ref in built.files)
    assert built.bytes_gzip == expected


def test_gzip_size_streams(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "_BLOCK", 100)
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 1000)
    assert artifact.gzip_size(path) == len(gzip.compress(b"abc" * 1000, 6))


def test_save_and_load(built, tmp_path):
    path = artifact.save(built, tmp_path)
    assert json.loads(path.read_text())["path"] == "m.xml"
    assert artifact.load(tmp_path) == built
    assert artifact.load(path) == built
    assert sorted(item.name for item in tmp_path.iterdir()) == ["artifact.json", "m.bin", "m.xml"]


def test_check_passes_then_catches_every_change(built, tmp_path):
    artifact.check(built)
    for name in ("m.xml", "m.bin"):
        content = (tmp_path / name).read_bytes()
        for bad in (content[:-1], content + b"!", content[:-1] + b"!"):
            (tmp_path / name).write_bytes(bad)
            with pytest.raises(IntegrityError, match=name):
                artifact.check(built)
        (tmp_path / name).unlink()
        with pytest.raises(IntegrityError, match="missing"):
            artifact.check(built)
        (tmp_path / name).write_bytes(content)
    artifact.check(built)


def test_copy_goes_elsewhere_and_proves_it(built, tmp_path):
    there = artifact.copy(built, tmp_path / "out" / "deep")
    assert Path(there.path) == tmp_path / "out" / "deep" / "m.xml"
    artifact.check(there)
    assert artifact.load(tmp_path / "out" / "deep") == there
    (tmp_path / "m.bin").write_bytes(b"damaged")
    with pytest.raises(IntegrityError):
        artifact.copy(built, tmp_path / "out2")
    assert not (tmp_path / "out2" / "artifact.json").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../m.xml"},
        {"path": "/etc/passwd"},
        {"path": "other.xml"},
        {"files": []},
        {"files": [{"name": "../m.xml", "sha256": "0" * 64, "bytes": 1}], "path": "../m.xml"},
        {"bytes": "many"},
        {"surplus": 1},
        {"bytes": float("nan")},
    ],
)
def test_hostile_manifests(built, tmp_path, change):
    path = artifact.save(built, tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(IntegrityError):
        artifact.load(tmp_path)


def test_not_a_manifest(tmp_path):
    with pytest.raises(UsageError):
        artifact.load(tmp_path)
    for text in ("", "{", "[]", "\xff"):
        (tmp_path / "artifact.json").write_text(text, encoding="latin-1")
        with pytest.raises(IntegrityError):
            artifact.load(tmp_path)


def test_portable_has_no_path_of_this_machine(built):
    assert artifact.portable(built).path == "m.xml"
