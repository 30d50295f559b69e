"""The layers of a TFLite file: which it wants computed in integers, and what flows between them."""

from __future__ import annotations

from typing import Any

from edgepipe.formats.tflite import graph

_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D", "FULLY_CONNECTED", "BATCH_MATMUL")
_INTEGERS = ("INT8", "UINT8", "INT16")


def integer_layers(path: str) -> int:
    """How many layers the file says are to be computed on integer activations and weights (runs in the child).

    Those too that read a dequantised activation and a dequantised weight, as other tools write integer layers: LiteRT
    does not fuse them.
    """
    model = graph.read(path)
    main = model.subgraphs[0]
    slots = {"TRANSPOSE_CONV": 2}  # its inputs are output shape, weights, input
    sources = {op.outputs[0]: op.inputs[0] for op in main.operators if graph.operator(model, op) == "DEQUANTIZE"}
    count = 0
    for op in main.operators:
        name = graph.operator(model, op)
        if name in _LAYERS:
            given = op.inputs[slots.get(name, 0)]
            read = [given] if graph.kind(main.tensors[given]) in _INTEGERS else [given, op.inputs[1]]
            count += all(graph.kind(main.tensors[sources.get(tensor, tensor)]) in _INTEGERS for tensor in read)
    return count


def precision(path: str) -> str:
    """The coarsest precision the file stores weights in: int8 for integers of any width, float16, or float32."""
    model = graph.read(path)
    stored = [
        tensor
        for tensor in model.subgraphs[0].tensors
        if tensor.shape is not None and len(tensor.shape) > 1 and model.buffers[tensor.buffer].data is not None
    ]
    kinds = {graph.kind(tensor) for tensor in stored}
    if kinds & {"INT4", "INT2", "INT8", "UINT8", "INT16"}:
        return "int8"
    return "float16" if kinds & {"FLOAT16", "BFLOAT16"} else "float32"


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


def cut(source: str, folder: str, most: int) -> dict[str, Any]:
    """Write copies of the file that put out what flows inside it, ``most`` tensors each (runs in the child).

    Returns ``{"tensors": see `tensors`, "files": names in ``folder`` of each copy, in the tensors' order}``.
    """
    from pathlib import Path

    rows, files = tensors(source), []
    for start in range(0, len(rows), most):
        model = graph.named(source)
        main = model.subgraphs[0]
        places = {_name(tensor): index for index, tensor in enumerate(main.tensors)}
        main.outputs = [places[row["name"]] for row in rows[start : start + most]]
        model.signatureDefs = None  # their outputs are other ones
        files.append([f"part{start}.tflite"])
        (Path(folder) / files[-1][0]).write_bytes(graph.pack(model))
    return {"tensors": rows, "files": files}
