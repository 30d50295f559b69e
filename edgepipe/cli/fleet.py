"""`edgepipe fleet`: many models x recipes x boards."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgepipe.cli import _fleet_analysis, _fleet_engine, _rollout, console, options, outcomes
from edgepipe.errors import UsageError

if TYPE_CHECKING:
    from edgepipe.fleet import Outcome
    from edgepipe.fleet.lane import Limits
    from edgepipe.fleet.plan import Matrix, Request

group = typer.Typer(help="Many boards: measure models x recipes on all of them, or roll a release out in waves.")

Inventory = Annotated[
    str,
    typer.Option("--inventory", "-i", help="An Ansible inventory; else $EDGEPIPE_INVENTORY or ./inventory.yml."),
]
Parallel = Annotated[int, typer.Option("--parallel", min=1, help="Boards at a time.")]
Transfers = Annotated[int, typer.Option("--transfers", min=1, help="Transfers at a time on the uplink of each site.")]
MaybeRun = Annotated[
    str, typer.Argument(metavar="[RUN]", help="A run's id or the beginning of it, or rollout; else the latest run.")
]


group.command()(_fleet_engine.gateway)


@group.command()
def run(
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL...", help="Models; or --matrix FILE.")] = None,
    inventory: Inventory = "",
    limit: Annotated[str, typer.Option("--limit", "-l", help="Boards, as Ansible's: 'pi*:&lab:!pi-07'.")] = "",
    matrix: Annotated[str, typer.Option("--matrix", help="A TOML file: models, recipes, formats, rounds, ...")] = "",
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="Recipes, comma separated.")] = "",
    to: options.Formats = "",
    rounds: Annotated[int, typer.Option("--rounds", min=0, help="How often each candidate is measured, in turns.")] = 0,
    profile: options.Profile = "",
    threads: options.Threads = 1,
    batch: options.Batch = 1,
    max_drop: options.MaxDrop = "",
    evaluation: options.Samples = "auto",
    synthetic: options.Synthetic = False,
    parallel: Parallel = 32,
    transfers: Transfers = 4,
    wait: options.Wait = "",
    engine: _fleet_engine.Engine = "thread",
    scheduler: _fleet_engine.Scheduler = "",
    tls_ca: _fleet_engine.Ca = "",
    tls_cert: _fleet_engine.Cert = "",
    tls_key: _fleet_engine.Key = "",
    dry_run: Annotated[bool, typer.Option(help="Show the plan, its bytes and time; ask no board.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure every model x recipe x format on every board. A bad board is given up with its reason."""
    from edgepipe import bench, fleet, schema
    from edgepipe.fleet import plan

    wanted = _matrix(matrix, models or [], recipe, to, rounds, limit, profile)
    request = plan.Request(
        _members(inventory, wanted.limit),
        wanted.cells(),
        bench.plan(wanted.profile),
        schema.RunOptions(threads=threads, batch=batch),
        wanted.rounds,
        evaluation,
        options.fraction(max_drop, "--max-drop"),
        synthetic,
    )
    if dry_run:
        _show_plan(request, parallel, as_json=json)
        return
    chosen = _fleet_engine.choice(engine, scheduler, tls_ca, tls_cert, tls_key)
    limits = _limits(parallel, transfers, wait)
    _go(lambda p, w: fleet.run(request, p, w, limits, chosen), as_json=json, quiet=quiet)


