"""`edgepipe bench`: measure a file, or a release the board already holds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from edgepipe.cli import console, options, outcomes

if TYPE_CHECKING:
    from edgepipe.schema import Plan, RunOptions

_Subject = Annotated[
    str,
    typer.Argument(metavar="FILE|RELEASE", help="A model file, a release id on the board, current, or MODEL@RECIPE."),
]
_Threads = Annotated[str, typer.Option(help="CPU threads of the runtime; several are measured in turn, e.g. 1,2,4.")]
_Batch = Annotated[str, typer.Option(help="Samples in one inference; several are measured in turn, e.g. 1,4.")]
_Cpus = Annotated[str, typer.Option(help="Cores to keep the timed process to, e.g. 0,1.")]
_Governor = Annotated[str, typer.Option(help="Set this cpufreq governor for the run; the old one is put back.")]
_CoolTo = Annotated[str, typer.Option(help="Let the board cool to so many degrees C before each run.")]
_CoolTimeout = Annotated[str, typer.Option(help="How long it may take to cool, e.g. 10m.")]
_ProfileOps = Annotated[bool, typer.Option(help="Time every node of the graph too, in a run of its own.")]
_Compare = Annotated[
    str, typer.Option(metavar="B", help="Measure this too, in turns: FILE, RELEASE, MODEL@RECIPE or @RECIPE.")
]
_Sustain = Annotated[str, typer.Option(help="Run so long without a pause, e.g. 10m: cold, burst and sustained level.")]
_Scenario = Annotated[str, typer.Option(help="Ask as MLPerf does: single-stream, multi-stream, offline or server.")]
_Rate = Annotated[float, typer.Option(min=0.0, help="Queries that arrive in a second, for --scenario server.")]


def command(
    subject: _Subject,
    target: options.Target,
    host: options.Host = "",
    threads: _Threads = "1",
    batch: _Batch = "1",
    profile: options.Profile = "quick",
    cpus: _Cpus = "",
    governor: _Governor = "",
    cool_to: _CoolTo = "",
    cool_timeout: _CoolTimeout = "10m",
    sustain: _Sustain = "",
    scenario: _Scenario = "",
    rate: _Rate = 0.0,
    wait: options.Wait = "",
    profile_ops: _ProfileOps = False,
    compare: _Compare = "",
    max_slowdown: options.MaxSlowdown = "2%",
    to: Annotated[str, typer.Option(help="Format of a MODEL@RECIPE.")] = "onnx",
    max_latency: Annotated[str, typer.Option(help="Latency limit, e.g. p90=30ms. Exit 6 beyond it.")] = "",
    allow_fallback: options.AllowFallback = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure on the board without activating anything."""
    from edgepipe import bench, deploy, scenarios, sweep

    runs = _runs(threads, batch, cpus)
    plan = _plan(profile, sustain, governor, cool_to, cool_timeout)
    if profile == "mlperf" and not (compare or sustain):
        scenario = scenario or "single-stream"
    plans = [scenarios.plan(plan, scenario, rate, each) for each in runs]
    request = deploy.Request(
        subject,
        target,
        host,
        plan=max(plans, key=lambda one: one.min_samples),
        formats=options.names(to, "--to"),
        max_latency=bench.latency_gate(max_latency),
        wait=options.seconds(wait, "--wait"),
        allow_fallback=allow_fallback,
        profile_ops=profile_ops,
    )
    found, limit = None, options.fraction(max_slowdown, "--max-slowdown") or 0.0
    with console.open_progress(quiet=quiet) as progress:
        if compare:
            outcome, found = sweep.in_turns(replace(request, options=runs[0]), compare, limit, progress)
        else:
            outcome = sweep.run(request, runs, progress)
    outcomes.show(outcome, as_json=json, quiet=quiet, comparison=found)


def _runs(threads: str, batch: str, cpus: str) -> list[RunOptions]:
    """Each combination that is to be measured."""
    from edgepipe.schema import RunOptions

    cores = options.counts(cpus, "--cpus", least=0) if cpus else []
    sizes = options.counts(batch, "--batch")
    return [RunOptions(each, size, cpus=cores) for each in options.counts(threads, "--threads") for size in sizes]


def _plan(profile: str, sustain: str, governor: str, cool_to: str, cool_timeout: str) -> Plan:
    """How long to measure, and in what state of the board."""
    from edgepipe import bench

    return replace(
        bench.sustained(bench.plan(profile), options.seconds(sustain, "--sustain")),
        governor=governor,
        cool_to_c=options.degrees(cool_to, "--cool-to"),
        cool_seconds=options.seconds(cool_timeout, "--cool-timeout"),
    )
