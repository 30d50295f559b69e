"""`edgepipe doctor`: what a board is, which wheels fit it, and what would go wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from edgepipe.cli import console, options
from edgepipe.errors import BoardError

if TYPE_CHECKING:
    from edgepipe.doctor import Diagnosis


def command(
    target: options.Target, host: options.Host = "", json: options.Json = False, quiet: options.Quiet = False
) -> None:
    """Probe the board and say line by line what works, what does not, and what to do. Exit 4 if nothing can run."""
    from edgepipe import bench, board, doctor, targets
    from edgepipe.cli import show

    place = targets.load(target, host or None)
    with console.open_progress(quiet=quiet) as progress, board.connect(place, bench.owner(), progress) as client:
        found = doctor.examine(client, progress)
    if json:
        options.emit(found)
    else:
        _print(found)
    if not found.usable:
        error = BoardError(
            "no runtime can run on this board", f"target {target}", "see the red lines; another Python or system helps"
        )
        show(error)
        raise typer.Exit(error.exit_code)


def _print(found: Diagnosis) -> None:
    """One row for each line of the diagnosis, the verdict in its colour."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{found.target}: {found.board.model or found.board.cpu}", title_justify="left", expand=False)
    for name in ("", "what", "found", "what helps"):
        table.add_column(name, overflow="fold")
    for check in found.checks:
        table.add_row(
            Text(check.verdict, style=check.verdict), *(Text(part) for part in (check.topic, check.text, check.fix))
        )
    console.stdout().print(table)