@group.command()
def rollout(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model.")],
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="One recipe.")] = "none",
    to: Annotated[str, typer.Option("--to", help="One format: onnx, tflite, openvino.")] = "onnx",
    inventory: Inventory = "",
    limit: Annotated[str, typer.Option("--limit", "-l", help="Boards, as Ansible's: 'pi*:&lab:!pi-07'.")] = "all",
    waves: _rollout.Waves = "1,5%,25%,all",
    max_drop: options.MaxDrop = "",
    max_slowdown: _rollout.Slower = "10%",
    max_energy: _rollout.Energy = "",
    tolerate: _rollout.Tolerate = 0,
    quorum: _rollout.Quorum = "50%",
    soak: _rollout.Soak = "",
    roll_back: _rollout.RollBack = "wave",
    profile: options.Profile = "quick",
    threads: options.Threads = 1,
    evaluation: options.Samples = "auto",
    synthetic: options.Synthetic = False,
    parallel: Parallel = 32,
    transfers: Transfers = 4,
    wait: options.Wait = "",
    engine: _fleet_engine.Engine = "thread",
    scheduler: _fleet_engine.Scheduler = "",
    tls_ca: _fleet_engine.Ca = "",
    tls_cert: _fleet_engine.Cert = "",
    tls_key: _fleet_engine.Key = "",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Bring a release to boards in waves; a wave that fails is stopped and brought back by itself."""
    from edgepipe import bench, schema
    from edgepipe.fleet import rollout as staged
    from edgepipe.fleet.rollout import waves as staging

    members = _members(inventory, limit)
    request = staged.Request(
        members,
        _rollout.candidate(model, recipe, to),
        staging.counts(waves, len(members)),
        _rollout.gates(max_drop, max_slowdown, max_energy, tolerate, quorum),
        staging.checked(roll_back),
        options.seconds(soak, "--soak"),
        bench.plan(profile),
        schema.RunOptions(threads=threads),
        evaluation,
        synthetic,
    )
    chosen = _fleet_engine.choice(engine, scheduler, tls_ca, tls_cert, tls_key)
    limits = _limits(parallel, transfers, wait)
    _rollout.go(lambda p: staged.begin(request, p, limits, chosen), as_json=json, quiet=quiet)


@group.command()
def pause(run: _rollout.Rollout = "") -> None:
    """Pause a roll-out: boards that were begun are finished; `fleet resume` goes on."""
    from edgepipe.fleet import rollout as staged

    typer.echo(f"{staged.pause(run)}: no further board is begun; edgepipe fleet resume goes on", err=True)


@group.command()
def abort(
    run: _rollout.Rollout = "",
    roll_back: _rollout.RollBack = "wave",
    parallel: Parallel = 32,
    engine: _fleet_engine.Engine = "thread",
    scheduler: _fleet_engine.Scheduler = "",
    tls_ca: _fleet_engine.Ca = "",
    tls_cert: _fleet_engine.Cert = "",
    tls_key: _fleet_engine.Key = "",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """End a roll-out, and bring its boards back: those of the wave at hand, all of them or none."""
    from edgepipe.fleet import rollout as staged

    chosen = _fleet_engine.choice(engine, scheduler, tls_ca, tls_cert, tls_key)
    limits = _limits(parallel, 4, "")
    _rollout.go(lambda p: staged.abort(run, roll_back, p, limits, chosen), as_json=json, quiet=quiet)


@group.command()
def resume(
    run: MaybeRun = "",
    parallel: Parallel = 32,
    transfers: Transfers = 4,
    wait: options.Wait = "",
    engine: _fleet_engine.Engine = "thread",
    scheduler: _fleet_engine.Scheduler = "",
    tls_ca: _fleet_engine.Ca = "",
    tls_cert: _fleet_engine.Cert = "",
    tls_key: _fleet_engine.Key = "",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Go on with a run: nothing that was recorded is measured again, and boards that were given up are asked again."""
    from edgepipe import fleet
    from edgepipe.fleet import rollout as staged

    chosen = _fleet_engine.choice(engine, scheduler, tls_ca, tls_cert, tls_key)
    limits = _limits(parallel, transfers, wait)
    if run.startswith(staged.PREFIX):
        _rollout.go(lambda p: staged.resume(run, p, limits, chosen), as_json=json, quiet=quiet)
        return
    _go(lambda p, w: fleet.resume(run, p, w, limits, chosen), as_json=json, quiet=quiet)


@group.command()
def status(run: MaybeRun = "", json: options.Json = False) -> None:
    """Show how far a run is, board by board."""
    from edgepipe import fleet
    from edgepipe.fleet import rollout as staged

    of_waves = run.startswith(staged.PREFIX)
    document = staged.document(*staged.find(run)) if of_waves else fleet.document(*fleet.find(run))
    if json:
        options.emit(document)
    elif of_waves:
        _rollout.table(document)
    else:
        _table(document)


