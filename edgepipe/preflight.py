"""Before anything is sent: can the runtime that this board has run this file? The formats know, each for its own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe import cache, isolate, plugins
from edgepipe.agent import runtimes
from edgepipe.agent.runtimes import runtime_for
from edgepipe.artifact import ExportOptions
from edgepipe.errors import BoardError, DeadlineError, UsageError
from edgepipe.schema import Artifact, Board, Runtime
from edgepipe.targets import Target

if TYPE_CHECKING:
    from edgepipe.model import Model

_REASONS = "reasons.json"


def expected(target: Target, format_names: Iterable[str]) -> Board:
    """What is known of a board without asking it: the runtimes that install on its system.

    Raises:
        UsageError: none that runs one of the formats does.
    """
    found = []
    for name in dict.fromkeys(runtime_for(form) for form in format_names):
        wheel = target.runtimes.get(name)
        if wheel is None:
            continue  # nothing is known: deploy asks the board
        if wheel.reason:
            fix = "choose another format"
            raise UsageError(f"there is no {name} for {target.name}: {wheel.reason}", f"target {target.name}", fix)
        found.append(runtime_of(name, wheel.version))
    isa, cores = target.hardware.isa, target.hardware.cores
    return Board(target.arch, target.hardware.cpu, isa, cores, None, target.system.os, "", "", runtimes=found)


def runtime_of(name: str, told: str) -> Runtime:
    """A runtime by what a target says of its version: ``1.31.1``, or ``tflite-runtime 2.14.0`` for another package."""
    package, _, version = told.rpartition(" ")
    return Runtime(name, version, package or runtimes.find(name).PACKAGES[0])


def within(options: ExportOptions, target: Target) -> ExportOptions:
    """The options within what the board's ONNX Runtime loads.

    Raises:
        UsageError: the opset asked for is beyond it.
    """
    if options.opset and target.opset and options.opset > target.opset:
        what = f"the ONNX Runtime of {target.name} loads up to opset {target.opset}, not {options.opset}"
        raise UsageError(what, "--opset, --target", "ask for less, or leave --opset out")
    return replace(options, opset=options.opset or target.opset, ir_version=target.ir_version)


def before(model: Model, ways: dict[str, str], options: ExportOptions, board: Board | None = None) -> None:
    """Find out before any work what of a file can't be brought to the formats asked for, or run on the board.

    ``ways`` has, by format, the first format on the way to it. Only what the user gives as a file can be looked at:
    what is made of a torch module or by TensorFlow is judged as it is made.

    Raises:
        UsageError: something can't; all nodes of all formats are named.
    """
    if model.network is not None or model.path is None:
        return
    found = {name: _reasons(model, model.path, way, name, options, board) for name, way in ways.items()}
    said = {name: reasons for name, reasons in found.items() if reasons}
    if not said:
        return
    several = len(ways) > 1
    texts = {name: "; ".join(what for what, _ in reasons) for name, reasons in said.items()}
    what = "; ".join(f"to {name}: {text}" if several else text for name, text in texts.items())
    rest = [name for name in ways if name not in said]
    fixes = {fix for reasons in said.values() for _, fix in reasons}
    own = fixes.pop() if len(fixes) == 1 else ""
    only = [f"export to {' and '.join(rest)} only"] if rest else []
    raise UsageError(what, model.name, ", or ".join([*only, own or "leave those operations out of the model"]))


def _reasons(
    model: Model, path: Path, way: str, name: str, options: ExportOptions, board: Board | None
) -> list[list[str]]:
    """What the first format on the way to ``name`` says; kept, since the conversions it foresees are kept too."""
    try:
        module = plugins.load("formats", way, "preflight")
    except UsageError:
        return []
    if not hasattr(module, "for_source"):
        return []
    there = _there(board, name) if board else None
    shapes = [spec.shape for spec in model.inputs]
    told = {"path": str(path), "shapes": shapes, "batch": options.batch, "opset": options.opset, "board": there}
    code_of = cache.code(*sorted(Path(str(module.__file__)).parent.glob("*.py")))
    have = cache.versions(("onnx", "onnxruntime", "openvino", "torch", "ai-edge-litert"))
    entry = cache.key("preflight", parent=model.identity, way=way, told={**told, "path": ""}, code=code_of, have=have)

    def fill(folder: Path) -> None:
        try:
            reasons = isolate.call(f"{module.__name__}:for_source", told)
        except (BoardError, DeadlineError):
            reasons = []  # it crashed, and what it is about will too, where more is known
        (folder / _REASONS).write_text(json.dumps(reasons), encoding="utf-8")

    folder, _ = cache.Cache().make(entry, fill)
    kept: list[list[str]] = json.loads((folder / _REASONS).read_text(encoding="utf-8"))
    return kept


def check(artifact: Artifact, board: Board, where: str) -> list[str]:
    """Cautions in words, for what may run otherwise than hoped.

    Raises:
        BoardError: the runtime there can't run the file, with the nodes it is about.
    """
    there = _there(board, artifact.format)
    try:
        module = plugins.load("formats", artifact.format, "preflight")
    except UsageError:
        return []  # a format whose files say nothing
    if there is None:
        return []  # `bench.check_runtimes` says so
    found = isolate.call(f"{module.__name__}:for_board", {"path": artifact.path, **there})
    if found["blocked"]:
        fix = "update the runtime there (edgepipe provision), or choose another recipe, format or --opset"
        raise BoardError(f"the board can't run this file: {'; '.join(found['blocked'])}", where, fix)
    return [str(words) for words in found["cautions"]]


def _there(board: Board, format_name: str) -> dict[str, str] | None:
    """The runtime that runs a format on a board, as `for_board` is told of it; None where it has none."""
    for each in board.runtimes:
        if each.name == runtime_for(format_name) and each.version:
            return {"package": each.package, "version": each.version, "arch": board.arch}
    return None


def several(format_name: str, path: str, boards: list[dict[str, str]]) -> list[dict[str, list[str]]]:
    """What stands against running a file on boards given by package, version and arch (runs in the child)."""
    module = plugins.load("formats", format_name, "preflight")
    known: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for board in boards:
        asked = tuple(board.values())
        if asked not in known:
            known[asked] = module.for_board(path, **board)
    return [known[tuple(board.values())] for board in boards]
