"""Start the agent on a board in one command: run it if it is there and whole, else take it from stdin first."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import Any

from edgepipe.errors import BoardError, EdgepipeError, IntegrityError
from edgepipe.link import Channel, Link
from edgepipe.link._stream import printable

_NOISE_LINES = 200
_LINE_BYTES = 64 << 10
_NOT_FOUND = 127
_NOT_RUNNABLE = 126

_CODE = Path(__file__).with_name("start.txt")


@functools.cache
def start_code() -> str:
    """The program that starts the agent on a board; what it does stands at its head."""
    return "".join(line for line in _CODE.read_text("ascii").splitlines(keepends=True) if not line.startswith("#"))


def start_agent(link: Link, agent: bytes, sha256: str, deadline: float) -> Channel:
    """Return a channel that speaks the agent's protocol.

    Raises:
        BoardError: no Python, one older than 3.8, or no place to write. LinkError, DeadlineError: no answer.
    """
    until = time.monotonic() + deadline
    channel = link.open([link.python, "-I", "-S", "-c", start_code(), link.root, sha256])
    try:
        _meet(channel, agent, sha256, until, link.describe())
    except BoardError as error:
        raise _explain(channel, link, error, until) from None
    except BaseException:
        channel.close()
        raise
    return channel


def _meet(channel: Channel, agent: bytes, sha256: str, until: float, where: str) -> None:
    for _ in range(_NOISE_LINES):
        said = _json(channel.line(until, _LINE_BYTES))
        if said.get("need") == sha256:
            channel.send(b"%d\n" % len(agent) + agent, until)
        elif said.get("run") == sha256:
            return
        elif "old" in said:
            what = f"the board's Python is {printable(str(said['old']))[:20]}, and the agent needs 3.8 or newer"
            raise BoardError(
                what, where, 'install a newer one there and name it in the target\'s file: python = "python3.9"'
            )
        elif "error" in said:
            raise BoardError(f"the agent can't be put on the board: {printable(str(said['error']))[:300]}", where)
    raise IntegrityError(
        "the board talks, but not as the agent does",
        where,
        "its login shell should print nothing when there is no terminal",
    )


def _json(line: bytes) -> dict[str, Any]:
    """Read one line; login shells that chat are no reason to fail, so what is not an object counts as empty."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _explain(channel: Channel, link: Link, error: BoardError, until: float) -> EdgepipeError:
    """Name the usual cause when the command ended before it said anything: no interpreter of that name."""
    try:
        status = channel.status(min(until, time.monotonic() + 1.0))
    except EdgepipeError:
        status = 0
    finally:
        channel.close()
    if status in (_NOT_FOUND, _NOT_RUNNABLE):
        return BoardError(
            f"the board has no {link.python}",
            link.describe(),
            "install Python 3.8 or newer there (apt-get install python3), or name it in the target's file",
        )
    return error
