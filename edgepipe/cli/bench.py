"""`edgepipe bench`: measure a file, or a release the board already holds."""

from __future__ import annotations

from typing import Annotated

import typer

from edgepipe.cli import console, options, outcomes


def command(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="FILE|RELEASE", help="A model file, or a release id on the board; current is the active one."
        ),
    ],
    target: options.Target,
    host: options.Host = "",
    threads: options.Threads = 1,
    batch: options.Batch = 1,
    profile: options.Profile = "quick",
    wait: options.Wait = "",
    max_latency: Annotated[str, typer.Option(help="Latency limit, e.g. p90=30ms. Exit 6 beyond it.")] = "",
    allow_fallback: options.AllowFallback = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure on the board without activating anything."""
    from edgepipe import bench
    from edgepipe import deploy as verb
    from edgepipe.schema import RunOptions

    run = RunOptions(threads=threads, batch=batch)
    span = options.seconds(wait, "--wait")
    with console.open_progress(quiet=quiet) as progress:
        limit = bench.latency_gate(max_latency)
        plan = bench.plan(profile)
        outcome = verb.bench_only(
            subject, target, host, plan, run, limit, progress, span, allow_fallback=allow_fallback
        )
    outcomes.show(outcome, as_json=json, quiet=quiet)
