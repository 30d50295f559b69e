"""Whether a board's TFLite runtime can run a file: the old package lacks types and operators that newer files use."""

from __future__ import annotations

from edgepipe.formats.tflite import graph

_OLD = "tflite-runtime"  # frozen at 2.14
_NEWER_TYPES = ("INT4", "INT2", "BFLOAT16")
_NEWER_OPS = "STABLEHLO_"  # from 2.15 on its kernels exist
_MOST = 5


def for_board(path: str, package: str, version: str, arch: str) -> dict[str, list[str]]:  # noqa: ARG001
    """What stands against running the file there: ``blocked`` for sure, ``cautions`` perhaps (runs in the child)."""
    if package != _OLD:
        return {"blocked": [], "cautions": []}
    model = graph.read(path)
    main = model.subgraphs[0]
    blocked: list[str] = []
    typed, newer, channels = [], [], []
    for place, op in enumerate(main.operators):
        tensors = [main.tensors[index] for index in op.inputs if index >= 0]
        name = graph.name_of(model, place)
        if any(graph.kind(tensor) in _NEWER_TYPES or graph.in_blocks(tensor) for tensor in tensors):
            typed.append(name)
        if graph.operator(model, op).startswith(_NEWER_OPS):
            newer.append(name)
        if graph.kind(tensors[0]) == "FLOAT32" and any(_per_channel(tensor) for tensor in tensors[1:]):
            channels.append(name)
    if typed:
        blocked.append(f"{_OLD} {version} has no 4-bit or blockwise weights (at {_some(typed)})")
    if newer:
        blocked.append(f"{_OLD} {version} has no such operators: {_some(newer)}")
    if channels:
        blocked.append(
            f"{_OLD} {version} computes nonsense on float activations with weights of one scale for each channel "
            f"(at {_some(channels)})"
        )
    return {"blocked": blocked, "cautions": []}


def _per_channel(tensor: object) -> bool:
    quantization = getattr(tensor, "quantization", None)
    scale = quantization.scale if quantization is not None else None
    return graph.kind(tensor) == "INT8" and scale is not None and len(scale) > 1


def _some(names: list[str]) -> str:
    return ", ".join(names[:_MOST]) + (f" and {len(names) - _MOST} more" if len(names) > _MOST else "")
