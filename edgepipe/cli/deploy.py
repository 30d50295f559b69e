"""`edgepipe deploy`: the whole chain."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from edgepipe.cli import console, options, outcomes
from edgepipe.errors import UsageError

if TYPE_CHECKING:
    from edgepipe.deploy import Request


def command(
    model: options.MaybeModel = "",
    target: options.Target = "",
    host: options.Host = "",
    recipe: options.Recipe = "",
    to: options.Formats = "",
    threads: options.Threads = 1,
    batch: options.Batch = 1,
    profile: options.Profile = "",
    max_drop: options.MaxDrop = "",
    max_latency: Annotated[str, typer.Option(help="Latency limit, e.g. p90=30ms. Exit 6 beyond it.")] = "",
    evaluation: options.Samples = "auto",
    opset: options.Opset = 0,
    dynamic: options.Dynamic = None,
    layout: options.Layout = "",
    fold: options.Fold = False,
    input_shape: options.InputShape = None,
    calibration: options.Calibration = "",
    preprocessing: options.Preprocessing = "",
    task: options.Task = "",
    synthetic: options.Synthetic = False,
    wait: options.Wait = "",
    limit_rate: options.LimitRate = "",
    dry_run: Annotated[bool, typer.Option(help="Say what would be done; touch nothing.")] = False,
    allow_fallback: options.AllowFallback = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compress, export, verify, push, measure on the board, activate and report, in one go."""
    from edgepipe import bench, config, deploy, given, schema

    defaults = config.read()
    request = deploy.Request(
        model=_needed(model or defaults.model, "model"),
        target=_needed(target or defaults.target, "target"),
        host=host,
        recipe=recipe or defaults.recipe,
        formats=options.names(to or defaults.to, "--to"),
        plan=bench.plan(profile or defaults.profile),
        options=schema.RunOptions(threads=threads, batch=batch),
        max_drop=options.fraction(max_drop or defaults.max_drop, "--max-drop"),
        max_latency=bench.latency_gate(max_latency),
        evaluation=evaluation,
        said=given.Said(options.shapes(input_shape), calibration, preprocessing, task),
        synthetic=synthetic,
        wait=options.seconds(wait, "--wait"),
    )
    request = replace(request, opset=opset or None, dynamic=options.axes(dynamic), layout=layout.upper(), fold=fold)
    request = replace(request, rate_limit=options.rate(limit_rate, "--limit-rate"), allow_fallback=allow_fallback)
    _run(request, dry_run=dry_run, as_json=json, quiet=quiet)


def _run(request: Request, *, dry_run: bool, as_json: bool, quiet: bool) -> None:
    from edgepipe import deploy

    if dry_run:
        options.show_plan(deploy.dry_run(request), as_json)
        return
    with console.open_progress(quiet=quiet) as progress:
        outcome = deploy.deploy(request, progress)
    outcomes.show(outcome, as_json=as_json, quiet=quiet)


def _needed(name: str, noun: str) -> str:
    if not name:
        raise UsageError(f"which {noun}?", "edgepipe deploy", "edgepipe deploy fashion-resnet8 --target loopback")
    return name
