"""What a TFLite file stores."""

from __future__ import annotations

import math
from typing import Any

from edgepipe.formats._quantisation import unpacked


def weights(path: str) -> dict[str, int]:
    """How many weights and biases the file stores, and how many are exactly zero (runs in the child).

    A quantised weight is zero where it equals its zero point.
    """
    import numpy as np
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as flat

    model = flat.read_model(path)
    stored = zeros = 0
    for graph in model.subgraphs:
        fed = {index for operator in graph.operators for index in operator.inputs if index >= 0}
        for index in fed:
            tensor = graph.tensors[index]
            values = _values(flat, tensor, model.buffers)
            scaled = tensor.quantization is not None and tensor.quantization.scale is not None
            if values is None or not (values.dtype.kind == "f" or scaled):
                continue  # shapes, axes and paddings are whole numbers without a scale
            points = tensor.quantization.zeroPoint if scaled else None
            point = int(points[0]) if points is not None and len(np.unique(points)) == 1 else 0
            stored += values.size
            zeros += int((values == point).sum())
    return {"stored": int(stored), "zeros": zeros}


def _values(flat: Any, tensor: Any, buffers: Any) -> Any:
    """A constant tensor's values, or None; two packed 4-bit weights in a byte count as two."""
    import numpy as np
    from ai_edge_litert.schema_py_generated import TensorType

    if tensor.type != TensorType.INT4:
        return flat.get_tensor_data(tensor, buffers)
    packed = buffers[tensor.buffer].data
    if packed is None:
        return None
    return unpacked(np.asarray(packed, np.uint8), math.prod(tensor.shape), signed=True)
