"""What a TFLite file stores."""

from __future__ import annotations

from typing import Any

from edgepipe.formats.tflite import graph

_FLOATS = {"FLOAT32": "float32", "FLOAT16": "float16"}
_INTEGERS = {"INT8": "int8", "UINT8": "uint8", "INT16": "int16", "INT32": "int32", "INT64": "int64"}


def weights(path: str) -> dict[str, int]:
    """How many weights and biases the file stores, and how many are exactly zero (runs in the child).

    A quantised weight is zero where it equals its zero point; what several tensors share counts once. Scales, zero
    points, shapes and axes don't count, nor do numbers without dimensions.
    """
    model = graph.read(path)
    seen = {0}  # the schema keeps the first buffer empty
    stored = zeros = 0
    for part in model.subgraphs:
        helpers = {int(index) for tensor in part.tensors if graph.in_blocks(tensor) for index in _helpers(tensor)}
        for index, tensor in enumerate(part.tensors):
            if index in helpers or tensor.buffer in seen or tensor.shape is None or not len(tensor.shape):
                continue
            values = _values(tensor, model.buffers[tensor.buffer].data)
            if values is None:
                continue
            seen.add(tensor.buffer)
            stored += values.size
            zeros += int((values == _points(tensor, values.ndim)).sum())
    return {"stored": int(stored), "zeros": zeros}


def _values(tensor: Any, data: Any) -> Any:
    """The numbers of a constant tensor of weights in its shape; None for anything else."""
    import math

    import numpy as np

    kind = graph.kind(tensor)
    scaled = (
        tensor.quantization is not None and tensor.quantization.scale is not None and len(tensor.quantization.scale)
    )
    scaled = scaled or graph.in_blocks(tensor)
    if data is None or not len(data) or not (kind in _FLOATS or scaled):
        return None  # whole numbers without a scale are shapes, axes and the like
    # A tensor in the sparse encoding stores the values of its blocks that are not all zero, one after the other.
    shape = [-1] if tensor.sparsity is not None else [int(size) for size in tensor.shape]
    if kind == "INT4":  # two in a byte, the first in the low half
        halves = np.frombuffer(bytes(data), np.int8)
        packed = np.stack([halves << 4 >> 4, halves >> 4], -1)
        return packed.reshape(-1)[: math.prod(tensor.shape)].reshape(shape)
    kinds = _FLOATS | _INTEGERS
    return np.frombuffer(bytes(data), kinds[kind]).reshape(shape) if kind in kinds else None


def _points(tensor: Any, dimensions: int) -> Any:
    """The zero point of each value, to be compared with the values: one for all, or one along an axis."""
    import numpy as np

    found = tensor.quantization.zeroPoint if tensor.quantization is not None else None
    if found is None or not len(found) or graph.in_blocks(tensor):
        return 0
    if len(found) == 1 or tensor.sparsity is not None:
        return int(found[0])
    shape = [1] * dimensions
    shape[tensor.quantization.quantizedDimension] = -1
    return np.array(found).reshape(shape)


def _helpers(tensor: Any) -> list[int]:
    """Tensors that hold the scales and zero points of blocks."""
    details = tensor.quantization.details
    return [details.scales, details.zeroPoints]
