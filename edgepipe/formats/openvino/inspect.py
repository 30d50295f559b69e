"""What an OpenVINO file stores."""

from __future__ import annotations

import math
from typing import Any

_SHAPING = ("Convert", "Reshape", "Transpose")


def weights(path: str) -> dict[str, int]:
    """How many weights and biases the file stores, and how many are exactly zero (runs in the child).

    A quantised weight is zero where it equals its zero point. Scales, zero points, ranges and shapes don't count.
    """
    import openvino

    stored = zeros = 0
    for op in openvino.Core().read_model(path).get_ops():
        if op.get_type_name() == "Constant" and _counts(op):
            values = _values(op)
            point = _zero_point(op)
            stored += values.size
            zeros += int((values == point).sum())
    return {"stored": int(stored), "zeros": zeros}


def _values(op: Any) -> Any:
    """A constant's values; packed 4-bit ones are unpacked first."""
    import numpy as np
    import openvino

    values, kind = np.asarray(op.get_data()), op.get_element_type()
    size = math.prod(op.get_output_shape(0))
    if kind in (openvino.Type.i4, openvino.Type.u4) and values.size != size:
        return _unpacked(values, size, signed=kind == openvino.Type.i4)
    return values


def _unpacked(packed: Any, count: int, *, signed: bool) -> Any:
    """The ``count`` 4-bit values in bytes, the first of two in the low half."""
    import numpy as np

    halves = np.ravel(packed).view(np.int8)
    pairs = (halves << 4 >> 4, halves >> 4) if signed else (halves & 15, halves >> 4 & 15)
    return np.stack(pairs, -1).ravel()[:count]


def _counts(op: Any) -> bool:
    """Whether a constant is a weight or a bias: numbers that reach a layer, and are no scale, zero point or range."""
    if op.get_element_type().to_string() in ("i64", "i32", "boolean", "string", "u64", "u32"):
        return False
    return any(_reaches(target) for target in op.output(0).get_target_inputs())


def _reaches(target: Any) -> bool:
    node, port = target.get_node(), target.get_index()
    kind = node.get_type_name()
    if kind in _SHAPING:
        return port == 0 and any(_reaches(item) for item in node.output(0).get_target_inputs())
    if kind == "FakeQuantize":
        return bool(port == 0)
    if kind in ("Multiply", "Subtract") and port == 0:  # integer weights on their way to real values
        return True
    if kind in ("Multiply", "Subtract"):
        return not _constant(node.input_value(0).get_node())
    return True


def _constant(node: Any) -> bool:
    while node.get_type_name() in (*_SHAPING, "Subtract", "Multiply"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def _zero_point(op: Any) -> Any:
    """The zero point of integer weights: what is subtracted from them once they are converted; else 0."""
    for target in op.output(0).get_target_inputs():
        for after in target.get_node().output(0).get_target_inputs() if target.get_node().outputs() else ():
            if after.get_node().get_type_name() == "Subtract" and after.get_index() == 0:
                node = after.get_node().input_value(1).get_node()
                while node.get_type_name() != "Constant" and node.inputs():
                    node = node.input_value(0).get_node()
                return _values(node) if node.get_type_name() == "Constant" else 0
    return 0
