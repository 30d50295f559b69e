"""`edgepipe serve`: a read-only page of fleets and results, live."""

from __future__ import annotations

import os
import secrets
from typing import Annotated

import typer

from edgepipe.cli import console, options

VARIABLE = "EDGEPIPE_TOKEN"


def command(
    host: Annotated[
        str, typer.Option(help="Address to listen on. Any but a loopback one needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8765,
    quiet: options.Quiet = False,
) -> None:
    """Show the fleet, its boards, trade-offs and history in a browser; /metrics for Prometheus. It changes nothing.

    The token for addresses that others can reach is that of $EDGEPIPE_TOKEN, or one made up and shown at the start.
    """
    from edgepipe.serve.server import Server, is_loopback
    from edgepipe.serve.state import State

    token = os.environ.get(VARIABLE, "")
    made = "" if token or is_loopback(host) else secrets.token_urlsafe(24)
    state = State()
    state.refresh()
    server = Server(host, port, state, token or made)
    if not quiet:
        console.stderr().print(f"{server.url}{f'?token={made}' if made else ''}", markup=False)
        console.stderr().print("read-only; Ctrl-C ends it", markup=False)
    try:
        server.serve_forever()
    finally:
        server.server_close()
