"""`edgepipe runs`: what was measured so far."""

from __future__ import annotations

from typing import Annotated

import typer

from edgepipe.cli import console, options

group = typer.Typer(help="The runs kept in the journal: list, show.", no_args_is_help=True)


@group.command("list")
def list_(
    model: Annotated[str, typer.Option(help="Only this model's.")] = "",
    target: Annotated[str, typer.Option(help="Only this target's.")] = "",
    limit: Annotated[int, typer.Option(help="How many, latest first.", min=1)] = 20,
    json: options.Json = False,
) -> None:
    """List the runs, latest first."""
    from edgepipe.journal import Journal
    from edgepipe.report import tables

    reports = Journal().reports(model=model or None, target=target or None, limit=limit)
    if json:
        options.emit({"schema": "edgepipe.runs/1", "reports": reports})
    else:
        tables.show_reports(reports, console.stdout())


@group.command()
def show(
    run: Annotated[str, typer.Argument(metavar="ID", help="A run's id, or the beginning of it.")],
    json: options.Json = False,
) -> None:
    """Show one run whole: steps, parity, board, measurement, warnings."""
    from edgepipe.journal import Journal
    from edgepipe.report import tables

    report = Journal().find(run)
    if json:
        options.emit(report)
    else:
        tables.show_report(report, console.stdout())
