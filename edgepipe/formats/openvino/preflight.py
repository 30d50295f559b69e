"""What of a model OpenVINO can't run, found before anything is written: the operators, and the nodes they are at."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from edgepipe.errors import UsageError
from edgepipe.formats._names import some
from edgepipe.formats.openvino import onnx_traps

_UNKNOWN = ("ONNXFrameworkNode", "NotSupportedONNXNode")  # what the frontend leaves where it has no rule, or it failed
_LONGEST = 60  # characters of a node's name in an error
_FIX = "leave the operation out of the model, or export to onnx"


def converted(source: str) -> Any:
    """The OpenVINO model of an ONNX or TFLite file or a frozen graph (runs in the child).

    Raises:
        UsageError: an operator it has no rule for, a use of one it can't follow, or a rank known only at run time, with
            the nodes; or anything else its frontend refuses, in its own words.
    """
    import openvino

    with tempfile.TemporaryDirectory(prefix="edgepipe-") as folder:
        onnx = source.endswith(".onnx")
        given = _mended(source, Path(folder)) if onnx else source
        try:
            model = openvino.convert_model(given)
        except Exception as error:  # native code with a class for each kind of check
            raise _refusal(source, error) from None
        if onnx:
            onnx_traps.lost(model, source)
    free = [
        op for op in model.get_ordered_ops() if any(port.get_partial_shape().rank.is_dynamic for port in op.outputs())
    ]
    names = [op.get_friendly_name()[:_LONGEST] for op in free if op.get_type_name() != "Result"]
    if names:
        what = f"OpenVINO's CPU plug-in needs to know the rank of every tensor; not known at {some(names)}"
        raise UsageError(what, Path(source).name, "make shapes and axes constants of the model, or export to onnx")
    return model


def _mended(source: str, folder: Path) -> str:
    """See `onnx_traps.mended`; what it refuses is told together with what has no rule.

    Raises:
        UsageError: as there.
    """
    try:
        return onnx_traps.mended(source, folder)
    except UsageError as error:
        more = _unruled(source)
        raise UsageError(f"{error.what}; OpenVINO {more}" if more else error.what, error.where, _FIX) from None


def _refusal(source: str, error: Exception) -> UsageError:
    """Say which nodes the frontend could not convert; where it does not even tell that, its last words."""
    said = _unruled(source)
    what = f"OpenVINO {said}" if said else f"OpenVINO can't convert the model: {_words(error)}"
    return UsageError(what, Path(source).name, _FIX)


def _unruled(source: str) -> str:
    """What it has no rule for or can't follow, with the nodes; empty where it tells nothing."""
    try:
        left = _left(source)
    except Exception:  # it fails as a whole: then the first error is all there is
        return ""
    reasons = zip(_UNKNOWN, ("has no", "can't follow this use of"), strict=True)
    return " and ".join(filter(None, (_group(left, kind, why) for kind, why in reasons)))


def _left(source: str) -> list[tuple[str, str, str]]:
    """What the frontend could not convert: kind of failure, operator, node."""
    from openvino.frontend import FrontEndManager

    # The nodes below are made of parts of all three, which must outlive them.
    manager = FrontEndManager()
    frontend = manager.load_by_framework({".onnx": "onnx", ".pb": "tf"}.get(Path(source).suffix, "tflite"))
    loaded = frontend.load(source)
    partial = frontend.convert_partially(loaded)
    ops = [op for op in partial.get_ordered_ops() if op.get_type_name() in _UNKNOWN]
    found = [
        (op.get_type_name(), str(op.get_attributes().get("ONNX_META_type", "?")), op.get_friendly_name()) for op in ops
    ]
    del ops, partial
    return found


def _group(left: list[tuple[str, str, str]], kind: str, why: str) -> str:
    found = [(op, node) for failure, op, node in left if failure == kind]
    return (
        f"{why} {', '.join(sorted({op for op, _ in found}))} (at {some([name[:_LONGEST] for _, name in found])})"
        if found
        else ""
    )


def _words(error: Exception) -> str:
    """The end of what it said: before it stand the places in its sources."""
    return " ".join(str(error).split())[-200:]


def for_source(
    path: str,
    shapes: list[list[int]],  # noqa: ARG001
    batch: int,  # noqa: ARG001
    opset: int | None,  # noqa: ARG001
    board: dict[str, str] | None,  # noqa: ARG001
) -> list[list[str]]:
    """What stands against converting a file, every node at once, each with what to do (runs in the child)."""
    if not path.endswith((".onnx", ".tflite")):
        return []
    try:
        converted(path)
    except UsageError as error:
        return [[error.what, error.fix]]
    return []


def for_board(path: str, package: str, version: str, arch: str) -> dict[str, list[str]]:  # noqa: ARG001
    """What stands against running the file there: ``blocked`` for sure, ``cautions`` perhaps (runs in the child)."""
    from edgepipe.formats.openvino.tensors import integer_layers

    count = integer_layers(path) if arch == "aarch64" else 0
    words = f"OpenVINO's documentation lists int8 for x86-64 only: {count} int8 layers may run in float on {arch}"
    return {"blocked": [], "cautions": [words] if count else []}
