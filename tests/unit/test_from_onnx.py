"""ONNX graphs as torch programs and TFLite files, held against ONNX Runtime; a node that can't be followed is named."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepipe import export, model
from edgepipe.cache import Cache
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.formats.torch import from_onnx, onnx_math
from tests.unit import formats_kit as kit
from tests.unit import onnx_kit

node = helper.make_node


def convert(path, batch=1):
    """The program of a file, and what it and ONNX Runtime answer to its own example."""
    import torch

    target = path.replace(".onnx", ".pt2")
    facts = from_onnx.convert(path, target, batch)
    program = torch.export.load(target)
    example = program.example_inputs[0]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    wanted = session.run(None, dict(zip(names, [x.numpy() for x in example], strict=True)))
    return facts, [x.numpy() for x in program.module()(*example)], wanted


def network(path):
    """A convolution with uneven pads, a pool with a ceiling, shapes computed inside the graph, and a product."""
    nodes = [
        node("Conv", ["x", "w"], ["c"], "conv", pads=[0, 1, 1, 2], strides=[2, 2]),
        node("MaxPool", ["c"], ["m"], "pool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        node("Shape", ["m"], ["s"], "shape"),
        node("Gather", ["s", "zero"], ["n"], "first", axis=0),
        node("Concat", ["n", "rest"], ["to"], "to", axis=0),
        node("Reshape", ["m", "to"], ["f"], "flat"),
        node("Gemm", ["f", "g"], ["y"], "head", transB=1),
    ]
    constants = {
        "w": onnx_kit.weight(4, 3, 3, 3),
        "zero": np.array([0], np.int64),
        "rest": np.array([-1], np.int64),
        "g": onnx_kit.weight(5, 4 * 2 * 3),
    }
    return onnx_kit.save(path / "net.onnx", nodes, constants, {"x": [None, 3, 8, 9]}, {"y": [None, 5]})


def test_a_network_is_followed_with_the_batch_asked_for(tmp_path):
    facts, found, wanted = convert(network(tmp_path), batch=3)
    assert facts["inputs"] == [[[3, 3, 8, 9], "float32"]]
    assert np.allclose(found[0], wanted[0], atol=1e-5)


def test_it_becomes_a_tflite_file(tmp_path):
    kit.use_home()
    path = network(tmp_path)
    found = export.make(model.load(path), "none", "tflite", cache=Cache(kit.home() / "work")).artifact
    feeds = np.random.default_rng(0).normal(size=(4, 3, 8, 9)).astype(np.float32)
    assert np.allclose(kit.run(found, feeds), onnx_kit.run(path, x=feeds), atol=1e-5)
    assert [spec.name for spec in found.inputs] == ["x"]


@pytest.mark.parametrize(
    ("op", "attributes", "shapes"),
    [
        (
            "AveragePool",
            {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2], "ceil_mode": 1},
            [[1, 2, 6, 6]],
        ),
        ("ConvTranspose", {"strides": [2, 2], "output_shape": [7, 7]}, [[1, 2, 3, 3], [2, 2, 3, 3]]),
        ("LRN", {"size": 3, "alpha": 0.1}, [[1, 5, 2, 2]]),
        ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, [[1, 8, 2, 3]]),
        ("Hardmax", {"axis": 1}, [[2, 5, 3]]),
        ("CumSum", {"reverse": 1}, [[2, 3], np.array(1, np.int64)]),
        ("ReduceProd", {"axes": [0, 2], "keepdims": 1}, [[2, 3, 4]]),
        ("Pad", {"mode": "reflect"}, [[2, 4], np.array([0, 2, 0, 3], np.int64)]),
        ("Slice", {}, [[4, 5], np.array([-1], np.int64), np.array([-9], np.int64), np.array([1]), np.array([-2])]),
        ("Resize", {"mode": "cubic"}, [[1, 1, 4, 4], None, np.array([1, 1, 1.5, 2.25], np.float32)]),
        ("GRU", {"hidden_size": 3, "linear_before_reset": 1}, [[4, 1, 2], [1, 9, 2], [1, 9, 3], [1, 18]]),
        ("LSTM", {"hidden_size": 3, "direction": "bidirectional"}, [[4, 1, 2], [2, 12, 2], [2, 12, 3], [2, 24]]),
        ("LayerNormalization", {"axis": 1}, [[2, 3, 4], [3, 4], [3, 4]]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_operator_computes_what_the_runtime_does(tmp_path, op, attributes, shapes):
    """The first input is the model's; the rest are constants, as in networks."""
    names = ["x"] + [f"c{at}" if shape is not None else "" for at, shape in enumerate(shapes[1:])]
    constants = {
        name: shape if isinstance(shape, np.ndarray) else onnx_kit.weight(*shape)
        for name, shape in zip(names[1:], shapes[1:], strict=True)
        if name
    }
    nodes = [node(op, names, ["y"], "it", **attributes)]
    path = onnx_kit.save(tmp_path / "one.onnx", nodes, constants, {"x": shapes[0]}, {"y": None})
    _, found, wanted = convert(path)
    assert found[0].shape == wanted[0].shape
    assert np.allclose(found[0], wanted[0], atol=1e-5)


