"""`edgepipe status`: what is active on the board."""

from __future__ import annotations

import datetime

from edgepipe.cli import console, options


def command(
    target: options.Target, host: options.Host = "", json: options.Json = False, quiet: options.Quiet = False
) -> None:
    """Show the active release, the one before it, everything else the board holds, its space and its lock."""
    from edgepipe import bench, board, targets

    place = targets.load(target, host or None)
    with console.open_progress(quiet=quiet) as progress, board.connect(place, bench.owner(), progress) as client:
        state = client.status([])
    if json:
        options.emit({"schema": "edgepipe.status/1", "target": target, **options.plain(state)})
        return
    screen = console.stdout()
    for release in state.releases:
        mark = "active  " if release.id == state.current else "previous" if release.id == state.previous else "        "
        screen.print(
            f"{mark}  {release.id}  {release.name}  {release.recipe}  {console.size(release.bytes)}", markup=False
        )
        if event := state.activations.get(release.id):
            signed = f"signed by {event.signer}" if event.signer else "NOT SIGNED"
            well = {"well": ", service well", "pending": ", service NOT PROVEN"}.get(event.service, "")
            screen.print(f"          {_moment(event.at)} by {event.by}, {signed}{well}", markup=False)
    if not state.releases:
        screen.print("no release yet")
    if state.activated_at:
        screen.print(f"active since {_moment(state.activated_at)} by the board's clock")
    screen.print(f"{console.size(state.used_bytes)} used, {console.size(state.free_bytes)} free on the board")
    if state.lock:
        since = f" since {_moment(state.lock.since)}" if state.lock.since else ""
        screen.print(f"in use by {state.lock.owner}{since} (pid {state.lock.pid})", markup=False)


def _moment(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S}"
