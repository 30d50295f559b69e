import shutil
import subprocess
import sys

import pytest

from edgepipe import cache, model
from edgepipe.errors import IntegrityError, UsageError

from . import formats_kit as kit


@pytest.fixture
def folder(tmp_path, monkeypatch):
    kit.tiny()
    monkeypatch.setenv("EDGEPIPE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(kit.tiny().folder, tmp_path / "models" / "tiny")


def edit(folder, old, new):
    path = folder / "model.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def rewrite(folder, change):
    """Change the weights and forget their hash."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "weights.safetensors")
    change(weights)
    save_file(weights, folder / "weights.safetensors")
    text = (folder / "model.toml").read_text()
    (folder / "model.toml").write_text("\n".join(x for x in text.splitlines() if "weights_sha256" not in x))


def test_loads_by_name_path_and_file(folder):
    by_name = model.load("tiny")
    for ref in (str(folder), str(folder / "weights.safetensors"), "models/tiny"):
        again = model.load(ref)
        assert again.identity == by_name.identity
        assert again.labels == ["a", "b", "c", "d"]
    assert by_name.format == "torch"
    assert by_name.path is None
    assert by_name.inputs[0].shape == [-1, 3, 8, 8]
    assert by_name.inputs[0].layout == "NCHW"
    assert by_name.raw_layout == "NHWC"
    assert by_name.floor == 0.1
    assert not by_name.module.training


def test_counts_by_hand(folder):
    """Stem 4x4x8 outputs of 3x3x3, depthwise 4x4x8 of 3x3, linear 8x4; parameters from the layers' shapes."""
    facts = model.load("tiny").facts
    assert facts.macs == 4 * 4 * 8 * 27 + 4 * 4 * 8 * 9 + 8 * 4
    assert facts.parameters == 8 * 27 + 8 + 8 + 8 * 9 + 8 + 8 * 4 + 4
    assert facts.reason == ""


def test_what_was_loaded_once_is_described_without_the_framework(folder):
    """As a resume does it by the thousand boards: importing torch takes longer than all the rest."""
    known = model.load("tiny")
    code = "import sys; from edgepipe import model; found = model.load('tiny'); print('torch' in sys.modules)\n"
    code += "print(found.identity, found.facts.macs, found.outputs); found.module; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, told, after = done.stdout.splitlines()
    assert (before, after) == ("False", "True")
    assert told == f"{known.identity} {known.facts.macs} {known.outputs}"


def test_a_network_that_was_changed_before_it_was_built_is_refused(folder):
    model.load("tiny")
    described = model.load("tiny")
    assert described.network is not None
    (folder / "model.py").write_text((folder / "model.py").read_text() + "\n")
    with pytest.raises(IntegrityError, match="changed in the meantime"):
        described.network.get()


def test_a_cache_that_cannot_be_written_does_not_matter(folder, monkeypatch):
    def full(*_):
        raise cache.NoRoomError("the disk of the work cache is full", "cache", "free space there")

    monkeypatch.setattr(cache.Cache, "make", full)
    assert model.load("tiny").module is not None


def test_listing_and_near_names(folder):
    (folder.parent / "_shared").mkdir()
    shutil.copy(folder / "model.toml", folder.parent / "_shared")
    assert "tiny" in model.listing()
    assert not [name for name in model.listing() if name[0] in "_."]
    with pytest.raises(UsageError) as caught:
        model.load("tinny")
    assert "no such model: tinny" in caught.value.what
    assert "did you mean tiny" in caught.value.fix
    with pytest.raises(UsageError):
        model.load("_shared")


@pytest.mark.parametrize("ref", ["models", "none.onnx", "models/none", "weights.h5", "../x", ""])
def test_no_such_model(folder, ref):
    with pytest.raises(UsageError):
        model.load(ref)


def test_a_file_no_format_reads(folder):
    (folder / "x.gguf").write_text("x")
    with pytest.raises(UsageError, match=r"no format reads \.gguf") as caught:
        model.load(str(folder / "x.gguf"))
    assert ".onnx" in caught.value.fix


def test_other_weights_than_promised(folder):
    content = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(IntegrityError, match=r"not those model\.toml promises"):
        model.load("tiny")


@pytest.mark.parametrize("keep", [0, 4, 100, -50])
def test_truncated_weights(folder, keep):
    rewrite(folder, lambda weights: None)
    content = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(content[:keep])
    with pytest.raises(IntegrityError, match="can't be read"):
        model.load("tiny")


def test_missing_and_surplus_keys_are_listed(folder):
    rewrite(folder, lambda weights: weights.pop("head.bias"))
    with pytest.raises(IntegrityError, match=r"lack head\.bias"):
        model.load("tiny")


def test_three_keys_at_most(folder):
    def change(weights):
        for key in list(weights)[:5]:
            weights[key + "_old"] = weights.pop(key)

    rewrite(folder, change)
    with pytest.raises(IntegrityError, match="and 2 more"):
        model.load("tiny")


def test_wrong_shapes(folder):
    rewrite(folder, lambda weights: weights.update({"head.bias": weights["head.bias"][:2].clone()}))
    with pytest.raises(IntegrityError, match=r"other shapes at head\.bias"):
        model.load("tiny")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(folder, value):
    rewrite(folder, lambda weights: weights["head.weight"].view(-1)[3:4].fill_(value))
    with pytest.raises(IntegrityError, match=r"NaN or infinity: head\.weight"):
        model.load("tiny")


def test_missing_weights_and_module(folder):
    (folder / "model.py").rename(folder / "other.py")
    with pytest.raises(UsageError, match="no network"):
        model.load("tiny")
    (folder / "weights.safetensors").unlink()
    with pytest.raises(UsageError, match="weights are missing"):
        model.load("tiny")


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('task = "image', 'task = "imagee', "no such task"),
        ("weights = ", "weights == ", "can't be read"),
        ('weights = "weights', 'weights = "../weights', "not the name of a file"),
        ('weights = "weights', 'weights = "/weights', "not the name of a file"),
        ('name = "tiny"', "name = 3", "wrong"),
        ('name = "tiny"', 'name = "a b"', "can't be a model's name"),
        ("shape = [3, 8, 8]", 'shape = "3"', "wrong"),
        ("shape = [3, 8, 8]", "shape = [3, 0, 8]", r"has shape \[3, 0, 8\]"),
        ("shape = [3, 8, 8]", "shape = [1, 8, 8]", "does not run"),
        ("shape = [4]", "shape = [5]", "model.toml says"),
        ('layout = "NHWC"', 'layout = "NHWC"\nfull = 3', "wrong"),
        ('layout = "NHWC"', 'layout = "NHWC"\nfull = {limit = 0}', "wrong"),
        ('calibration = "calibration.npz"', "calibration = 3", "wrong"),
        ('color = "RGB"', 'colour = "RGB"', "wrong"),
        ("floor = 0.1", 'floor = "high"', "wrong"),
        ("[accuracy]", "[acuracy]", "wrong"),
    ],
)
def test_bad_cards(folder, old, new, what):
    edit(folder, old, new)
    with pytest.raises(UsageError, match=what):
        model.load("tiny")


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("1 / 0", "model.py failed: ZeroDivisionError"),
        ("x = 1", "has no build"),
        ("def build(): return 3", "not return a torch module"),
        ("def build(): raise ValueError('no')", r"build\(\) failed: ValueError: no"),
    ],
)
def test_bad_networks(folder, code, what):
    (folder / "model.py").write_text(code)
    with pytest.raises(UsageError, match=what):
        model.load("tiny")


