"""Small real files whose layers are quantised, and which the runtime computes in float: most of them, not all."""

from pathlib import Path

import numpy as np

SIZE = 8


def onnx_file(path: Path) -> Path:
    """A convolution, and two transposed ones, for which ONNX Runtime's CPU provider has no 8-bit kernel."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, constants, last = [], [], "x"
    scalars = {"step": np.float32(0.02), "zero": np.int8(0)}
    constants += [numpy_helper.from_array(np.asarray(value), name) for name, value in scalars.items()]
    for number, op in enumerate(("Conv", "ConvTranspose", "ConvTranspose")):
        q, d, w, dw, y = (f"{kind}{number}" for kind in ("q", "d", "w", "dw", "y"))
        constants.append(numpy_helper.from_array(rng.integers(-100, 100, (4, 4, 3, 3)).astype(np.int8), w))
        nodes += [
            helper.make_node("QuantizeLinear", [last, "step", "zero"], [q], q),
            helper.make_node("DequantizeLinear", [q, "step", "zero"], [d], d),
            helper.make_node("DequantizeLinear", [w, "step", "zero"], [dw], dw),
            helper.make_node(op, [d, dw], [y], y, pads=[1, 1, 1, 1]),
        ]
        last = y
    nodes += [
        helper.make_node("QuantizeLinear", [last, "step", "zero"], ["end"], "end"),
        helper.make_node("DequantizeLinear", ["end", "step", "zero"], ["y"], "last"),
    ]
    shape = [1, 4, SIZE, SIZE]
    sides = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name in ("x", "y"))
    graph = helper.make_graph(nodes, "fallback", *sides, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def openvino_file(path: Path) -> Path:
    """Convolutions on activations with a scale for each channel, which OpenVINO can't take out of the sum."""
    import openvino
    from openvino import opset13 as ops

    rng = np.random.default_rng(0)
    x = last = ops.parameter([1, 4, SIZE, SIZE], np.float32, "x")
    for number in range(3):
        wide = np.linspace(1, 4, 4, dtype=np.float32).reshape(1, 4, 1, 1) if number else np.float32(1)
        last = ops.fake_quantize(last, -wide, wide, -wide, wide, 256)
        weights = ops.constant(rng.integers(-100, 100, (4, 4, 3, 3)).astype(np.int8))
        scaled = ops.multiply(ops.convert(weights, np.float32), ops.constant(np.float32(0.01)))
        last = ops.convolution(last, scaled, [1, 1], [1, 1], [1, 1], [1, 1])
    openvino.save_model(openvino.Model([last], [x], "fallback"), str(path), compress_to_fp16=False)
    return path


def tflite_file(path: Path) -> Path:
    """Three products on 8-bit numbers: two are written as quantise, dequantise, product, which LiteRT does not fuse."""
    from ai_edge_litert import schema_py_generated as schema

    from edgepipe.formats.tflite import graph

    rng = np.random.default_rng(0)
    model, part = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers, model.subgraphs, part.tensors, part.operators = 3, [schema.BufferT()], [part], [], []
    codes = {name: place for place, name in enumerate(("QUANTIZE", "DEQUANTIZE", "FULLY_CONNECTED"))}
    model.operatorCodes = []
    for name, version in (("QUANTIZE", 1), ("DEQUANTIZE", 2), ("FULLY_CONNECTED", 4)):
        code = schema.OperatorCodeT()
        code.builtinCode, code.version = getattr(schema.BuiltinOperator, name), version
        code.deprecatedBuiltinCode = code.builtinCode
        model.operatorCodes.append(code)

    def tensor(kind: str, values: np.ndarray | None = None, shape: tuple[int, ...] = (1, SIZE)) -> int:
        made = schema.TensorT()
        made.name, made.type = f"t{len(part.tensors)}".encode(), getattr(schema.TensorType, kind)
        made.shape, made.buffer = list(values.shape if values is not None else shape), 0
        if values is not None:
            model.buffers.append(schema.BufferT())
            model.buffers[-1].data, made.buffer = np.frombuffer(values.tobytes(), np.uint8), len(model.buffers) - 1
        if kind == "INT8":
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = [0.02], [0]
        part.tensors.append(made)
        return len(part.tensors) - 1

    def op(name: str, inputs: list[int], output: int) -> int:
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = codes[name], inputs, [output]
        if name == "FULLY_CONNECTED":
            made.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
            made.builtinOptions = schema.FullyConnectedOptionsT()
        part.operators.append(made)
        return output

    def weights() -> int:
        return tensor("INT8", rng.integers(-100, 100, (SIZE, SIZE)).astype(np.int8))

    x = tensor("FLOAT32")
    whole = op("FULLY_CONNECTED", [op("QUANTIZE", [x], tensor("INT8")), weights(), -1], tensor("INT8"))
    last = op("DEQUANTIZE", [whole], tensor("FLOAT32"))
    for _ in range(2):
        given = op("DEQUANTIZE", [op("QUANTIZE", [last], tensor("INT8"))], tensor("FLOAT32"))
        wide = op("DEQUANTIZE", [weights()], tensor("FLOAT32", shape=(SIZE, SIZE)))
        last = op("FULLY_CONNECTED", [given, wide, -1], tensor("FLOAT32"))
    part.inputs, part.outputs = [x], [last]
    path.write_bytes(graph.pack(model))
    return path


FILES = {"onnx": onnx_file, "openvino": openvino_file, "tflite": tflite_file}
SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "tflite": ".tflite"}
