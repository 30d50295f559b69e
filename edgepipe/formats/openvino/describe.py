"""What an OpenVINO file is made of (runs in the child)."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

_HEAD = 4096
_UNCOUNTED = "no operation of it is one whose multiply-accumulates are counted"
_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64"}


def describe(path: str) -> dict[str, Any]:
    """Operators with how often, every tensor, and what the file says of itself."""
    import openvino

    model = openvino.Core().read_model(path)
    ops = model.get_ordered_ops()
    rows = [_row(op, port) for op in ops for port in op.outputs() if op.get_type_name() != "Result"]
    macs, reason = count_macs(ops)
    version = re.search(r'<net [^>]*version="(\d+)"', Path(path).read_text(encoding="utf-8", errors="replace")[:_HEAD])
    return {
        "ops": dict(Counter(op.get_type_name() for op in ops)),
        "tensors": rows,
        "macs": macs,
        "reason": reason,
        "metadata": {
            "ir_version": int(version.group(1)) if version else None,
            "graph": model.get_friendly_name(),
            "opsets": sorted({op.get_type_info().version_id for op in ops if op.get_type_info().version_id}),
        },
    }


def _row(op: Any, port: Any) -> dict[str, Any]:
    kind = port.get_element_type().to_string()
    kind = re.sub(r"^([iu])(\d+)$", lambda m: ("int" if m[1] == "i" else "uint") + m[2], _TYPES.get(kind, kind))
    constant = op.get_type_name() == "Constant"
    return {"name": op.get_friendly_name(), "dtype": kind, "shape": _shape(port), "constant": constant}


def _shape(port: Any) -> list[int]:
    found = port.get_partial_shape()
    return [] if found.rank.is_dynamic else [size.get_length() if size.is_static else -1 for size in found]


def count_macs(ops: Any) -> tuple[int | None, str]:
    """Multiply-accumulates of one sample through convolutions and matrix products; or None and why."""
    total = 0
    for op in ops:
        skip = {
            "Convolution": 1,
            "ConvolutionBackpropData": 1,
            "GroupConvolution": 2,
            "GroupConvolutionBackpropData": 2,
        }
        name = op.get_type_name()
        if name not in (*skip, "MatMul"):
            continue
        first, second = (_shape(op.input_value(index)) for index in (0, 1))
        out = _shape(op.output(0))
        free = [shape[1:] for shape in (first, out)] + [second]
        if not first or not second or not out or any(size < 0 for shape in free for size in shape):
            return None, f"the shapes at {name} {op.get_friendly_name()[:60]} are not known"
        if name == "MatMul":
            inner = [first[-2 if op.get_attributes().get("transpose_a") else -1]]
        else:  # weights [out, in, kernel ...], backwards [in, out, kernel ...], in groups with the group in front
            inner = second[skip[name] :]
        over = first if name.endswith("BackpropData") else out
        total += abs(math.prod(over)) * math.prod(inner)
    return (total, "") if total else (None, _UNCOUNTED)
