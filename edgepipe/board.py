"""A board, as the host works with it: the agent's verbs as typed methods, each with a deadline and a checked reply."""

# ruff: noqa: UP045 - the codec reads Optional, as it does on the board's Python 3.8

from __future__ import annotations

import dataclasses
import hashlib
import io
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Optional, TypeVar

from edgepipe import plugins
from edgepipe.agent.health import Health
from edgepipe.codec import from_dict, to_dict
from edgepipe.errors import EdgepipeError, IntegrityError, LinkError
from edgepipe.link import Channel, Link, _protocol
from edgepipe.link._bootstrap import start_agent
from edgepipe.link._protocol import OnProgress
from edgepipe.link._push import Source, push
from edgepipe.progress import Progress
from edgepipe.schema import Board, Executed, FileRef, Manifest, Plan, RawRun, Release, RunOptions
from edgepipe.targets import Target

T = TypeVar("T")
PROTOCOL = 1
_MAX_BLOB = 1 << 30


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
class Hello:
    """What the agent says of itself and its board. Sizes in bytes."""

    protocol: int
    agent: str
    root: str
    board: Board
    free_bytes: int
    current: Optional[str] = None
    previous: Optional[str] = None


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
    """What the board holds. ``have`` maps a sha256 asked about to the bytes of it that are there already."""

    current: Optional[str]
    previous: Optional[str]
    activated_at: Optional[float]
    releases: list[Held]
    free_bytes: int
    used_bytes: int
    lock: Optional[Lock] = None
    have: dict[str, int] = field(default_factory=dict)


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


@dataclass(frozen=True)
class Site:
    """A runtime's folder on the board, made of pushed files; ``changed`` is false where it was there already."""

    files: int
    bytes: int
    changed: bool


def connect(target: Target, owner: str, progress: Progress, times: Times | None = None) -> BoardClient:
    """Open the link, start the agent (sent first if the board lacks it) and greet it.

    Raises:
        UsageError: a target without an address. HostKeyError, LinkError, DeadlineError: no connection.
        BoardError: no Python there, or no room for the agent.
    """
    client = BoardClient(target, owner, progress, times or Times())
    try:
        client.reconnect()
    except BaseException:
        client.close()
        raise
    return client


