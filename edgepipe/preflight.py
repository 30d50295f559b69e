"""Before anything is sent: can the runtime that this board has run this file? The formats know, each for its own."""

from __future__ import annotations

from edgepipe import isolate, plugins
from edgepipe.agent.runtimes import runtime_for
from edgepipe.errors import BoardError, UsageError
from edgepipe.schema import Artifact, Board


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
