"""How `deploy` and `bench` end: the table for people, the document for scripts, the error's lines and its exit code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgepipe.cli import console, options

if TYPE_CHECKING:
    from edgepipe.deploy import Outcome
    from edgepipe.record import Comparison, Report


def report(
    found: list[Report], html: str, *, as_json: bool, quiet: bool, more: dict[str, Any] | None = None, first: str = ""
) -> None:
    """Show kept results: as a page named ``html`` (``first`` before all), as a document with ``more`` or a table."""
    from edgepipe import report as pages
    from edgepipe.report import tables

    if html:
        pages.write_html(found, Path(html), first)
        if not quiet:
            console.stderr().print(f"wrote {html}", markup=False)
    if as_json:
        options.emit({"schema": "edgepipe.runs/1", "reports": found, **(more or {})})
    elif not quiet and not html:
        tables.show_reports(found, console.stdout())


def show(outcome: Outcome, *, as_json: bool, quiet: bool, comparison: Comparison | None = None) -> None:
    """Show what was reached, and end with the error that stopped it, if one did.

    Raises:
        typer.Exit: with the exit code of that error.
    """
    from edgepipe.cli import show as show_error
    from edgepipe.report import tables

    if not quiet and outcome.reports:
        tables.show_reports(outcome.reports, console.stderr())
    if not quiet and comparison:
        tables.show_comparison(comparison, console.stderr())
    printed = as_json and bool(outcome.reports or outcome.error is None)
    if printed:
        more = {"comparison": comparison} if comparison else {}
        options.emit({"schema": "edgepipe.deploy/1", "reports": outcome.reports, **more})
    if outcome.error:
        show_error(outcome.error, as_json=as_json and not printed)
        raise typer.Exit(outcome.error.exit_code)
