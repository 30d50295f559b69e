"""Programs of torch.export: they export as the module would, and none of the code a file may hold is run."""

import json
import zipfile

import numpy as np
import pytest

from edgepipe import export, model
from edgepipe.cache import Cache
from edgepipe.errors import EdgepipeError, IntegrityError, UsageError
from tests.unit import formats_kit as kit


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return write_programs(tmp_path_factory.mktemp("programs"))


def write_programs(folder):
    import torch

    folder.mkdir(exist_ok=True)
    module = kit.tiny().module
    for name, batch, shapes in (("free", 2, ({0: torch.export.Dim("batch")},)), ("one", 1, None)):
        found = torch.export.export(module, (torch.zeros(batch, 3, 8, 8),), dynamic_shapes=shapes, strict=False)
        torch.export.save(found, folder / f"{name}.pt2")
    torch.save(module.state_dict(), folder / "weights.pth")
    torch.jit.save(torch.jit.trace(module, torch.zeros(1, 3, 8, 8)), folder / "script.pt")
    return folder


@pytest.fixture(autouse=True)
def home(monkeypatch):
    monkeypatch.setenv("EDGEPIPE_HOME", str(kit.home()))


def test_says_what_is_inside(programs):
    free, one = (model.load(str(programs / f"{name}.pt2")) for name in ("free", "one"))
    assert free.inputs[0].shape == [-1, 3, 8, 8]
    assert one.inputs[0].shape == [1, 3, 8, 8]
    assert one.outputs[0].shape == [1, 4]
    assert free.facts.parameters == kit.tiny().facts.parameters
    assert free.facts.macs == kit.tiny().facts.macs


@pytest.mark.parametrize("format_name", ["onnx", "tflite", "openvino"])
def test_exports_like_the_module(programs, format_name):
    name = "one" if format_name == "onnx" else "free"
    made = export.make(model.load(str(programs / f"{name}.pt2")), "none", format_name, cache=Cache(kit.home() / "work"))
    have = kit.run(made.artifact, kit.prepared("NCHW", 4))
    assert np.abs(have - kit.torch_outputs(4)).max() < 1e-4


def test_a_fixed_batch_stays(programs):
    source = model.load(str(programs / "one.pt2"))
    with pytest.raises(UsageError, match="fixed batch of 1"):
        export.make(source, "none", "torch", export.ExportOptions(batch=4), cache=Cache(kit.home() / "work"))


def test_steps_on_layers_are_refused(programs):
    with pytest.raises(UsageError, match="only operators"):
        export.check(model.load(str(programs / "one.pt2")), "prune:0.5", ["onnx"])


@pytest.mark.parametrize(("name", "words"), [("weights.pth", "pickled checkpoint"), ("script.pt", "TorchScript")])
def test_pickles_are_refused(programs, name, words):
    with pytest.raises(UsageError, match=words) as caught:
        model.load(str(programs / name), [3, 8, 8])
    assert "save" in caught.value.fix


def changed(programs, tmp_path, change):
    """A program whose JSON documents went through ``change(name, document)``."""
    path = tmp_path / "changed.pt2"
    with zipfile.ZipFile(programs / "free.pt2") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith(".json"):
                document = json.loads(content)
                change(name, document)
                content = json.dumps(document).encode()
            new.writestr(name, content)
    return str(path)


def hostile_guard(name, document):
    if "guards_code" in document:
        document["guards_code"] = ["__import__('os').system('touch WITNESS')"]


def hostile_range(name, document):
    if "range_constraints" in document:
        document["range_constraints"] = {"().__class__.__base__": {"min_val": 0, "max_val": 9}}


def hostile_operator(name, document):
    if "graph_module" in document:
        document["graph_module"]["graph"]["nodes"][0]["target"] = "torch.hub.load"


def hostile_pickle(name, document):
    for entry in document.get("config", {}).values() if "weights_config" in name else ():
        entry["use_pickle"] = True


@pytest.mark.parametrize("change", [hostile_guard, hostile_range, hostile_operator, hostile_pickle])
def test_code_in_a_program_is_not_run(programs, tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    path = changed(programs, tmp_path, change)
    with pytest.raises((IntegrityError, UsageError), match=r"code|custom|pickled"):
        model.load(path)
    assert not (tmp_path / "WITNESS").exists()


def test_damaged_programs(programs, tmp_path):
    content = (programs / "one.pt2").read_bytes()
    for damage in (b"", b"hello\n", content[: len(content) // 2]):
        path = tmp_path / "damaged.pt2"
        path.write_bytes(damage)
        with pytest.raises(EdgepipeError) as caught:
            model.load(str(path))
        assert caught.value.exit_code in (2, 5)
