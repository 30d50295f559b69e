"""A board, as the host works with it: the agent's verbs as typed methods, each with a deadline and a checked reply."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable
from typing import Any, TypeVar

from edgepipe import plugins, signing
from edgepipe.agent.health import Health
from edgepipe.agent.spool import Run
from edgepipe.answers import Clock, Forgotten, Freed, Hello, Pinned, Profiled, Site, Status, Times, Verified
from edgepipe.codec import from_dict, to_dict
from edgepipe.errors import EdgepipeError, IntegrityError, LinkError
from edgepipe.link import Channel, Link, _protocol
from edgepipe.link._bootstrap import start_agent
from edgepipe.link._protocol import OnProgress
from edgepipe.link._push import Source, push
from edgepipe.progress import Progress
from edgepipe.schema import DeltaSent, FileRef, Manifest, Plan, RawRun, Release, RunOptions, digest
from edgepipe.targets import Target

T = TypeVar("T")
PROTOCOL = 1
_MAX_BLOB = 1 << 30
_MAX_RUN = 64 << 20


def connect(
    target: Target, owner: str, progress: Progress, times: Times | None = None, wait: float = 0.0
) -> BoardClient:
    """Open the link, start the agent (sent first if the board lacks it) and greet it.

    ``wait`` is how many seconds to wait where somebody else holds the board.

    Raises:
        UsageError: a target without an address. HostKeyError, LinkError, DeadlineError: no connection.
        BoardError: no Python there, or no room for the agent.
    """
    client = BoardClient(target, owner, progress, times or Times(), wait)
    try:
        client.reconnect()
    except BaseException:
        client.close()
        raise
    return client


class BoardClient:
    """One agent on one board. A context manager; after an error of the link it can `reconnect`."""

    def __init__(self, target: Target, owner: str, progress: Progress, times: Times, wait: float = 0.0) -> None:
        self.target = target
        self.times = times
        self.rate_limit = 0.0  # bytes per second that a push may send; 0 is no limit
        self.bytes_wire = 0  # of blobs, as they were sent: packed where that is quicker
        self.deltas: list[DeltaSent] = []  # of blobs that did not go whole
        self._owner, self._wait = owner, wait
        self._progress = progress
        self._link: Link | None = None
        self._channel: Channel | None = None
        self._facts: Hello | None = None
        self._signer = signing.Signer(target.name, progress)

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
        facts = self._ask("hello", {"owner": self._owner, "wait": self._wait}, Hello, self.times.quick)
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

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the host key that the board showed; empty for links without one."""
        return str(getattr(self._link, "fingerprint", ""))

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
            "signed": self._sign("release", digest(manifest)),
        }
        return self._ask("verify", args, Verified, seconds + self.times.margin, on_progress)

    def activate(self, manifest: Manifest, on_progress: OnProgress | None = None) -> Release:
        """Make a pushed release the active one, after the board has hashed it and run its self-test."""
        args = {"manifest": to_dict(manifest), "signed": self._sign("release", digest(manifest))}
        release = self._ask("activate", args, Release, self.times.work, on_progress)
        self._acted_upon(args["signed"])
        return release

    def bench(
        self,
        manifest: Manifest | str | None,
        plan: Plan,
        options: RunOptions,
        inputs: str | None = None,
        on_progress: OnProgress | None = None,
        meter: str = "",
        rail: str = "",
        run: str = "",
    ) -> RawRun:
        """Time a release: one just pushed (its manifest), one the board holds (its id), or the active one (None).

        ``meter`` is the meter the board reads meanwhile, the best it has if empty; see the agent's `power.ON_HOST`.
        A ``run`` with a name waits on the board until `forget`.
        """
        args: dict[str, Any] = {"plan": to_dict(plan), "options": to_dict(options), "inputs": inputs}
        args |= {"meter": meter, "rail": rail, "run": run}
        if isinstance(manifest, Manifest):
            args |= {"manifest": to_dict(manifest), "signed": self._sign("release", digest(manifest))}
        else:
            args["release"] = manifest
        rest = plan.idle_seconds + (plan.cool_seconds if plan.cool_to_c is not None else 0.0)
        deadline = plan.deadline_seconds + rest + self.times.margin
        result, _ = self._exchange("bench", args, deadline, limit=_protocol.LONG_LINE, on_event=on_progress)
        return self._read(RawRun, result)

    def profile(self, manifest: Manifest, runs: int, options: RunOptions, inputs: str | None = None) -> Profiled:
        """Time each node of a pushed release over ``runs`` inferences."""
        args = {"manifest": to_dict(manifest), "runs": runs, "options": to_dict(options), "inputs": inputs}
        args |= {"deadline_seconds": self.times.work, "signed": self._sign("release", digest(manifest))}
        deadline = self.times.work + self.times.margin
        result, _ = self._exchange("profile", args, deadline, limit=_protocol.LONG_LINE)
        return self._read(Profiled, result)

    def run(self, name: str) -> Run:
        """Fetch a measured run that waits on the board."""
        _, data = self._exchange("run", {"run": name}, self.times.work, payload=_MAX_RUN)
        try:
            return from_dict(Run, json.loads(data))
        except (ValueError, RecursionError):
            raise IntegrityError("a run kept on the board is damaged", f"{self.where}, run {name}") from None

    def forget(self, runs: list[str]) -> int:
        """Tell the board that these runs are safe here; returns how many of them it still had."""
        return self._ask("forget", {"runs": runs}, Forgotten, self.times.quick).forgotten

    def clock(self) -> float:
        """Ask for the board's monotonic clock, in s."""
        return self._ask("clock", {}, Clock, self.times.quick).monotonic

    def rollback(self) -> Release:
        """Make the previous release the active one; nothing is sent."""
        return self._ask("rollback", {}, Release, self.times.work)

    def gc(self, *, keep_spool: bool = False, drop_runs: bool = False) -> Freed:
        """Remove all but the active release, the one before, and the runtimes."""
        return self._ask("gc", {"keep_spool": keep_spool, "drop_runs": drop_runs}, Freed, self.times.work)

    def doctor(self, on_progress: OnProgress | None = None) -> Health:
        """Have the board looked at closely: every Python, each runtime imported, clocks, meters."""
        return self._ask("doctor", {}, Health, self.times.work, on_progress)

    def site(self, runtime: str, files: list[FileRef], note: str = "", dry_run: bool = False) -> Site:
        """Make a runtime's folder out of pushed files, in place of the one before; or only say if it would change."""
        args: dict[str, Any] = {"runtime": runtime, "files": [to_dict(file) for file in files], "note": note}
        signed = None if dry_run else self._sign("site", digest(args))
        site = self._ask("site", {**args, "dry_run": dry_run, "signed": signed}, Site, self.times.work)
        self._acted_upon(signed)
        return site

    def signers(self, allowed: str) -> Hello:
        """Pin the text of an allowed-signers file on the board, under this target's name; empty takes it off.

        Raises:
            IntegrityError: not such a file, or others are pinned already and did not sign this.
            BoardError: the board has no ssh-keygen.
        """
        args: dict[str, Any] = {"target": self.target.name, "signers": allowed}
        args["signed"] = self._sign("signers", digest(args))
        self._ask("signers", args, Pinned, self.times.work)
        return self.refresh()

    def _sign(self, verb: str, subject: str) -> dict[str, Any] | None:
        """A signed order for a board that asks for one, None for others."""
        trust = self.hello().trust
        if trust is None:
            return None
        return to_dict(self._signer.order(verb, subject, trust.counter))  # type: ignore[no-any-return]

    def _acted_upon(self, signed: dict[str, Any] | None) -> None:
        """The board's counter has moved up to this order's."""
        facts = self.hello()
        if signed and facts.trust:
            counter = max(facts.trust.counter, signed["statement"]["counter"])
            self._facts = dataclasses.replace(facts, trust=dataclasses.replace(facts.trust, counter=counter))

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
        until = time.monotonic() + deadline + self._wait
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
