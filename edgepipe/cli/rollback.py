"""`edgepipe rollback`: back to the release before, without sending anything."""

from __future__ import annotations

from edgepipe.cli import console, options


def command(
    target: options.Target,
    host: options.Host = "",
    wait: options.Wait = "",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make the previous release active again. Nothing is sent: the board still has it."""
    from edgepipe import bench, board, targets

    place = targets.load(target, host or None)
    span = options.seconds(wait, "--wait")
    with (
        console.open_progress(quiet=quiet) as progress,
        board.connect(place, bench.owner(), progress, wait=span) as client,
    ):
        release = client.rollback()
    if json:
        options.emit({"schema": "edgepipe.rollback/1", "target": target, "release": release})
    elif not quiet:
        console.stderr().print(f"active: {release.id}; before: {release.previous}", markup=False)
        if release.service:
            well = f"{release.service.unit} was restarted and is well after {release.service.seconds:.1f} s"
            console.stderr().print(well, markup=False)
