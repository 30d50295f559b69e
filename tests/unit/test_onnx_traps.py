"""ONNX operators that OpenVINO's frontend takes and computes otherwise: rewritten to the same answer, or refused."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepipe.errors import UsageError
from edgepipe.formats.openvino import onnx_traps, preflight
from tests.unit import onnx_kit

X = np.random.default_rng(3).normal(size=(3, 4, 5)).astype(np.float32) * 30


def reduction(path, operator, axes, keep, opset):
    more = {"keepdims": keep}
    constants, inputs = {}, ["x"]
    if opset < 18:
        more["axes"] = axes
    else:
        constants, inputs = {"axes": np.array(axes)}, ["x", "axes"]
    node = helper.make_node(operator, inputs, ["y"], **more)
    return onnx_kit.save(path, [node], constants, {"x": [3, 4, 5]}, {"y": None}, opset)


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize(("axes", "keep"), [([1], 1), ([0, -1], 0), ([2], 0)])
@pytest.mark.parametrize("operator", ["ReduceL1", "ReduceLogSum", "ReduceLogSumExp"])
def test_reductions_keep_their_axes(tmp_path, operator, axes, keep, opset):
    import onnxruntime
    import openvino

    path = reduction(tmp_path / "m.onnx", operator, axes, keep, opset)
    fed = np.abs(X) if operator == "ReduceLogSum" else X
    wanted = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": fed})[0]
    compiled = openvino.Core().compile_model(preflight.converted(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled([fed])[compiled.output(0)]
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def graph(path, node, inputs, constants=(), kind=TensorProto.FLOAT):
    made = helper.make_graph(
        [node],
        "trap",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in dict(constants).items()],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)]), path)
    return str(path)


@pytest.mark.parametrize(
    ("node", "inputs", "constants", "says"),
    [
        (
            helper.make_node("LSTM", ["x", "w", "r", "", "", "", "", "p"], ["", "y"], "cell", hidden_size=3),
            {"x": [1, 2, 4]},
            {"w": np.zeros((1, 12, 4), "f"), "r": np.zeros((1, 12, 3), "f"), "p": np.zeros((1, 9), "f")},
            "ignores the peepholes of an LSTM: LSTM cell",
        ),
        (
            helper.make_node("Resize", ["x", "", "s"], ["y"], "up", mode="cubic", exclude_outside=1),
            {"x": [1, 1, 4, 4]},
            {"s": np.array([1, 1, 2, 2], "f")},
            "ignores exclude_outside when it resizes by cubic interpolation: Resize up",
        ),
        (helper.make_node("Tile", ["x", "n"], ["y"]), {"x": [2, 2], "n": [2]}, {}, "needs to know the repeats"),
        (helper.make_node("Add", ["x", "c"], ["y"]), {"x": [2]}, {"c": np.array(["a", "b"])}, "has no texts: Add y"),
    ],
)
def test_what_it_gets_wrong_is_refused_with_its_node(tmp_path, node, inputs, constants, says):
    with pytest.raises(UsageError, match="OpenVINO") as raised:
        onnx_traps.mended(graph(tmp_path / "m.onnx", node, inputs, constants), tmp_path)
    assert says in raised.value.what and raised.value.where == "m.onnx"


def test_a_sound_file_stays_the_file_it_is(tmp_path):
    path = onnx_kit.save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {}, {"x": [2]}, {"y": [2]})
    assert onnx_traps.mended(path, tmp_path) == path
