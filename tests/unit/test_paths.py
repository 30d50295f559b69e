"""The ways from one format to another: which there are, that they keep the answers, and why others are refused."""

import numpy as np
import pytest

from edgepipe import export, model
from edgepipe.cache import Cache
from edgepipe.errors import UsageError
from edgepipe.stages import chain
from tests.unit import formats_kit as kit


def test_the_shortest_way_is_taken():
    torch = kit.tiny()
    assert [chain(torch, name) for name in ("torch", "onnx", "tflite", "openvino")] == [
        ["torch"],
        ["torch", "onnx"],
        ["torch", "tflite"],
        ["torch", "onnx", "openvino"],
    ]


def loaded(name):
    return model.load(kit.made(name).artifact.path)


def test_a_tflite_file_becomes_openvino():
    source = kit.made("tflite").artifact
    found = export.make(model.load(source.path), "none", "openvino", cache=Cache(kit.home() / "work")).artifact
    feeds = kit.prepared("NHWC")
    assert np.allclose(kit.run(found, feeds), kit.run(source, feeds), atol=1e-5)
    assert [spec.shape for spec in found.inputs] == [[1, 8, 8, 3]]


@pytest.mark.parametrize(("start", "end"), [("tflite", "onnx"), ("openvino", "onnx"), ("openvino", "tflite")])
def test_a_way_that_is_not_there_is_refused_with_the_reason(start, end):
    with pytest.raises(UsageError, match=f"{end} can't be made from {start}: .*(exact|its own)"):
        export.make(loaded(start), "none", end)
