"""What a TensorFlow model is made of, once it is frozen (runs in the child)."""

from __future__ import annotations

from collections import Counter
from typing import Any

from edgepipe.formats.keras import read


def describe(path: str) -> dict[str, Any]:
    """Operators with how often, tensors of the frozen graph, and what the file says of itself."""
    found = read.function(path)
    ops = found.call.graph.get_operations()
    rows = [
        {
            "name": tensor.name,
            "dtype": tensor.dtype.name,
            "shape": [size or -1 for size in tensor.shape.as_list()] if tensor.shape.rank is not None else [],
            "constant": op.type == "Const",
        }
        for op in ops
        for tensor in op.outputs
    ]
    return {"ops": dict(Counter(op.type for op in ops)), "tensors": rows, "metadata": found.producer}