def test_quantised_nodes_keep_their_answers(tmp_path):
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["e"], axis=1),
        node("MatMul", ["d", "e"], ["y"]),
    ]
    constants = {
        "s": np.float32(0.02),
        "z": np.uint8(7),
        "w": np.random.default_rng(0).integers(-128, 128, (4, 3)).astype(np.int8),
        "ws": np.array([0.1, 0.2, 0.3], np.float32),
        "wz": np.zeros(3, np.int8),
    }
    path = onnx_kit.save(tmp_path / "q.onnx", nodes, constants, {"x": [2, 4]}, {"y": [2, 3]})
    _, found, wanted = convert(path)
    assert np.allclose(found[0], wanted[0], atol=1e-4)


def test_types_that_tflite_does_not_compute_in_are_narrowed(tmp_path):
    graph = helper.make_graph(
        [node("Add", ["x", "c"], ["y"])],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, [2])],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, [2])],
        [numpy_helper.from_array(np.array([1.0, 2.0]), "c")],
    )
    path = str(tmp_path / "double.onnx")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    assert from_onnx.convert(path, str(tmp_path / "x.pt2"), 1)["inputs"] == [[[2], "float32"]]


@pytest.mark.parametrize(
    ("nodes", "inputs", "words"),
    [
        (
            [node("NonMaxSuppression", ["x", "x"], ["y"], "boxes")],
            {"x": [1, 2, 4]},
            "no rule.*NonMaxSuppression.*boxes",
        ),
        (
            [node("NonZero", ["x"], ["n"], "places"), node("Cast", ["n"], ["y"], to=1)],
            {"x": [2, 3]},
            "NonZero.*places.*depend on the data",
        ),
        ([node("Relu", ["x"], ["y"])], {"x": [1, None, 3]}, "free dimension"),
        ([node("Relu", ["w"], ["y"])], {}, "no inputs"),
    ],
)
def test_what_cant_be_followed_names_its_node(tmp_path, nodes, inputs, words):
    path = onnx_kit.save(tmp_path / "bad.onnx", nodes, {"w": np.ones(2, np.float32)}, inputs, {"y": None})
    with pytest.raises(UsageError, match=words):
        from_onnx.convert(path, str(tmp_path / "x.pt2"), 1)


def test_a_rule_that_computes_something_else_is_caught(tmp_path, monkeypatch):
    monkeypatch.setitem(onnx_math.RULES, "Relu", lambda _, x: x * 2)
    path = onnx_kit.save(tmp_path / "relu.onnx", [node("Relu", ["x"], ["y"])], {}, {"x": [1, 3]}, {"y": [1, 3]})
    with pytest.raises(IntegrityError, match="gives another output 'y'"):
        from_onnx.convert(path, str(tmp_path / "x.pt2"), 1)


def test_whole_numbers_that_are_divided_by_are_not_made_up_as_zero(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPIPE_CACHE", str(tmp_path / "cache"))
    values = [helper.make_tensor_value_info(name, TensorProto.INT32, [4]) for name in ("a", "b", "y")]
    graph = helper.make_graph([helper.make_node("Mod", ["a", "b"], ["y"])], "mod", values[:2], values[2:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(made, tmp_path / "m.onnx")
    made = export.make(model.load(str(tmp_path / "m.onnx")), "none", "tflite")
    assert made.artifact.format == "tflite"


def test_what_would_crash_the_converter_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPIPE_CACHE", str(tmp_path / "cache"))
    weights = {"w": np.ones((1, 2, 3, 3, 3), np.float32)}
    path = onnx_kit.save(
        tmp_path / "m.onnx",
        [node("ConvTranspose", ["x", "w"], ["y"])],
        weights,
        {"x": [1, 1, 3, 4, 5]},
        {"y": [1, 2, 5, 6, 7]},
    )
    with pytest.raises(UsageError, match="no transposed convolution in three dimensions"):
        export.make(model.load(path), "none", "tflite")
