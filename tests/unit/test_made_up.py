"""Files of models without data: what made-up inputs show of them, and what they can't."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

from edgepipe import convert, export, made_up, model
from edgepipe.progress import Silent
from tests.unit import onnx_kit


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPIPE_CACHE", str(tmp_path / "cache"))


def network(path, weight, shape=(1, 3, 8, 8), opset=17):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["y"]),
    ]
    return onnx_kit.save(path, nodes, {"w": weight}, {"x": list(shape)}, {"y": [shape[0], 4, 1, 1]}, opset)


@pytest.fixture
def weight():
    return np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32)


def prepared(path, form="openvino"):
    source = model.load(path)
    return convert.prepare(source, "none", form, export.ExportOptions(), None, Silent())


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_a_sound_file_is_shown_to_be_the_same_on_several_distributions(tmp_path, weight, form):
    found = prepared(network(tmp_path / "m.onnx", weight), form)
    assert [rung.rung for rung in found.parity] == ["exported"]
    assert found.parity[0].cosine > 0.99999 and found.parity[0].disagreement == 0 and not found.cautions
    assert "made-up samples each of normal, uniform, sparse values, seed 0" in found.row()["reason"]
    assert found.row()["accuracy"] is None and found.ladder is None


def test_a_file_that_departs_is_a_caution_with_its_rung(tmp_path, weight):
    """Another network in the place of the stage, as a converter that is wrong would leave it."""
    path = network(tmp_path / "m.onnx", weight)
    other = prepared(network(tmp_path / "other.onnx", -weight)).made.stages[-1]
    source = model.load(path)
    made = export.make(source, "none", "openvino")
    shown = made_up.climb(source, replace(made, stages=[*made.stages[:-1], other]))
    assert len(shown.cautions) == 1 and shown.cautions[0].startswith("rung exported, on made-up inputs: cosine ")
    assert shown.parity[-1].note


def test_inputs_that_can_not_be_made_up_are_said(tmp_path, weight):
    found = prepared(network(tmp_path / "m.onnx", weight, (1, 3, "h", "w")), "onnx")
    assert found.parity == [] and not found.cautions
    assert "not shown to be the same model: the input 'x' has a free dimension" in found.row()["reason"]


def test_a_module_is_fed_as_its_file_is(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(
        "import torch\n\ndef build():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.Tanh())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    source = model.load("nets:build", [6])
    found = convert.prepare(source, "none", "onnx", export.ExportOptions(), None, Silent())
    assert found.parity and found.parity[0].cosine > 0.99999 and not found.cautions
