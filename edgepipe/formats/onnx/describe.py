"""What an ONNX file is made of (runs in the child)."""

from __future__ import annotations

from collections import Counter
from typing import Any


def describe(path: str) -> dict[str, Any]:
    """Operators with how often, every tensor whose type is known, and what the file says of itself."""
    import onnx

    from edgepipe.formats.onnx import load

    model, external = load.read(path)
    inferred = onnx.shape_inference.infer_shapes(model)
    graph = inferred.graph
    constants = {tensor.name for tensor in graph.initializer}
    rows = [_row(tensor.name, tensor.data_type, list(tensor.dims), constant=True) for tensor in graph.initializer]
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if value.name not in constants and kind.elem_type:
            rows.append(_row(value.name, kind.elem_type, [dim.dim_value or -1 for dim in kind.shape.dim]))
    counts = Counter(f"{node.domain}:{node.op_type}" if node.domain else node.op_type for node in graph.node)
    return {
        "ops": dict(counts),
        "tensors": rows,
        "metadata": {
            "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
            "ir_version": model.ir_version,
            "producer": f"{model.producer_name} {model.producer_version}".strip(),
            "graph": model.graph.name,
            "external_data": external,
            **{entry.key: entry.value[:200] for entry in list(model.metadata_props)[:20]},
        },
    }


def _row(name: str, kind: int, shape: list[int], *, constant: bool = False) -> dict[str, Any]:
    from onnx import TensorProto

    word = {"FLOAT": "float32", "DOUBLE": "float64"}.get(TensorProto.DataType.Name(kind), "")
    return {
        "name": name,
        "dtype": word or TensorProto.DataType.Name(kind).lower(),
        "shape": shape,
        "constant": constant,
    }
