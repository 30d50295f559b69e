"""`edgepipe report`: tables and plots of the results kept."""

from __future__ import annotations

from typing import Annotated

import typer

from edgepipe.cli import console, options, outcomes


def command(
    html: Annotated[str, typer.Option("--html", help="Write one self-contained page with plots here.")] = "",
    model: Annotated[str, typer.Option(help="Only this model's.")] = "",
    target: Annotated[str, typer.Option(help="Only this target's.")] = "",
    study: Annotated[str, typer.Option("--study", help="A study instead: its folder, or its study.json.")] = "",
    compare: Annotated[str, typer.Option("--compare", help="Hold --study against this earlier one.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Older runs of the same thing too.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Report the latest result of each model, recipe, format and board."""
    from edgepipe import report
    from edgepipe.errors import UsageError
    from edgepipe.journal import Journal

    if compare and not study:
        raise UsageError("which study is to be held against it?", "--compare", "name it with --study")
    if study:
        _study(study, compare, as_json=json, quiet=quiet)
        return
    reports = Journal().reports(model=model or None, target=target or None)
    chosen = reports if everything else report.latest(reports)
    outcomes.report(chosen, html, as_json=json, quiet=quiet)


def _study(folder: str, earlier: str, *, as_json: bool, quiet: bool) -> None:
    """Show a study that was written, or what changed in it since an earlier one."""
    from pathlib import Path

    from edgepipe.report import tables
    from edgepipe.study import findings, output

    document = output.read(Path(folder))
    if earlier:
        document = findings.compared(output.read(Path(earlier))["cells"], document["cells"])
    if as_json:
        options.emit(document)
    elif not quiet and earlier:
        tables.show_studies(document, console.stdout())
    elif not quiet:
        for each in document["conclusions"]:
            console.stdout().print(f"{each['family']}: {each['text']}", markup=False)
