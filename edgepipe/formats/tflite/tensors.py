"""The layers of a TFLite file: which it wants computed in integers, and what flows between them."""

from __future__ import annotations

from typing import Any

from edgepipe.formats.tflite import graph

_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D", "FULLY_CONNECTED", "BATCH_MATMUL")
_INTEGERS = ("INT8", "UINT8", "INT16")


def integer_layers(path: str) -> int:
    """How many layers the file says are to be computed on integer activations and weights (runs in the child)."""
    model = graph.read(path)
    main = model.subgraphs[0]
    layers = [(graph.operator(model, op), op) for op in main.operators]
    slots = {"TRANSPOSE_CONV": 2}  # its inputs are output shape, weights, input
    return sum(
        name in _LAYERS and graph.kind(main.tensors[op.inputs[slots.get(name, 0)]]) in _INTEGERS for name, op in layers
    )


def tensors(path: str) -> list[dict[str, Any]]:
    """Float or quantised tensors that depend on the inputs, in the order they are computed (runs in the child).

    Each is ``{"name", "layer": the operation's name, "op": its kind, "inputs": tensors the operation reads}``.
    """
    model = graph.named(path)
    main = model.subgraphs[0]
    alive = {int(index) for index in main.inputs}
    found = []
    for place, op in enumerate(main.operators):
        inputs = [int(index) for index in op.inputs if index >= 0]
        if not alive & set(inputs):
            continue
        outputs = [int(index) for index in op.outputs]
        alive.update(outputs)
        row = {"layer": graph.name_of(model, place), "op": graph.operator(model, op)}
        names = [_name(main.tensors[index]) for index in inputs]
        found += [
            {"name": _name(main.tensors[index]), **row, "inputs": names}
            for index in outputs
            if _is_real(main.tensors[index])
        ]
    return found


def _name(tensor: Any) -> str:
    return (tensor.name or b"").decode("utf-8", "replace")


def _is_real(tensor: Any) -> bool:
    """Whether it stands for real numbers: float, or integers with a scale."""
    scale = tensor.quantization.scale if tensor.quantization is not None else None
    return graph.kind(tensor) in ("FLOAT32", "FLOAT16") or (scale is not None and len(scale) == 1)


def expose(source: str, target: str, names: list[str]) -> list[str]:
    """Write the file with these tensors as its only outputs; return the names of the files (runs in the child)."""
    from pathlib import Path

    model = graph.named(source)
    main = model.subgraphs[0]
    places = {_name(tensor): index for index, tensor in enumerate(main.tensors)}
    main.outputs = [places[name] for name in names]
    model.signatureDefs = None  # their outputs are other ones
    Path(target).write_bytes(graph.pack(model))
    return [Path(target).name]
