"""The search of `edgepipe compress --search`: its flags, and how it ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepipe.cli import EXIT_INTERRUPTED, console, options

if TYPE_CHECKING:
    from edgepipe.deploy import Request

Budget = Annotated[
    str, typer.Option("--budget", help="What the result may cost, e.g. p90<=30ms,drop<=1%,bytes<=500k. Exit 6 beyond.")
]
Trials = Annotated[int, typer.Option("--trials", min=1, help="Candidates to look at, those known already included.")]
Minutes = Annotated[
    float, typer.Option("--minutes", min=0.0, help="Begin no new candidate after so long; 0 is no limit.")
]
Profile = Annotated[str, typer.Option("--profile", help="How finalists are measured: quick, standard or mlperf.")]


def how(
    model: str,
    target: str,
    host: str,
    to: str,
    profile: str,
    threads: int,
    batch: int,
    evaluation: str,
    input_shape: list[str] | None,
    synthetic: bool,
) -> Request:
    """The flags that say what is deployed where, as a deployment has them."""
    from edgepipe import bench, deploy, given
    from edgepipe.schema import RunOptions

    return deploy.Request(
        model=model,
        target=target,
        host=host,
        formats=options.names(to, "--to"),
        plan=bench.plan(profile),
        options=RunOptions(threads=threads, batch=batch),
        evaluation=evaluation,
        said=given.Said(options.shapes(input_shape)),
        synthetic=synthetic,
    )


def run(request: Request, budget: str, folder: str, trials: int, minutes: float, *, as_json: bool, quiet: bool) -> None:
    """Search, show the front, and end with the error that stopped it, if one did.

    Raises:
        typer.Exit: with the exit code of that error, or of an interruption.
    """
    from edgepipe import budget as budgets
    from edgepipe import search
    from edgepipe.cli import show as show_error
    from edgepipe.report import front

    wanted = search.Request(request, budgets.parse(budget), Path(folder), trials, minutes or None)
    with console.open_progress(quiet=quiet) as progress:
        outcome = search.run(wanted, progress)
    if not quiet:
        front.show(outcome.document, console.stderr())
    if as_json:
        options.emit(outcome.document)
    if outcome.error:
        show_error(outcome.error)
        raise typer.Exit(outcome.error.exit_code)
    if outcome.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
