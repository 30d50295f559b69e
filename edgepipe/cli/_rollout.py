"""`edgepipe fleet rollout | pause | abort`: a release on one board, then a few, then all."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgepipe.cli import console, options
from edgepipe.errors import UsageError

Waves = Annotated[str, typer.Option("--waves", help="Boards that have it after each wave, e.g. 1,5%,25%,all.")]
Slower = Annotated[
    str, typer.Option("--max-slowdown", help="How much slower than the release before it may be for sure, by p50.")
]
Energy = Annotated[
    str, typer.Option("--max-energy", help="How much more energy an inference may take, where boards are metered.")
]
Tolerate = Annotated[int, typer.Option("--tolerate", min=0, help="Boards of a wave that may fail.")]
Quorum = Annotated[str, typer.Option("--quorum", help="Share of a wave that must have passed before the next one.")]
Soak = Annotated[str, typer.Option("--soak", help="Wait so long after each wave, then look at its boards again.")]
RollBack = Annotated[str, typer.Option("--roll-back", help="Boards that go back when it is stopped: wave, all, none.")]
Rollout = Annotated[str, typer.Argument(metavar="[ROLLOUT]", help="Its id or the beginning of it; else the latest.")]


def candidate(model: str, recipe: str, to: str) -> Any:
    """The one candidate.

    Raises:
        UsageError: no format, or several.
    """
    from edgepipe.fleet.plan import Cell

    formats = options.names(to or "onnx", "--to")
    if len(formats) != 1:
        raise UsageError("a roll-out is of one file", "--to", "name one format; `fleet run` measures several")
    return Cell(model, recipe or "none", formats[0])


def gates(max_drop: str, max_slowdown: str, max_energy: str, tolerate: int, quorum: str) -> Any:
    """What boards and waves must hold."""
    from edgepipe.fleet.rollout.waves import Gates

    return Gates(
        options.fraction(max_drop, "--max-drop"),
        options.fraction(max_slowdown, "--max-slowdown"),
        options.fraction(max_energy, "--max-energy"),
        tolerate,
        options.fraction(quorum, "--quorum") or 0.0,
    )


def go(act: Any, *, as_json: bool, quiet: bool) -> None:
    """Act, show the boards, and end with the exit code of what came of it; a pause or an abort is 130."""
    from edgepipe.cli import EXIT_INTERRUPTED
    from edgepipe.cli import show as show_error

    with console.open_progress(quiet=quiet) as progress:
        outcome = act(progress)
    if outcome is None:
        return
    if not quiet:
        table(outcome.document, err=True)
    if as_json:
        options.emit(outcome.document)
    if outcome.error:
        show_error(outcome.error)
        raise typer.Exit(outcome.error.exit_code)
    if outcome.document["state"] in {"paused", "aborted"}:
        raise typer.Exit(EXIT_INTERRUPTED)


def table(document: dict[str, Any], *, err: bool = False) -> None:
    """Print how each board stands."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from edgepipe.report.rows import plain

    out = console.stderr() if err else console.stdout()
    found = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold dim")
    for name in ("wave", "board", "state", "time", "energy", ""):
        found.add_column(name, overflow="fold")
    for board in document["boards"]:
        cells = (str(board["wave"]), board["board"], board["state"], ratio(board["latency"]), ratio(board["energy"]))
        found.add_row(*(Text(plain(cell)) for cell in cells), Text(plain(board["reason"]), "red"))
    out.print(found)
    counts = ", ".join(f"{count} {state}" for state, count in document["counts"].items())
    out.print(f"{document['rollout']}: {document['state']}, {counts}", markup=False)
    if document["reason"]:
        out.print(document["reason"], markup=False)


def ratio(found: dict[str, Any] | None) -> str:
    """A ratio to the release before, with its interval."""
    if not found or found["value"] is None:
        return "\N{EN DASH}"
    span = f" [{found['low']:.2f}, {found['high']:.2f}]" if found["low"] is not None else ""
    return f"{found['value']:.2f}{span}"