class BoardClient:
    """One agent on one board. A context manager; after an error of the link it can `reconnect`."""

    def __init__(self, target: Target, owner: str, progress: Progress, times: Times) -> None:
        self.target = target
        self.times = times
        self._owner = owner
        self._progress = progress
        self._link: Link | None = None
        self._channel: Channel | None = None
        self._facts: Hello | None = None

    def __enter__(self) -> BoardClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the agent and close the link. Never raises."""
        channel, self._channel = self._channel, None
        link, self._link = self._link, None
        if channel:
            channel.close()
        if link:
            link.close()

    def reconnect(self) -> None:
        """Connect anew, whatever state the link is in."""
        from edgepipe.pack import agent_zipapp

        self.close()
        endpoint = self.target.endpoint()
        self._link = plugins.load("link", self.target.link).open_link(endpoint)
        content, sha256 = agent_zipapp()
        self._channel = start_agent(self._link, content, sha256, self.times.start)
        self._facts = self._greet(sha256)

    def _greet(self, sha256: str) -> Hello:
        facts = self._ask("hello", {"owner": self._owner}, Hello, self.times.quick)
        if facts.protocol != PROTOCOL or facts.agent not in ("", sha256):
            self.close()
            raise IntegrityError("another agent than the one started answers", self.where, "try again")
        board = dataclasses.replace(facts.board, target=self.target.name, name=facts.board.name or self.target.name)
        return dataclasses.replace(facts, board=board)

    def refresh(self) -> Hello:
        """Ask for the facts again, after something on the board changed."""
        self._facts = self._greet(self.hello().agent)
        return self._facts

    @property
    def where(self) -> str:
        """Where the board is, for people."""
        return f"{self.target.name} ({self._link.describe()})" if self._link else self.target.name

    def hello(self) -> Hello:
        """Return what the agent said when it was greeted."""
        if self._facts is None:
            raise LinkError("not connected", self.where)
        return self._facts

    def status(self, blobs: list[str] | None = None) -> Status:
        """Ask what the board holds, and how much of each of these blobs."""
        return self._ask("status", {"blobs": blobs or []}, Status, self.times.stall)

    def push(self, files: list[Source]) -> int:
        """Send what the board lacks of these (path or bytes, sha256 or FileRef) pairs; returns the bytes it took.

        A link that breaks is opened again, up to three times without progress in between, and only the rest is sent.

        Raises:
            IntegrityError: a file is not what its hash says. BoardError: e.g. the board's disk is full.
            LinkError, DeadlineError: the board can't be reached any more, or takes nothing.
        """
        return push(self, files, self._progress)

    def get(self, sha256: str, limit: int = _MAX_BLOB) -> bytes:
        """Fetch a blob of at most ``limit`` bytes, and check its hash."""
        _, data = self._exchange("get", {"sha256": sha256}, self.times.work, payload=limit)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise IntegrityError("the board sent other bytes than were asked for", self.where, "try again")
        return data

    def arrays(self, sha256: str) -> list[Any]:
        """Fetch an npz blob with the keys "0", "1", ... as a list of numpy arrays, in that order."""
        import numpy as np

        data = self.get(sha256)
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as packed:
                if sum(entry.file_size for entry in packed.infolist()) > _MAX_BLOB:
                    raise IntegrityError("the board's arrays are too large", self.where)
            with np.load(io.BytesIO(data), allow_pickle=False) as found:
                return [found[str(index)] for index in range(len(found.files))]
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise IntegrityError(f"the board's arrays can't be read: {str(error)[:100]}", self.where) from None

    def manifest(self, release: str | None = None) -> Manifest:
        """Fetch the manifest of a release the board holds (None: the active one)."""
        result, _ = self._exchange("manifest", {"release": release}, self.times.quick)
        return self._read(Manifest, result.get("manifest"))

    def verify(
        self,
        manifest: Manifest,
        inputs: str,
        options: RunOptions | None = None,
        on_progress: OnProgress | None = None,
        deadline: float | None = None,
    ) -> Verified:
        """Run the npz blob ``inputs`` through a pushed release on the board, in ``deadline`` seconds."""
        options = options or RunOptions()
        seconds = deadline or self.times.work
        args = {
            "manifest": to_dict(manifest),
            "inputs": inputs,
            "threads": options.threads,
            "optimize": options.optimize,
            "deadline_seconds": seconds,
        }
        return self._ask("verify", args, Verified, seconds + self.times.margin, on_progress)

    def activate(self, manifest: Manifest, on_progress: OnProgress | None = None) -> Release:
        """Make a pushed release the active one, after the board has hashed it and run its self-test."""
        return self._ask("activate", {"manifest": to_dict(manifest)}, Release, self.times.work, on_progress)

    def bench(
        self,
        manifest: Manifest | str | None,
        plan: Plan,
        options: RunOptions,
        inputs: str | None = None,
        on_progress: OnProgress | None = None,
        meter: str = "",
        rail: str = "",
    ) -> RawRun:
        """Time a release: one just pushed (its manifest), one the board holds (its id), or the active one (None).

        ``meter`` is the meter the board reads meanwhile, the best it has if empty; see the agent's `power.ON_HOST`.
        """
        args: dict[str, Any] = {"plan": to_dict(plan), "options": to_dict(options), "inputs": inputs}
        args |= {"meter": meter, "rail": rail}
        if isinstance(manifest, Manifest):
            args["manifest"] = to_dict(manifest)
        else:
            args["release"] = manifest
        deadline = plan.deadline_seconds + plan.idle_seconds + self.times.margin
        result, _ = self._exchange("bench", args, deadline, limit=_protocol.LONG_LINE, on_event=on_progress)
        return self._read(RawRun, result)

    def clock(self) -> float:
        """Ask for the board's monotonic clock, in s."""
        return self._ask("clock", {}, Clock, self.times.quick).monotonic

    def rollback(self) -> Release:
        """Make the previous release the active one; nothing is sent."""
        return self._ask("rollback", {}, Release, self.times.work)

    def gc(self, keep_spool: bool = False) -> Freed:
        """Remove all but the active release, the one before, and the runtimes."""
        return self._ask("gc", {"keep_spool": keep_spool}, Freed, self.times.work)

    def doctor(self, on_progress: OnProgress | None = None) -> Health:
        """Have the board looked at closely: every Python, each runtime imported, clocks, meters."""
        return self._ask("doctor", {}, Health, self.times.work, on_progress)

    def site(self, runtime: str, files: list[FileRef], note: str = "", dry_run: bool = False) -> Site:
        """Make a runtime's folder out of pushed files, in place of the one before; or only say if it would change."""
        args = {"runtime": runtime, "files": [to_dict(file) for file in files], "note": note, "dry_run": dry_run}
        return self._ask("site", args, Site, self.times.work)

    def channel(self) -> Channel:
        """The open channel, for the modules that speak the protocol themselves.

        Raises:
            LinkError: there is none.
        """
        if self._channel is None:
            raise LinkError("the connection is closed", self.where, "connect again")
        return self._channel

    def _ask(
        self, verb: str, args: dict[str, Any], kind: type[T], deadline: float, on_event: OnProgress | None = None
    ) -> T:
        result, _ = self._exchange(verb, args, deadline, on_event=on_event)
        return self._read(kind, result)

    def _exchange(
        self,
        verb: str,
        args: dict[str, Any],
        deadline: float,
        *,
        limit: int = _protocol.LINE,
        payload: int = 0,
        on_event: OnProgress | None = None,
    ) -> tuple[dict[str, Any], bytes]:
        until = time.monotonic() + deadline
        return self.guarded(lambda channel: self._talk(channel, verb, args, until, limit, payload, on_event))

    def _talk(
        self,
        channel: Channel,
        verb: str,
        args: dict[str, Any],
        until: float,
        limit: int,
        payload: int,
        on_event: OnProgress | None,
    ) -> tuple[dict[str, Any], bytes]:
        channel.send(_protocol.request(verb, args), until)
        return _protocol.reply(channel, until, self.where, limit=limit, payload=payload, on_event=on_event)

    def guarded(self, talk: Callable[[Channel], T]) -> T:
        """Run a talk with the agent; if it ends in the middle of a message, the channel is of no more use."""
        channel = self.channel()
        try:
            return talk(channel)
        except _protocol.BoardSaid as said:
            raise said.error from None
        except BaseException:
            self.close()
            raise

    def _read(self, kind: type[T], data: Any) -> T:
        try:
            return from_dict(kind, data)
        except EdgepipeError as error:
            self.close()
            raise IntegrityError(
                f"the board's answer is not as agreed: {error.what} ({error.where})", self.where
            ) from None