@group.command()
def report(
    run: MaybeRun = "",
    html: Annotated[str, typer.Option("--html", help="Write one self-contained page with plots here.")] = "",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Report the results of a run: each trial, how boards of a kind differ, and which of them stand out."""
    from edgepipe import fleet
    from edgepipe.fleet.analysis import section, table, variation

    name, request = fleet.find(run)
    found = fleet.reports(name, request)
    boards = variation.of(table.rows(name, request, found))
    first = section.section(boards)
    outcomes.report(found, html, as_json=json, quiet=quiet, more={"variation": boards}, first=first)
    if not json and not quiet and not html:
        _fleet_analysis.show_variation(boards)


@group.command()
def export(
    run: MaybeRun = "",
    output: options.Output = "fleet",
    quiet: options.Quiet = False,
) -> None:
    """Write a run's trials, boards and spreads as CSV and, with the extra `study`, as Parquet."""
    _fleet_analysis.export(run, Path(output), quiet=quiet)


@group.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="RUN1", help="A run's id or the beginning of it.")],
    second: Annotated[str, typer.Argument(metavar="RUN2", help="The run to hold against it.")],
    max_slowdown: options.MaxSlowdown = "2%",
    force: Annotated[bool, typer.Option(help="Compare runs that were measured in different ways.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare two runs trial by trial, with intervals and p-values adjusted for all tests; exit 6 on a regression."""
    limit = options.fraction(max_slowdown, "--max-slowdown") or 0.0
    _fleet_analysis.compare(first, second, limit, force=force, as_json=json, quiet=quiet)


def _matrix(file: str, models: list[str], recipe: str, to: str, rounds: int, limit: str, profile: str) -> Matrix:
    """What the file says, with the flags in place of what they name."""
    from edgepipe.fleet import plan

    if not file and not models:
        raise UsageError("which models?", "edgepipe fleet run", "edgepipe fleet run fashion-mbv2 --recipe none,int8")
    found = plan.Matrix(models)
    if file:
        try:
            found = plan.matrix(Path(file).read_text(encoding="utf-8"), file)
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"can't read the matrix: {error}", file, "check the name") from None
    flags: dict[str, Any] = {"models": models, "rounds": rounds, "limit": limit, "profile": profile}
    flags |= {"recipes": options.names(recipe, "--recipe") if recipe else ()}
    flags |= {"formats": options.names(to, "--to") if to else ()}
    given: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in flags.items() if value
    }
    return dataclasses.replace(found, **given)


def _members(file: str, limit: str) -> list[Any]:
    from edgepipe import inventory
    from edgepipe.fleet import plan

    path = inventory.find(file)
    if path is None:
        fix = "write inventory.yml, or name one: --inventory FILE (ansible/inventory.example.yml shows how)"
        raise UsageError("no inventory", "edgepipe fleet run", fix)
    return [plan.member(host) for host in inventory.load(path).select(limit)]


def _limits(parallel: int, transfers: int, wait: str) -> Limits:
    from edgepipe.fleet.breaker import Patience
    from edgepipe.fleet.lane import Limits

    patience = Patience(wait=options.seconds(wait, "--wait")) if wait else Patience()
    return Limits(parallel, transfers, patience)


def _go(act: Any, *, as_json: bool, quiet: bool) -> None:
    from edgepipe.cli import _fleet_table
    from edgepipe.cli import show as show_error

    with _fleet_table.open_table(quiet=quiet) as (progress, watch):
        outcome: Outcome = act(progress, watch)
    if not quiet:
        _table(outcome.document, err=True)
    if as_json:
        options.emit(outcome.document)
    if outcome.error:
        show_error(outcome.error)
        raise typer.Exit(outcome.error.exit_code)


def _table(document: dict[str, Any], *, err: bool = False) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from edgepipe.report.rows import plain

    out = console.stderr() if err else console.stdout()
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold dim")
    for name in ("board", "site", "state", "done", "results", ""):
        table.add_column(name, overflow="fold")
    for board in document["boards"]:
        results = ", ".join(f"{count} {name}" for name, count in sorted(board["statuses"].items()))
        cells = (board["name"], board["site"], board["state"], f"{board['done']}/{board['trials']}", results)
        table.add_row(*(Text(plain(cell)) for cell in cells), Text(plain(board["reason"]), "red"))
    out.print(table)
    out.print(f"run {document['run']}: {document['done']} of {document['trials']} trials are recorded", markup=False)


def _show_plan(request: Request, parallel: int, *, as_json: bool) -> None:
    from edgepipe import model
    from edgepipe.fleet import plan
    from edgepipe.journal import Journal

    plan.check(request.members)
    models = {name: model.load(name) for name in dict.fromkeys(cell.model for cell in request.cells)}
    seen = {
        (r.model.sha256, r.recipe, r.artifact.format): r.artifact.bytes for r in Journal().all() if r.artifact.bytes
    }
    sizes = {cell: seen.get((models[cell.model].facts.sha256, cell.recipe, cell.format)) for cell in request.cells}
    found = plan.dry_run(request, sizes, parallel)
    if as_json:
        options.emit(found)
        return
    size, seconds = found["bytes"], found["seconds"]
    typer.echo(f"boards   {len(found['boards'])}: {', '.join(board['name'] for board in found['boards'])}")
    typer.echo(f"sites    {', '.join(f'{name} ({count})' for name, count in found['sites'].items())}")
    for cell in found["cells"]:
        typer.echo(f"measure  {cell['model']} {cell['recipe']} {cell['format']}, {console.size(cell['bytes'])}")
    typer.echo(f"trials   {found['trials']} in {found['rounds']} rounds")
    known = f"{console.size(size['per_board'])} to each board, {console.size(size['in_all'])} in all"
    typer.echo(f"send     {'not known: ' + size['reason'] if size['reason'] else known}")
    typer.echo(f"time     at least {seconds['in_all']:g} s, {found['parallel']} boards at a time")
