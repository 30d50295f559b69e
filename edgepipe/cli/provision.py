"""`edgepipe provision`: give a board the runtimes it needs, each in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepipe.cli import console, options


def command(
    target: options.Target,
    host: options.Host = "",
    runtime: Annotated[
        str, typer.Option("--runtime", help="Runtimes, comma separated; all that fit the board if left out.")
    ] = "",
    check: Annotated[
        bool, typer.Option("--check", help="Say what would be done, and change nothing on the board.")
    ] = False,
    wheelhouse: Annotated[
        str, typer.Option("--wheelhouse", help="Take wheels from this folder alone: for a host without a network.")
    ] = "",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Resolve the runtimes' wheels on this host for the board's exact Python and C library, and push them."""
    from edgepipe import bench, board, provision, targets

    wanted = list(options.names(runtime, "--runtime")) if runtime else None
    order = provision.Order(check, Path(wheelhouse).expanduser() if wheelhouse else None)
    place = targets.load(target, host or None)
    with console.open_progress(quiet=quiet) as progress, board.connect(place, bench.owner(), progress) as client:
        result = provision.provision(place, client, wanted, progress, order)
    if json:
        options.emit({"schema": "edgepipe.provision/1", "target": target, "check": check, "runtimes": result})
