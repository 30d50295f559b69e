"""What an ONNX file stores."""

from __future__ import annotations

from typing import Any

from edgepipe.formats._quantisation import unpacked

_QUANTISED = ("DequantizeLinear", "MatMulNBits", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul")


def weights(path: str) -> dict[str, int]:
    """How many weights and biases the file stores, and how many are exactly zero (runs in the child).

    A quantised weight is zero where it equals its zero point. Scales, zero points and shapes don't count.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    helpers, points = _helpers(model.graph, known)
    stored = zeros = 0
    for name, tensor in known.items():
        if name in helpers or tensor.data_type in _WHOLE or not tensor.dims:
            continue
        values = numpy_helper.to_array(tensor)
        if points.get(name, (0, False))[1]:
            values = unpacked(values, 2 * values.size, signed=False)
        stored += values.size
        zeros += int((values.astype("float32") == points.get(name, (0, False))[0]).sum())
    return {"stored": int(stored), "zeros": zeros}


_WHOLE = (6, 7, 8, 9, 12, 13)  # int32, int64, string, bool, uint32, uint64 of TensorProto: shapes, axes, text


def _helpers(graph: Any, known: dict[str, Any]) -> tuple[set[str], dict[str, tuple[int, bool]]]:
    """Names of scales and zero points; and for quantised weights their zero point and whether nibbles are packed."""
    from onnx import numpy_helper

    helpers: set[str] = set()
    points: dict[str, tuple[int, bool]] = {}
    for node in graph.node:
        if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
            helpers.update(node.input[1:])
            if node.input[0] in known and len(node.input) > 2 and node.input[2] in known:  # noqa: PLR2004
                values = numpy_helper.to_array(known[node.input[2]]).astype("int32")
                points[node.input[0]] = (int(values.flat[0]) if values.size else 0, False)
        elif node.op_type == "MatMulNBits":
            helpers.update(node.input[2:4])
            bits = next(item.i for item in node.attribute if item.name == "bits")
            points[node.input[1]] = (1 << (bits - 1), bits == 4)  # noqa: PLR2004
        elif node.op_type in _QUANTISED:
            scalars = [name for name in node.input if name in known and len(known[name].dims) <= 1]
            helpers.update(scalars)
    return helpers, points
