"""Whether a board's TFLite runtime can run a file: the old package lacks types and operators that newer files use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgepipe.formats._names import some
from edgepipe.formats.tflite import graph

_OLD = "tflite-runtime"  # frozen at 2.14
_NEWER_TYPES = ("INT4", "INT2", "BFLOAT16")
_BUILTINS = Path(__file__).with_name("builtins.json")  # written by scripts/tflite_builtins.py
_REGISTERED = ("AudioSpectrogram", "Mfcc", "NumericVerify", "TFLite_Detection_PostProcess")  # custom operators it has


def for_source(
    path: str,
    shapes: list[list[int]],  # noqa: ARG001
    batch: int,  # noqa: ARG001
    opset: int | None,  # noqa: ARG001
    board: dict[str, str] | None,
) -> list[list[str]]:
    """What stands against taking in a TFLite file, every node at once, each with what to do (runs in the child)."""
    if not path.endswith(".tflite"):
        return []
    if board:
        found = for_board(path, **board)["blocked"]
    else:
        found = _missing(graph.read(path), "LiteRT", _versions()["ai-edge-litert"])
    return [[why, ""] for why in found]


def for_board(path: str, package: str, version: str, arch: str) -> dict[str, list[str]]:  # noqa: ARG001
    """What stands against running the file there: ``blocked`` for sure, ``cautions`` perhaps (runs in the child)."""
    model = graph.read(path)
    versions = _versions()
    known = versions.get(f"{package} {_minor(version)}", versions.get(package))
    blocked = _missing(model, f"{package} {version}", known) if known else []
    if package != _OLD:
        return {"blocked": blocked, "cautions": []}
    main = model.subgraphs[0]
    typed, channels = [], []
    for place, op in enumerate(main.operators):
        tensors = [main.tensors[index] for index in op.inputs if index >= 0]
        name = graph.name_of(model, place)
        if any(graph.kind(tensor) in _NEWER_TYPES or graph.in_blocks(tensor) for tensor in tensors):
            typed.append(name)
        if tensors and graph.kind(tensors[0]) == "FLOAT32" and any(_per_channel(tensor) for tensor in tensors[1:]):
            channels.append(name)
    if typed:
        blocked.append(f"{_OLD} {version} has no 4-bit or blockwise weights (at {some(typed)})")
    if channels:
        blocked.append(
            f"{_OLD} {version} computes nonsense on float activations with weights of one scale for each channel "
            f"(at {some(channels)})"
        )
    return {"blocked": blocked, "cautions": []}


def _missing(model: Any, runtime: str, known: dict[str, int]) -> list[str]:
    """Operators that a runtime does not have, or not in the version that the file uses, in all graphs of the file."""
    found: dict[str, list[str]] = {}
    for number, part in enumerate(model.subgraphs):
        for place, op in enumerate(part.operators or []):
            code, kind = model.operatorCodes[op.opcodeIndex], graph.operator(model, op)
            name = f"{kind.lower()}_{place}" + (f" of graph {number}" if number else "")
            custom = (code.customCode or b"").decode("utf-8", "replace")[:60]
            if kind == "CUSTOM":
                if custom not in _REGISTERED:
                    found.setdefault(f"no custom operator {custom or 'without a name'}", []).append(name)
            elif kind not in known:
                found.setdefault(f"no {kind}", []).append(name)
            elif code.version > known[kind]:
                words = f"{kind} up to version {known[kind]}, the file uses {code.version}"
                found.setdefault(words, []).append(name)
    return [f"{runtime} has {why} (at {some(names)})" for why, names in found.items()]


def _versions() -> dict[str, dict[str, int]]:
    """By runtime, the newest version of each operator that it has."""
    found: dict[str, dict[str, int]] = json.loads(_BUILTINS.read_text(encoding="utf-8"))
    return found


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _per_channel(tensor: object) -> bool:
    quantization = getattr(tensor, "quantization", None)
    scale = quantization.scale if quantization is not None else None
    return graph.kind(tensor) == "INT8" and scale is not None and len(scale) > 1
