"""Whether an ONNX graph can be brought to a torch program, the way to TFLite, before any of it is."""

from __future__ import annotations

from edgepipe.formats.torch import from_onnx


def for_source(
    path: str,
    shapes: list[list[int]],
    batch: int,
    opset: int | None,  # noqa: ARG001
    board: dict[str, str] | None,  # noqa: ARG001
) -> list[list[str]]:
    """What stands against converting the file, every node at once, each with what to do (runs in the child)."""
    return [[error.what, error.fix] for error in from_onnx.foresee(path, batch, shapes)]
