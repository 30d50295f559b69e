"""What a board answers, and how long it may take: the types `edgepipe.board` reads replies into."""

# ruff: noqa: UP045 - the codec reads Optional, as it does on the board's Python 3.8

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from edgepipe.schema import Board, Executed, OpTime


@dataclass(frozen=True)
class Times:
    """Deadlines in seconds: to start the agent, for a quick verb, without a sign of life while pushing, for real work.

    ``margin`` is added where a verb has a deadline of its own on the board, which should strike first.
    """

    start: float = 60.0
    quick: float = 30.0
    stall: float = 60.0
    work: float = 600.0
    margin: float = 60.0


@dataclass(frozen=True)
class Trust:
    """Whom the board trusts: its own name in statements, its counter, the sha256 of its allowed signers."""

    target: str
    counter: int
    signers: str


@dataclass(frozen=True)
class Hello:
    """What the agent says of itself and its board. Sizes in bytes.

    ``runs`` wait there for this host; ``codings`` are those it unpacks, the better one first.
    """

    protocol: int
    agent: str
    root: str
    board: Board
    free_bytes: int
    current: Optional[str] = None
    previous: Optional[str] = None
    trust: Optional[Trust] = None
    runs: list[str] = field(default_factory=list)
    codings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Profiled:
    """Where the board's time goes, node by node."""

    ops: list[OpTime]


@dataclass(frozen=True)
class Forgotten:
    """How many runs the board had and removed."""

    forgotten: int


@dataclass(frozen=True)
class Pinned:
    """Whom the board trusts from now on; null for nobody in particular."""

    trust: Optional[Trust] = None


@dataclass(frozen=True)
class Activation:
    """Who made a release current, when by the board's clock, and whose signature was checked (empty: nobody's).

    ``service`` says whether the board's service was well with it: empty where there is none, else pending or well.
    """

    by: str
    at: float
    signer: str = ""
    service: str = ""


@dataclass(frozen=True)
class Held:
    """A release the board holds."""

    id: str
    name: str = ""
    format: str = ""
    recipe: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class Lock:
    """Who holds the board, since when (seconds since 1970 by the board's clock)."""

    owner: str = ""
    since: Optional[float] = None
    pid: Optional[int] = None


@dataclass(frozen=True)
class Status:
    """What the board holds. ``have`` maps a sha256 asked about to the bytes of it that are there already.

    ``activations`` maps the id of a release that is or was current to who made it so.
    """

    current: Optional[str]
    previous: Optional[str]
    activated_at: Optional[float]
    releases: list[Held]
    free_bytes: int
    used_bytes: int
    lock: Optional[Lock] = None
    have: dict[str, int] = field(default_factory=dict)
    activations: dict[str, Activation] = field(default_factory=dict)


@dataclass(frozen=True)
class Verified:
    """What a release answered on the board: ``outputs`` is the sha256 of an npz blob, to be had by `arrays`."""

    outputs: str
    samples: int
    seconds: float
    precision_executed: str
    provider: str
    runtime_version: str
    executed: Executed = field(default_factory=Executed)


@dataclass(frozen=True)
class Clock:
    """The board's monotonic clock, in s."""

    monotonic: float


@dataclass(frozen=True)
class Freed:
    """What a collection removed."""

    freed_bytes: int
    releases: list[str]
    blobs: int
    runs: int


@dataclass(frozen=True)
class Site:
    """A runtime's folder on the board, made of pushed files; ``changed`` is false where it was there already."""

    files: int
    bytes: int
    changed: bool