def test_identity_follows_code_card_and_weights(folder):
    before = model.load("tiny").identity
    (folder / "model.py").write_text((folder / "model.py").read_text() + "\n# changed\n")
    changed = model.load("tiny").identity
    assert changed != before
    edit(folder, "mean = [0.5", "mean = [0.6")
    assert model.load("tiny").identity not in (before, changed)


FUNCTION = """
import torch
def net(scale=1.0):
    torch.manual_seed(0)
    m = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    m.input_shape = (3, 2, 2)
    return m
def shapeless():
    m = net()
    del m.input_shape
    return m
def broken(): raise RuntimeError("no")
number = 3
"""


def test_functions(tmp_path, monkeypatch):
    (tmp_path / "somewhere_else.py").write_text(FUNCTION)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = model.load("somewhere_else:net")
    assert found.name == "net"
    assert found.inputs[0].shape == [-1, 3, 2, 2]
    assert found.outputs[0].shape == [-1, 3]
    assert found.facts.parameters == 39
    assert found.facts.macs == 36
    assert model.load("somewhere_else:shapeless", [3, 2, 2]).facts.sha256 == found.facts.sha256
    for ref in ("somewhere_else:shapeless", "somewhere_else:broken", "somewhere_else:number", "somewhere_else:none"):
        with pytest.raises(UsageError):
            model.load(ref)
    with pytest.raises(UsageError, match="failed: ModuleNotFoundError"):
        model.load("no_such_package.module:function")


def test_a_safetensors_file_with_only_its_network(folder):
    (folder / "model.toml").unlink()
    found = model.load(str(folder / "weights.safetensors"), input_shape=[3, 8, 8])
    assert found.name == "weights"
    assert found.task == "null"
    assert found.data is None
    with pytest.raises(UsageError, match="shape of the input is not known"):
        model.load(str(folder / "weights.safetensors"))
