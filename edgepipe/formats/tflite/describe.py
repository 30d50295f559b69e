"""What a TFLite file is made of (runs in the child)."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from edgepipe.formats.tflite import graph

_UNCOUNTED = "no operation of it is one whose multiply-accumulates are counted"


def describe(path: str) -> dict[str, Any]:
    """Operators of all graphs with how often, tensors of the first one, and what the file says of itself."""
    model = graph.read(path)
    main = model.subgraphs[0]
    counts = Counter(_operator(model, op) for part in model.subgraphs for op in part.operators or [])
    macs, reason = count_macs(model)
    signatures = [(each.signatureKey or b"").decode("utf-8", "replace") for each in model.signatureDefs or []]
    rows = [
        {
            "name": (tensor.name or b"").decode("utf-8", "replace"),
            "dtype": graph.kind(tensor).lower(),
            "shape": _shape(tensor),
            "constant": model.buffers[tensor.buffer].data is not None,
        }
        for tensor in main.tensors
    ]
    return {
        "ops": dict(counts),
        "tensors": rows,
        "macs": macs,
        "reason": reason,
        "metadata": {
            "schema_version": model.version,
            "file_identifier": Path(path).read_bytes()[4:8].decode("ascii", "replace"),
            "description": (model.description or b"").decode("utf-8", "replace")[:200],
            "graphs": len(model.subgraphs),
            "signatures": signatures,
        },
    }


def _operator(model: Any, op: Any) -> str:
    name = graph.operator(model, op)
    custom = model.operatorCodes[op.opcodeIndex].customCode
    return f"{name}:{custom.decode('utf-8', 'replace')}" if custom else name


def _shape(tensor: Any) -> list[int]:
    return [int(size) for size in tensor.shape] if tensor.shape is not None else []


def count_macs(model: Any) -> tuple[int | None, str]:
    """Multiply-accumulates of one run of the first graph's convolutions and matrix products; or None and why."""
    main, total = model.subgraphs[0], 0
    for op in main.operators or []:
        shapes = [_shape(main.tensors[index]) if index >= 0 else [] for index in op.inputs]
        out = _shape(main.tensors[op.outputs[0]]) if len(op.outputs) else []
        total += _op_macs(graph.operator(model, op), shapes, out, op)
    return (total, "") if total else (None, _UNCOUNTED)


def _op_macs(name: str, shapes: list[list[int]], out: list[int], op: Any) -> int:
    # Weights are [out, height, width, in / groups], [1, height, width, out] and [depth, height, width, in, out].
    parts = {"CONV_2D": slice(1, None), "DEPTHWISE_CONV_2D": slice(1, 3), "CONV_3D": slice(None, -1)}
    if name in parts:
        return math.prod(out) * math.prod(shapes[1][parts[name]])
    if name == "TRANSPOSE_CONV":  # inputs: output shape, weight [out, height, width, in], data
        return math.prod(shapes[2]) * math.prod(shapes[1][:3])
    if name == "FULLY_CONNECTED":  # weight [out, in]
        return math.prod(out) * shapes[1][-1]
    if name == "BATCH_MATMUL":
        return math.prod(out) * shapes[0][-2 if op.builtinOptions.adjX else -1]
    return 0
