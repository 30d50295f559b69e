"""Whether a board's ONNX Runtime can load a file: its opset, its IR version, ONNX Runtime's own operators."""

from __future__ import annotations

from typing import Any

# Minor version of ONNX Runtime 1.x -> the newest opset and IR version it loads: each was tried with that release.
_CAPS = {19: (21, 10), 23: (23, 11), 31: (26, 13)}
_MICROSOFT = {"MatMulNBits": 16, "GatherBlockQuantized": 20}  # operator -> the first minor version that has it
_MOST = 5


def for_board(path: str, package: str, version: str, arch: str) -> dict[str, list[str]]:  # noqa: ARG001
    """What stands against running the file there: ``blocked`` for sure, ``cautions`` perhaps (runs in the child).

    A version between two that were tried is only blocked by what the later one does not load either.
    """
    import onnx

    from edgepipe.formats.onnx import graph

    model = onnx.load(path, load_external_data=False)
    minor = _minor(version)
    if minor is None:
        return {"blocked": [], "cautions": []}
    blocked = []
    caps = next((_CAPS[known] for known in sorted(_CAPS) if known >= minor), None)
    for noun, have, place in (("opset", graph.opset(model), 0), ("IR version", model.ir_version, 1)):
        if caps and have > caps[place]:
            blocked.append(f"the file has {noun} {have}, onnxruntime {version} loads up to {caps[place]}")
    for op, first in _MICROSOFT.items():
        nodes = [node.name or node.output[0] for node in model.graph.node if node.op_type == op]
        if nodes and minor < first:
            blocked.append(f"{op} needs onnxruntime 1.{first}, there is {version} (at {_some(nodes)})")
    return {"blocked": blocked, "cautions": []}


def _minor(version: str) -> int | None:
    parts: list[Any] = version.split(".")
    return int(parts[1]) if len(parts) > 1 and parts[0] == "1" and parts[1].isdigit() else None


def _some(names: list[str]) -> str:
    return ", ".join(names[:_MOST]) + (f" and {len(names) - _MOST} more" if len(names) > _MOST else "")
