"""Whether ONNX Runtime can load a file: its operators, and on a board the opset and IR version it reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgepipe.errors import EdgepipeError
from edgepipe.formats._names import some

# Minor version of ONNX Runtime 1.x -> the newest opset and IR version it loads: each was tried with that release.
_CAPS = {19: (21, 10), 23: (23, 11), 31: (26, 13)}
_MICROSOFT = {"MatMulNBits": 16, "GatherBlockQuantized": 20}  # operator -> the first minor version that has it
_STANDARD = ("", "ai.onnx")


def for_source(
    path: str,
    shapes: list[list[int]],  # noqa: ARG001
    batch: int,  # noqa: ARG001
    opset: int | None,
    board: dict[str, str] | None,
) -> list[list[str]]:
    """What stands against taking in the file, every node at once, each with what to do (runs in the child).

    An opset beyond ``opset``, the board's, is no reason by itself, since the file can be brought down: an operator that
    did not exist then is.
    """
    import onnx

    from edgepipe.formats.onnx import graph

    model = onnx.load(path, load_external_data=False)
    found = _unregistered(model)
    if opset and graph.opset(model) > opset:
        found += _newer(model, opset)
    minor = _minor(board["version"]) if board else None
    if board and minor is not None:
        found += _own(model, minor, board["version"])
    return [[why, ""] for why in found or _unloadable(path)]


def _unregistered(model: Any) -> list[str]:
    """Operators that ONNX Runtime does not know at all."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    known = {(schema.domain, schema.name) for schema in get_all_operator_schema()}
    known |= {(function.domain, function.name) for function in model.functions}
    return _listed(
        (f"ONNX Runtime has no {f'{node.domain}:' if node.domain else ''}{node.op_type}", _name(node))
        for node in nodes(model.graph)
        if ("" if node.domain in _STANDARD else node.domain, node.op_type) not in known
    )


def _newer(model: Any, opset: int) -> list[str]:
    """Operators that the opset does not have."""
    import onnx

    def lacks(node: Any) -> bool:
        try:
            onnx.defs.get_schema(node.op_type, opset, "")
        except Exception:  # its own SchemaError: no such operator then
            return True
        return False

    return _listed(
        (f"opset {opset}, the newest that may be, has no {node.op_type}", _name(node))
        for node in nodes(model.graph)
        if node.domain in _STANDARD and lacks(node)
    )


def _own(model: Any, minor: int, version: str) -> list[str]:
    """Operators of ONNX Runtime's own that came after this release."""
    return _listed(
        (f"{node.op_type} needs onnxruntime 1.{_MICROSOFT[node.op_type]}, there is {version}", _name(node))
        for node in nodes(model.graph)
        if minor < _MICROSOFT.get(node.op_type, 0)
    )


def _unloadable(path: str) -> list[str]:
    """Why ONNX Runtime does not load the file, in its words."""
    import onnxruntime

    from edgepipe.formats.onnx import graph

    try:
        graph.session(path, graph_optimization_level=onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    except EdgepipeError as error:
        return [error.what.replace(f"{Path(path).parent}/", "")]
    return []


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
    return {"blocked": [*blocked, *_unregistered(model), *_own(model, minor, version)], "cautions": []}


def nodes(graph: Any) -> Iterator[Any]:
    """All nodes of a graph and of the graphs inside them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes(inner)


def _name(node: Any) -> str:
    return str(node.name or node.output[0])[:60]


def _listed(found: Iterator[tuple[str, str]]) -> list[str]:
    """Each reason once, with the nodes it is about."""
    reasons: dict[str, list[str]] = {}
    for why, node in found:
        reasons.setdefault(why, []).append(node)
    return [f"{why} (at {some(names)})" for why, names in reasons.items()]


def _minor(version: str) -> int | None:
    parts: list[Any] = version.split(".")
    return int(parts[1]) if len(parts) > 1 and parts[0] == "1" and parts[1].isdigit() else None
