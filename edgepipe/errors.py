"""Every failure edgepipe can name: what happened, where, and what to do about it.

One class per exit code of the command line. Loadable on Python 3.8 without third-party packages, since the agent on
the board raises the same errors and sends them over the wire.
"""

from __future__ import annotations

from typing import Dict


class EdgepipeError(Exception):
    """Base of all errors shown to a user as three lines: what, where, what to do.

    Args:
        what: the failure in one sentence, in the words of the user.
        where: the file, host, option or step it happened at.
        fix: the next thing to try; a command where there is one.
    """

    exit_code = 2

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def to_wire(self) -> Dict[str, str]:
        """Return the error as a JSON object for the agent's channel."""
        return {"kind": type(self).__name__, "what": self.what, "where": self.where, "fix": self.fix}


class UsageError(EdgepipeError):
    """A wrong command line, configuration file, recipe, model or target name."""

    exit_code = 2


class LinkError(EdgepipeError):
    """The board can't be reached, or the connection broke."""

    exit_code = 3


class HostKeyError(LinkError):
    """The host key is unknown or is not the pinned one."""


class BoardError(EdgepipeError):
    """The board, or the runtime on it, failed."""

    exit_code = 4


class IntegrityError(EdgepipeError):
    """Bytes are not the bytes that were promised, or a model stopped being the same model."""

    exit_code = 5


class GateError(EdgepipeError):
    """A limit the user set (accuracy, latency, power) was not met."""

    exit_code = 6


class BusyError(EdgepipeError):
    """Somebody else holds the board."""

    exit_code = 7


class DeadlineError(EdgepipeError):
    """Something took longer than it may."""

    exit_code = 8


_KINDS = {
    kind.__name__: kind
    for kind in (
        EdgepipeError,
        UsageError,
        LinkError,
        HostKeyError,
        BoardError,
        IntegrityError,
        GateError,
        BusyError,
        DeadlineError,
    )
}


def from_wire(data: Dict[str, str]) -> EdgepipeError:
    """Rebuild the error a board sent. An unknown kind becomes a BoardError."""
    kind = _KINDS.get(str(data.get("kind", "")), BoardError)
    return kind(*(str(data.get(part, ""))[:2000] for part in ("what", "where", "fix")))
