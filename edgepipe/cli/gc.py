"""`edgepipe gc`: free space on the board."""

from __future__ import annotations

from edgepipe.cli import console, options


def command(
    target: options.Target,
    host: options.Host = "",
    wait: options.Wait = "",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Remove everything from the board but the active release, the one before it, and the runtimes."""
    from edgepipe import bench, board, targets

    place = targets.load(target, host or None)
    span = options.seconds(wait, "--wait")
    with (
        console.open_progress(quiet=quiet) as progress,
        board.connect(place, bench.owner(), progress, wait=span) as client,
    ):
        result = client.gc()
    if json:
        options.emit({"schema": "edgepipe.gc/1", "target": target, **options.plain(result)})
    elif not quiet:
        removed = f"{len(result.releases)} releases and {result.blobs} blobs removed"
        console.stderr().print(f"{console.size(result.freed_bytes)} freed, {removed}")
