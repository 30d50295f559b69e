"""What is signed: an order to a board, in the one form that host and agent both build."""

from __future__ import annotations

from dataclasses import dataclass

from edgepipe.schema import digest

SIGNING_NAMESPACE = "edgepipe"


@dataclass(frozen=True)
class Statement:
    """What a signature stands for: this verb, on this subject (a sha256), on this target, as the counter-th one there.

    A board never takes a statement whose counter is below one it has acted upon.
    """

    verb: str
    subject: str
    target: str
    counter: int
    schema: str = "edgepipe.statement/1"

    @property
    def digest(self) -> str:
        """The sha256 of the canonical JSON, which are the bytes that are signed."""
        return digest(self)


@dataclass(frozen=True)
class Signed:
    """A statement and its SSHSIG signature, armoured as ``ssh-keygen -Y sign`` makes it."""

    statement: Statement
    signature: str
