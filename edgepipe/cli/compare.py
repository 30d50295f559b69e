"""`edgepipe compare`: two kept runs or JSON files against each other."""

from __future__ import annotations

from typing import Annotated

import typer

from edgepipe.cli import console, options

_Run = Annotated[str, typer.Argument(help="A run's id or the beginning of it, or a file that --json printed.")]


def command(
    a: _Run,
    b: _Run,
    max_slowdown: options.MaxSlowdown = "2%",
    force: Annotated[bool, typer.Option("--force", help="Show what is not comparable too, and say so.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Say by how much run B is slower than run A; exit 6 if that is a regression for sure."""
    from edgepipe import versus
    from edgepipe.report import tables

    limit = options.fraction(max_slowdown, "--max-slowdown")
    found = versus.pairs(versus.load(a), versus.load(b), force, limit or 0.0)
    if json:
        options.emit({"schema": "edgepipe.compare/1", "comparisons": found})
    for each in () if quiet else found:
        tables.show_comparison(each, console.stderr() if json else console.stdout())
    error = versus.gate(found)
    if error:
        from edgepipe.cli import show

        show(error, as_json=False)
        raise typer.Exit(error.exit_code)
