"""`edgepipe gc`: free space on the board, or in the work cache of this host."""

from __future__ import annotations

from typing import Annotated

import typer

from edgepipe.cli import console, options


def command(
    target: options.Target = "",
    host: options.Host = "",
    cache: Annotated[bool, typer.Option("--cache", help="The work cache of this host instead of a board.")] = False,
    limit: Annotated[str, typer.Option("--limit", help="Bytes of the cache to keep, e.g. 5G or 0.")] = "",
    runs: Annotated[bool, typer.Option("--runs", help="Also drop measured runs no host has fetched yet.")] = False,
    wait: options.Wait = "",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Remove all from the board but the active release, the one before it, the runtimes, and runs not fetched yet."""
    from edgepipe.errors import UsageError

    if cache == bool(target) or (limit and not cache) or (runs and cache):
        fix = "edgepipe gc --target T, or edgepipe gc --cache --limit 5G"
        raise UsageError("a board, or the cache of this host?", "edgepipe gc", fix)
    if cache:
        _cache(limit, as_json=json, quiet=quiet)
    else:
        _board(target, host, wait, runs=runs, as_json=json, quiet=quiet)


def _cache(limit: str, *, as_json: bool, quiet: bool) -> None:
    from dataclasses import replace

    from edgepipe import cache
    from edgepipe.link import _sent

    most = cache.size(limit, "--limit") if limit else cache.limit()
    result = cache.Cache().trim(most)
    result = replace(result, freed_bytes=result.freed_bytes + _sent.trim(max(0, most - result.left_bytes)))
    if as_json:
        options.emit({"schema": "edgepipe.gc/1", "target": None, **options.plain(result)})
    elif not quiet:
        left = f"{result.entries} entries removed, {console.size(result.left_bytes)} left"
        console.stderr().print(f"{console.size(result.freed_bytes)} freed, {left}")


def _board(target: str, host: str, wait: str, *, runs: bool, as_json: bool, quiet: bool) -> None:
    from edgepipe import bench, board, targets

    place = targets.load(target, host or None)
    span = options.seconds(wait, "--wait")
    with (
        console.open_progress(quiet=quiet) as progress,
        board.connect(place, bench.owner(), progress, wait=span) as client,
    ):
        result = client.gc(drop_runs=runs)
    if as_json:
        options.emit({"schema": "edgepipe.gc/1", "target": target, **options.plain(result)})
    elif not quiet:
        removed = f"{len(result.releases)} releases and {result.blobs} blobs removed"
        removed += f", {result.runs} runs dropped" if runs else ""
        console.stderr().print(f"{console.size(result.freed_bytes)} freed, {removed}")
