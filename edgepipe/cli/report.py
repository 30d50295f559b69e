"""`edgepipe report`: tables and plots of the results kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepipe.cli import console, options


def command(
    html: Annotated[str, typer.Option("--html", help="Write one self-contained page with plots here.")] = "",
    model: Annotated[str, typer.Option(help="Only this model's.")] = "",
    target: Annotated[str, typer.Option(help="Only this target's.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Older runs of the same thing too.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Report the latest result of each model, recipe, format and board."""
    from edgepipe import report
    from edgepipe.journal import Journal
    from edgepipe.report import tables

    reports = Journal().reports(model=model or None, target=target or None)
    chosen = reports if everything else report.latest(reports)
    if html:
        report.write_html(chosen, Path(html))
        if not quiet:
            console.stderr().print(f"wrote {html}", markup=False)
    if json:
        options.emit({"schema": "edgepipe.runs/1", "reports": chosen})
    elif not quiet and not html:
        tables.show_reports(chosen, console.stdout())
