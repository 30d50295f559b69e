"""The network steps one after another, in their child processes, down to a file: what one bought the next one keeps."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from edgepipe import export, model, network, recipe
from edgepipe.cache import Cache
from edgepipe.errors import UsageError
from edgepipe.training import Changed, Keep

from . import formats_kit as kit


@pytest.fixture(autouse=True)
def home(monkeypatch):
    monkeypatch.setenv("EDGEPIPE_HOME", str(kit.home()))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a network this small only waits on more


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """The tiny model with a training set."""
    folder = tmp_path_factory.mktemp("models") / "taught"
    shutil.copytree(kit.tiny().folder, folder)
    random = np.random.default_rng(3)
    images = random.integers(0, 256, (192, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "training.npz", inputs=images, labels=random.integers(0, 4, 192))
    card = folder / "model.toml"
    card.write_text(card.read_text().replace("[data]", '[data]\ntraining = "training.npz"'))
    return model.load(str(folder))


def pruned(source, folder):
    """A stage as an unstructured pruning step leaves it: half of the weights of the head and of a convolution zero."""
    net = network.copy.deepcopy(source.module)
    with torch.no_grad():
        for name in ("head.weight", "depth.0.weight"):
            weight = net.get_parameter(name)
            weight[weight.abs() < weight.abs().flatten().median()] = 0
    folder.mkdir()
    network._save(source, Changed(net, "zeros by hand", 0.5, Keep(("head.weight", "depth.0.weight"))), None, folder)
    return network.load(source, folder, "zeros")[0].module


@pytest.mark.slow
def test_zeros_survive_every_step_after_them(taught, tmp_path):
    before = pruned(taught, tmp_path / "0")
    steps = [("distill", {"epochs": 2}), ("equalize", {"clip": "relu"}), ("qat", {"epochs": 1})]
    folder = tmp_path / "0"
    for index, (step, given) in enumerate(steps, 1):
        (tmp_path / str(index)).mkdir()
        params = {**recipe.network_steps()[step].DEFAULTS, **given}
        network.compress(taught, folder, step, params, tmp_path / str(index))
        folder = tmp_path / str(index)
        changed, record = network.load(taught, folder, step)
        assert record.note
        assert record.sparsity == 0.5
        for name in ("head.weight", "depth.0.weight"):
            zeros = before.get_parameter(name) == 0
            assert zeros.any()
            assert ((changed.module.get_parameter(name) == 0) == zeros).all()
            assert not torch.equal(changed.module.get_parameter(name), before.get_parameter(name))
    assert type(changed.module.stem[2]).__name__ == "ReLU"


@pytest.mark.slow
def test_qat_ends_in_an_int8_file(taught):
    made = export.make(taught, "null+distill:1+qat:int8,epochs=1", "onnx", cache=Cache(kit.home() / "work"))
    assert [step.name for step in made.steps] == ["export", "null", "distill", "qat", "int8"]
    assert "over 192 samples" in made.steps[2].note
    assert "3 layers trained with int8 rounding" in made.steps[3].note
    assert made.steps[3].parameters == made.steps[0].parameters
    feeds = kit.prepared("NCHW")
    with torch.no_grad():
        wanted = made.model.module(torch.from_numpy(feeds)).numpy()
    assert kit.cosine(kit.run(made.artifact, feeds), wanted) > 0.99


def test_without_training_data():
    """distill and qat learn from the calibration data; without those they are refused before any work."""
    source = kit.tiny()
    export.check(source, "null+distill", ["onnx"])
    export.check(source, "qat:int8", ["onnx"])
    bare = dataclasses.replace(source, data=dataclasses.replace(source.data, calibration=None))
    with pytest.raises(UsageError, match="distill trains, and tiny has no training data"):
        export.check(bare, "null+distill", ["onnx"])
    with pytest.raises(UsageError, match="epochs=3 trains"):
        export.check(bare, "qat:epochs=3", ["onnx"])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("distill", "repairs what a step before it lost"),
        ("qat:int4", "int4"),
        ("null+distill:2,temperature=0", "between 0.1 and 100"),
        ("smooth:2", "between 0 and 1"),
        ("equalize:0.5", "clip"),
        ("int8+qat", "already turned it into a quantised file"),
    ],
)
def test_recipes_that_are_refused(text, why):
    with pytest.raises(UsageError, match=why):
        recipe.plan(recipe.parse(text), "onnx")


def test_words_find_their_parameter():
    plan = recipe.plan(recipe.parse("null+distill:5,yes+qat:tensor"), "onnx")
    assert plan.network[1].params == {"epochs": 5, "temperature": 4.0, "alpha": 0.9, "features": "yes"}
    assert plan.network[2].params["weights"] == "tensor"
    assert plan.network[2].params["scheme"] == "int8"
    assert [action.name for action in plan.file] == ["int8"]
