"""`edgepipe report`: tables and plots of the results kept."""

from __future__ import annotations

from typing import Annotated

import typer

from edgepipe.cli import options, outcomes


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

    reports = Journal().reports(model=model or None, target=target or None)
    chosen = reports if everything else report.latest(reports)
    outcomes.report(chosen, html, as_json=json, quiet=quiet)
