"""How a board is reached: one file per kind of link (`local`, `loopback`, `ssh`), each with `open_link(endpoint)`.

A command is a list of arguments, never a line of shell; `quote` is the one place where it becomes a string. Moments
(``until``) are values of ``time.monotonic()``; spans (``deadline``) are seconds.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Protocol

from edgepipe.errors import LinkError, UsageError

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\Z")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9._-]{1,15})?\Z")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,63}\$?\Z")
_MAX_PORT = 65535


class Refused(LinkError):  # noqa: N818 - reads as what happened
    """The server answers but won't let us in: trying again is in vain."""


@dataclass(frozen=True)
class Address:
    """Where a board is. ``user`` and ``port`` are empty and 0 where ``~/.ssh/config`` or the defaults decide."""

    host: str
    user: str = ""
    port: int = 0

    def __str__(self) -> str:
        """Render as ``[user@]host[:port]``, the form that `parse_address` reads."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")


def parse_address(text: str) -> Address:
    """Read ``[user@]name[:port]``; an IPv6 address with a port stands in brackets.

    Raises:
        UsageError: an empty or hostile name, user or port.
    """
    user, _, rest = text.strip().rpartition("@")
    host, port = _split_port(rest)
    valid = (_IPV6 if ":" in host else _HOST).match(host)
    if not valid or (user and not _USER.match(user)) or (text.strip().startswith("@")):
        raise _bad_address(text)
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) <= _MAX_PORT):
        raise _bad_address(text)
    return Address(host, user, int(port or 0))


def _split_port(rest: str) -> tuple[str, str]:
    if rest.startswith("["):
        host, closed, port = rest[1:].partition("]")
        if closed and ":" in host and (not port or (port.startswith(":") and len(port) > 1)):
            return host, port[1:]
        return "", ""
    if rest.count(":") > 1:
        return rest, ""
    host, colon, port = rest.partition(":")
    return ("", "") if colon and not port else (host, port)


def _bad_address(text: str) -> UsageError:
    return UsageError(
        f"not an address: {text[:80]!r}",
        where="--host",
        fix="write [user@]name[:port], e.g. pi@raspberrypi.local or pi@[fe80::1]:22",
    )


@dataclass(frozen=True)
class Endpoint:
    """What a link needs of a target: its name (pins go by it), address, Python, the agent's folder, a key file.

    Without ``identity`` the keys are those that ``~/.ssh/config`` and the ssh-agent offer.
    """

    target: str
    address: Address | None = None
    python: str = "python3"
    root: str = "~/.edgepipe"
    identity: str = ""


@dataclass(frozen=True)
class Result:
    """What a finished command left. ``status`` is its exit status; negative where a signal ended it."""

    status: int
    stdout: bytes
    stderr: bytes


class Channel(Protocol):
    """A running command: bytes in, bytes out. Its stderr is drained all the time, so it can never block the board."""

    def send(self, data: bytes, until: float) -> None:
        """Queue bytes for the command's stdin; waits while more than a few MiB are unsent."""

    def finish(self, last: bytes = b"") -> None:
        """Close stdin once all that was queued, and ``last`` after it, has been sent."""

    def line(self, until: float, limit: int) -> bytes:
        """Read one line without its newline; longer than ``limit`` bytes is an `IntegrityError`."""

    def read(self, count: int, until: float) -> bytes:
        """Read exactly ``count`` bytes."""

    def rest(self, until: float, limit: int) -> bytes:
        """Read all that is left."""

    def status(self, until: float) -> int:
        """Wait for the exit status; negative where a signal ended the command."""

    def stderr_tail(self) -> str:
        """Return the end of stderr, safe to show."""

    def close(self) -> None:
        """End the command and free the channel. Never raises, never blocks for more than about a second."""


class Link(Protocol):
    """An open connection to a board. ``python`` and ``root`` are the board's interpreter and the agent's folder."""

    python: str
    root: str

    def open(self, argv: list[str]) -> Channel:
        """Start a command."""

    def run(self, argv: list[str], stdin: bytes = b"", deadline: float = 30.0) -> Result:
        """Run a command to its end; output is capped at 8 MiB."""

    def describe(self) -> str:
        """Say where this leads, for people."""

    def close(self) -> None:
        """Close the connection and all that runs over it."""


def quote(argv: list[str]) -> str:
    """Turn arguments into the one string a remote shell gets, each of them quoted.

    Raises:
        UsageError: no command, or an argument that holds a NUL.
    """
    if not argv or not argv[0] or any("\0" in part for part in argv):
        raise UsageError("not a command", where="link", fix="give a program and arguments without NUL characters")
    return shlex.join(argv)
