"""What each verb is asked, in a frozen dataclass; see docs/agent-protocol.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import List, Optional

from edgepipe.agent.orders import Signed
from edgepipe.schema import FileRef, Manifest, Plan, RunOptions


@dataclass(frozen=True)
class Nothing:
    """No arguments."""


@dataclass(frozen=True)
class Hello:
    """Who asks: user@host, shown to others while the lock is held; and how many seconds to wait for a lock."""

    owner: str
    wait: float = 0.0


@dataclass(frozen=True)
class Status:
    """Blobs whose presence is asked for."""

    blobs: List[str] = field(default_factory=list)


@dataclass(frozen=True)
class Put:
    """A piece of a blob of ``size`` bytes: the payload, packed by ``coding`` if that is named, goes to ``offset``.

    With a ``base``, a blob that is here, the payload is instructions that make the piece of it; see `delta`.
    """

    sha256: str
    size: int
    offset: int = 0
    coding: str = ""
    base: str = ""


@dataclass(frozen=True)
class Get:
    """A blob or spooled file."""

    sha256: str


@dataclass(frozen=True)
class Verify:
    """Samples (blob of an .npz) to run through a release."""

    manifest: Manifest
    inputs: str
    threads: int = 1
    optimize: bool = True
    deadline_seconds: float = 600.0
    signed: Optional[Signed] = None


@dataclass(frozen=True)
class Activate:
    """The release to make current."""

    manifest: Manifest
    signed: Optional[Signed] = None


@dataclass(frozen=True)
class Bench:
    """What to measure: a manifest, or a release on the board (the current one if neither is given).

    ``meter`` is the board's meter to read (the best there is if empty, or "host": it reads one itself), ``rail`` which
    of its rails. A ``run`` with a name waits on the board's disk until the host says `forget`.
    """

    plan: Plan
    options: RunOptions
    manifest: Optional[Manifest] = None
    release: Optional[str] = None
    inputs: Optional[str] = None
    meter: str = ""
    rail: str = ""
    signed: Optional[Signed] = None
    run: str = ""


@dataclass(frozen=True)
class Profile:
    """A release, given as for `Bench`, whose nodes are timed over ``runs`` inferences."""

    options: RunOptions
    runs: int = 30
    manifest: Optional[Manifest] = None
    release: Optional[str] = None
    inputs: Optional[str] = None
    deadline_seconds: float = 600.0
    signed: Optional[Signed] = None


@dataclass(frozen=True)
class Run:
    """A measured run that waits here."""

    run: str


@dataclass(frozen=True)
class Forget:
    """Runs that the host has."""

    runs: List[str]


@dataclass(frozen=True)
class Which:
    """A release on the board; the current one if none is named."""

    release: Optional[str] = None


@dataclass(frozen=True)
class Collect:
    """Whether outputs not yet fetched are kept, and whether measured runs that no host has fetched are dropped."""

    keep_spool: bool = False
    drop_runs: bool = False


@dataclass(frozen=True)
class Site:
    """A runtime's packages: files by relative path, each a blob. ``note`` says what they are."""

    runtime: str
    files: List[FileRef]
    note: str = ""
    dry_run: bool = False
    signed: Optional[Signed] = None


@dataclass(frozen=True)
class Signers:
    """The allowed signers to pin, and the board's name in statements; an empty text takes them off."""

    target: str
    signers: str
    signed: Optional[Signed] = None
