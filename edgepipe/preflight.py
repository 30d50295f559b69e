"""Before anything is sent: can the runtime that this board has run this file? The formats know, each for its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from edgepipe import isolate, plugins
from edgepipe.agent import runtimes
from edgepipe.agent.runtimes import runtime_for
from edgepipe.artifact import ExportOptions
from edgepipe.errors import BoardError, UsageError
from edgepipe.schema import Artifact, Board, Runtime
from edgepipe.targets import Target


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


def check(artifact: Artifact, board: Board, where: str) -> list[str]:
    """Cautions in words, for what may run otherwise than hoped.

    Raises:
        BoardError: the runtime there can't run the file, with the nodes it is about.
    """
    runtime = next((each for each in board.runtimes if each.name == runtime_for(artifact.format)), None)
    try:
        module = plugins.load("formats", artifact.format, "preflight")
    except UsageError:
        return []  # a format whose files say nothing
    if runtime is None or not runtime.version:
        return []  # `bench.check_runtimes` says so
    told = {"path": artifact.path, "package": runtime.package, "version": runtime.version, "arch": board.arch}
    found = isolate.call(f"{module.__name__}:for_board", told)
    if found["blocked"]:
        fix = "update the runtime there (edgepipe provision), or choose another recipe, format or --opset"
        raise BoardError(f"the board can't run this file: {'; '.join(found['blocked'])}", where, fix)
    return [str(words) for words in found["cautions"]]


def several(format_name: str, path: str, boards: list[dict[str, str]]) -> list[dict[str, list[str]]]:
    """What stands against running a file on boards given by package, version and arch (runs in the child)."""
    module = plugins.load("formats", format_name, "preflight")
    known: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for board in boards:
        asked = tuple(board.values())
        if asked not in known:
            known[asked] = module.for_board(path, **board)
    return [known[tuple(board.values())] for board in boards]
