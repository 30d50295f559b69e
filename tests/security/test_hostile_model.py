"""A hostile model stays in its box: no file outside its folder is read or written, no code of its own is run."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgepipe import board as boards
from edgepipe import convert, model, paths
from edgepipe.errors import EdgepipeError
from edgepipe.progress import Silent
from edgepipe.schema import Artifact, FileRef, Manifest, Preprocessing, TensorSpec
from edgepipe.targets import Target
from tests.guarantees.figure import report

SECRET = np.arange(16, dtype=np.float32).tobytes()


class Boom:
    """Writes the witness when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.witness), "w"))


def onnx_file(path: Path, location: str, place: str = "initializer") -> Path:
    """A sound little model whose weight says that its bytes lie at ``location``."""
    import onnx
    from onnx import TensorProto, helper

    weight = TensorProto(name="w", data_type=1, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "64")):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    x, y = (helper.make_tensor_value_info(name, 1, [1, 4]) for name in "xy")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    constant = helper.make_node("Constant", [], ["w"], value=weight)
    multiply = helper.make_node("MatMul", ["x", "w"], ["y"])
    functions = []
    if place == "initializer":
        nodes = [multiply]
    elif place == "attribute":
        nodes = [constant, multiply]
    else:
        functions = [helper.make_function("local", "F", ["x"], ["y"], [constant, multiply], opsets)]
        nodes = [helper.make_node("F", ["x"], ["y"], domain="local")]
    graph = helper.make_graph(nodes, "g", [x], [y], [weight] if place == "initializer" else [])
    made = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)
    path.write_bytes(made.SerializeToString())
    assert onnx.load(path, load_external_data=False).graph.node
    return path


@pytest.fixture
def place(tmp_path: Path, own_home: Path) -> tuple[Path, Path]:
    """The model's folder, and a secret beside that folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(SECRET)
    return folder, tmp_path / "secret"


LOCATIONS: dict[str, Callable[[Path], str]] = {
    "absolute (CVE-2022-25882)": str,
    "parent (CVE-2024-27318)": lambda secret: f"../{secret.name}",
    "detour (CVE-2024-27318)": lambda secret: f"./x/../../{secret.name}",
    "symbolic link (CVE-2024-5187)": lambda secret: "link",
    "device": lambda secret: "/dev/zero",
    "control characters": lambda secret: "a\n../secret",
    "nothing": lambda secret: "",
}


@pytest.mark.guarantee
@pytest.mark.parametrize("where", ["initializer", "attribute", "function"])
def test_external_data_outside_the_folder(place, where):
    folder, secret = place
    (folder / "link").symlink_to(secret)
    escaped = []
    for name, location in LOCATIONS.items():
        path = onnx_file(folder / "m.onnx", location(secret), where)
        try:
            loaded = model.load(str(path), input_shape=[4])
            escaped.append(f"{name}: loaded {loaded.name}")
        except EdgepipeError as error:
            assert "Traceback" not in error.what
    report(17, f"ONNX {where}: {len(LOCATIONS)} kinds of external data, {len(escaped)} escapes", ok=not escaped)


@pytest.mark.guarantee
def test_pickles_are_never_run(place, tmp_path):
    """CVE-2025-32434, CVE-2026-24747: no loader unpickles, weights_only or not."""
    folder, _ = place
    witness = tmp_path / "witness"
    code = pickle.dumps(Boom(witness))
    pickle.loads(code).close()  # it does what it says
    witness.unlink()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("archive/data.pkl", code)
        packed.writestr("archive/version", "3")
    objects = io.BytesIO()
    np.savez(objects, inputs=np.array([Boom(witness)], dtype=object))
    tried = 0
    for suffix in (".pt", ".pth", ".pt2", ".pkl", ".bin", ".onnx", ".tflite", ".safetensors", ".keras", ".xml", ".npz"):
        for content in (code, archive.getvalue(), objects.getvalue()):
            path = folder / f"m{suffix}"
            path.write_bytes(content)
            for load in (
                lambda p=path: model.load(str(p), input_shape=[4]),
                lambda p=path: convert.artifact_of(str(p)),
            ):
                with pytest.raises(EdgepipeError):
                    load()
                tried += 1
            path.unlink()
    report(17, f"{tried} loads of pickles, {int(witness.exists())} run", ok=not witness.exists())


def test_a_safetensors_header_that_lies(place):
    folder, _ = place
    for header in (
        b"{" * 100_000,
        json.dumps({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}).encode(),
    ):
        (folder / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        with pytest.raises(EdgepipeError):
            model.load(str(folder / "m.safetensors"), input_shape=[4])
    (folder / "m.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(EdgepipeError):
        model.load(str(folder / "m.safetensors"), input_shape=[4])


def bomb(size: int) -> bytes:
    """A small .npz that claims, and would unpack to, ``size`` zeros."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file, file.open("0.npy", "w", force_zip64=True) as entry:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (size,)})
        entry.write(head.getvalue())
        for _ in range(size >> 20):
            entry.write(bytes(1 << 20))
    return packed.getvalue()


@pytest.mark.guarantee
def test_a_zip_bomb_of_a_board_is_not_unpacked(own_home, monkeypatch):
    monkeypatch.setattr(boards, "_MAX_BLOB", 8 << 20)
    content = bomb(16 << 20)
    digest = hashlib.sha256(content).hexdigest()
    with boards.connect(Target("b", link="local"), "me@desk", Silent()) as client:
        client.push([(content, digest)])
        with pytest.raises(EdgepipeError, match="too large"):
            client.arrays(digest)
    report(17, f"a bomb of {len(content):,} bytes is not unpacked", ok=True)


@pytest.mark.guarantee
def test_the_boards_runtime_reads_nothing_outside_the_release(place):
    """A file that never passed the host's checks, sent straight to an agent."""
    folder, secret = place
    inputs = io.BytesIO()
    np.savez(inputs, np.eye(4, dtype=np.float32)[:1])
    sample = inputs.getvalue()
    root = paths.data_home() / "boards" / "local" / ".edgepipe"
    read = []
    with boards.connect(Target("b", link="local"), "me@desk", Silent()) as client:
        if not any(one.name == "onnxruntime" and one.version for one in client.hello().board.runtimes):
            pytest.skip("no onnxruntime here")
        client.status([])
        shutil.copy(secret, root / "secret")
        client.push([(sample, hashlib.sha256(sample).hexdigest())])
        for location in (str(secret), "../../secret", "../../../../../../" + str(secret)):
            content = onnx_file(folder / "m.onnx", location).read_bytes()
            ref = FileRef("m.onnx", hashlib.sha256(content).hexdigest(), len(content))
            specs = [TensorSpec("x", [1, 4])], [TensorSpec("y", [1, 4])]
            artifact = Artifact("onnx", "m.onnx", ref.bytes, 0, ref.sha256, [ref], *specs, Preprocessing())
            client.push([(content, ref)])
            try:
                client.verify(Manifest("m", artifact, "onnxruntime"), hashlib.sha256(sample).hexdigest())
                read.append(location)
            except EdgepipeError:
                continue
    report(17, f"the board's ONNX Runtime: 3 ways out of the release, {len(read)} taken", ok=not read)
