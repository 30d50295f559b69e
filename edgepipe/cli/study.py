"""`edgepipe study`: the compression study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgepipe.cli import EXIT_INTERRUPTED, console, options

if TYPE_CHECKING:
    from edgepipe.study.plan import Study
    from edgepipe.study.run import Outcome


def command(
    file: Annotated[str, typer.Argument(help="The study, e.g. studies/quick.toml.")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="Folder of the report; out/study-NAME by default.")
    ] = "",
    target: Annotated[
        str,
        typer.Option(
            "--target", "-t", help="Boards in place of those the file names.", autocompletion=options.complete_target
        ),
    ] = "",
    again: Annotated[bool, typer.Option("--again", help="Measure everything anew.")] = False,
    retry: Annotated[bool, typer.Option("--retry-failed", help="Measure the cells that failed once more.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be measured; touch nothing.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure models x recipes x formats x targets, and write tables, plots and what they show.

    What was measured is kept: the same command goes on after anything. A cell that fails stays in the report with its
    reason.
    """
    from edgepipe.study import output as out
    from edgepipe.study import plan, run

    study = plan.read(Path(file), target)
    if dry_run:
        _plan(study, as_json=json)
        return
    folder = Path(output or f"out/study-{study.name}")
    with console.open_progress(quiet=quiet) as progress:
        outcome = run.run(study, progress, again=again, retry=retry)
        page = out.write(study, outcome.rows, folder, progress, interrupted=outcome.interrupted)
    document = out.document(study, outcome.rows, interrupted=outcome.interrupted)
    if not quiet:
        _conclude(document, page)
    if json:
        options.emit(document)
    _end(outcome)


def _plan(study: Study, *, as_json: bool) -> None:
    from edgepipe.journal import Journal
    from edgepipe.study import output as out
    from edgepipe.study import results

    journal = Journal()
    document = out.planned(study, [results.row(journal, cell) for cell in study.cells])
    if as_json:
        options.emit(document)
        return
    for cell in document["cells"]:
        state = "known" if cell["done"] else f"can't be: {cell['problem']}" if cell["problem"] else "to measure"
        typer.echo(f"{cell['model']:20} {cell['recipe']:34} {cell['format']:9} {cell['target']:12} {state}")
    least = document["least_measuring_seconds"] / 60
    typer.echo(
        f"{len(document['cells'])} cells, {document['to_measure']} to measure: at least {least:.0f} min of timing"
    )


def _conclude(document: dict[str, Any], page: Path) -> None:
    """What was found, for people."""
    out = console.stderr()
    family = ""
    for each in document["conclusions"]:
        if each["family"] != family:
            family = each["family"]
            out.print(f"\n{family}", markup=False, style="bold")
        out.print(f"  {each['text']}", markup=False)
    out.print(f"\nwrote {page}", markup=False)


def _end(outcome: Outcome) -> None:
    """End as the study did: interrupted, with boards that can't be reached, or done.

    Raises:
        typer.Exit: with 130 or 3.
    """
    from edgepipe.errors import LinkError
    from edgepipe.study.results import UNREACHABLE

    if outcome.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if any(row.status == UNREACHABLE for row in outcome.rows):
        raise typer.Exit(LinkError.exit_code)
