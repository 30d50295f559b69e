"""What an ONNX file stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.formats.onnx import graph, widen

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_WHOLE = (6, 7, 8, 9, 12, 13)  # int32, int64, string, bool, uint32, uint64 of TensorProto: shapes, axes, text
_INTEGER = ("MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul")


def weights(path: str) -> dict[str, int]:
    """How many weights and biases the file stores, and how many are exactly zero (runs in the child).

    A quantised weight is zero where it equals its zero point. Scales, zero points and shapes don't count.
    """
    import onnx

    model = onnx.load(path)
    known = graph.constants(model)
    helpers: set[str] = set()
    found: dict[str, Array] = {}  # values, less their zero points
    for node in model.graph.node:
        given: list[Any] = [graph.array(known[name]) if name in known else None for name in node.input]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            helpers.update(node.input[1:])
            if given[0] is not None:
                found[node.input[0]] = _centred(node, *given)
        elif node.op_type == "MatMulNBits":
            helpers.update(node.input[2:])
            found[node.input[1]] = _of_blocks(node, *given[1:])
        elif node.domain == widen.DOMAIN:
            helpers.update(node.input[1:])
            values = given[0] if node.op_type == widen.BYTES else widen.unpack(given[0]).reshape(given[3])
            found[node.input[0]] = values.astype("int32") - (0 if node.op_type == widen.BYTES else given[2])
        elif node.op_type == "Resize":
            helpers.update(node.input[1:])
        elif node.op_type in _INTEGER:
            helpers.update(name for name in node.input if name in known and len(known[name].dims) <= 1)
    for name, tensor in known.items():
        if name not in helpers and name not in found and tensor.dims and tensor.data_type not in _WHOLE:
            found[name] = graph.array(tensor)
    stored = sum(values.size for values in found.values())
    return {"stored": int(stored), "zeros": int(sum((values == 0).sum() for values in found.values()))}


def _centred(node: Any, values: Array, _scale: Any, zero: Any = None) -> Array:
    """Stored integers of a DequantizeLinear, less the zero point of their tensor, channel or block."""
    import numpy as np

    integers = values.astype(np.int32)
    if zero is None:
        return integers
    axis = graph.attribute(node, "axis", 1)
    if zero.ndim == 1 and zero.size > 1:
        zero = zero.reshape([-1 if i == axis % integers.ndim else 1 for i in range(integers.ndim)])
    elif zero.ndim > 1:
        zero = np.repeat(zero, graph.attribute(node, "block_size", 1), axis).take(range(integers.shape[axis]), axis)
    centred: Array = integers - zero.astype(np.int32)
    return centred


def _of_blocks(node: Any, packed: Array, _scale: Any, zero: Any = None, *_: Any) -> Array:
    """The weights [N, K] of a MatMulNBits of 4 or 8 bits, less their zero points."""
    import numpy as np

    size, bits = (graph.attribute(node, name, 0) for name in ("N", "bits"))
    values = _pairs(packed) if bits == 4 else packed.astype(np.int32)  # noqa: PLR2004
    values = values.reshape(size, packed.shape[1], -1)
    points: Any = 1 << (bits - 1)
    if zero is not None:
        points = zero.reshape(size, -1)
        points = (_pairs(points) if bits == 4 else points.astype(np.int32))[:, : packed.shape[1], None]  # noqa: PLR2004
    rows: Array = (values - points).reshape(size, -1)
    return rows[:, : graph.attribute(node, "K", 0)]


def _pairs(packed: Array) -> Array:
    """Two 4-bit values of each byte along the last axis, the low one first."""
    import numpy as np

    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1).astype(np.int32)
