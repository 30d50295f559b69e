"""A board that is not there: it speaks the agent's protocol from memory, so that fleets can be tested by the thousand.

It takes blobs and forgets them, runs nothing, and times an empty call. Every record of it says that it is emulated.
Where the endpoint's root is an absolute path, measured runs wait there as on a board's disk; else in this process.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

from edgepipe.agent.spool import Run
from edgepipe.codec import canonical, from_dict, to_dict
from edgepipe.errors import BoardError, DeadlineError, EdgepipeError, UsageError
from edgepipe.link import Endpoint, Result
from edgepipe.schema import Board, Manifest, Plan, ProcessSamples, RawRun, RunOptions, Runtime, Window

EMULATED = "null link: there is no board"
_RUNTIMES = ("null", "onnxruntime", "tflite", "openvino")


class Memory:
    """What one such board holds: bytes of each blob, measured runs, releases that were activated."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.have: dict[str, int] = {}
        self.spool: dict[str, bytes] = {}
        self.links = folder / "links" if folder else None
        self.active: list[str] = self.links.read_text().split() if self.links and self.links.exists() else []

    def move(self, active: list[str]) -> None:
        """Make these the active release and the one before; whole or not at all, as on a board's disk."""
        self.active = active
        if self.links:
            self.links.parent.mkdir(parents=True, exist_ok=True)
            staging = self.links.with_suffix(".new")
            staging.write_text(" ".join(active))
            staging.replace(self.links)

    def runs(self) -> list[str]:
        """Names of the runs that wait."""
        return sorted(path.name for path in self.folder.glob("trial-*")) if self.folder else sorted(self.spool)

    def keep(self, run: Run) -> None:
        """Keep a run until it is forgotten."""
        if self.folder is None:
            self.spool[run.id] = canonical(run)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        staging = self.folder / f".{run.id}"
        staging.write_bytes(canonical(run))
        staging.replace(self.folder / run.id)

    def read(self, name: str) -> bytes:
        """A run that waits."""
        try:
            return (self.folder / name).read_bytes() if self.folder else self.spool[name]
        except (KeyError, OSError):
            raise UsageError("no such run", name) from None

    def forget(self, names: list[str]) -> int:
        """Remove runs; returns how many were there."""
        there = [name for name in names if name in self.runs()]
        for name in there:
            if self.folder:
                (self.folder / name).unlink(missing_ok=True)
            self.spool.pop(name, None)
        return len(there)


_boards: defaultdict[tuple[str, str], list[Memory]] = defaultdict(list)


class NullChannel:
    """The agent of such a board. Subclasses may misbehave: see `answer`."""

    def __init__(self, name: str, memory: Memory, sha256: str) -> None:
        self.name, self.memory, self._agent = name, memory, sha256
        self._in = bytearray()
        self._out: deque[bytes] = deque([json.dumps({"run": sha256}).encode()])
        self._owner = ""

    def send(self, data: bytes, until: float) -> None:  # noqa: ARG002 - never waits
        """Take requests; whole ones are answered at once, in memory."""
        self._in += data
        while (end := self._in.find(b"\n")) >= 0:
            request = json.loads(self._in[:end])
            size = request.get("size", 0)
            if len(self._in) < end + 1 + size:
                return
            payload = bytes(self._in[end + 1 : end + 1 + size])
            del self._in[: end + 1 + size]
            try:
                result, more = self.answer(request["verb"], request["args"], payload)
                body = {"ok": True, "result": result, **({"size": len(more)} if more else {})}
                self._out += [json.dumps(body).encode(), *([more] if more else [])]
            except EdgepipeError as error:
                self._out.append(json.dumps({"ok": False, "error": error.to_wire()}).encode())

    def answer(self, verb: str, args: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        """Do one verb; returns its result, and bytes that follow.

        Raises:
            BoardError: a verb that needs a real board.
        """
        act = getattr(self, f"_{verb}", None)
        if act is None:
            raise BoardError(f"there is no board to {verb} on", self.name, "choose a real target")
        result = act(args, payload)
        return result if isinstance(result, tuple) else (result, b"")

    def _hello(self, args: dict[str, Any], _: bytes) -> dict[str, Any]:
        self._owner = args["owner"]
        runtimes = [Runtime(name, "0") for name in _RUNTIMES]
        board = Board("null", "none", [], 1, None, "none", "none", "3.8", emulated=EMULATED, runtimes=runtimes)
        active = [*self.memory.active, None, None]
        facts = {"protocol": 1, "agent": self._agent, "root": "/", "board": to_dict(board), "free_bytes": 1 << 40}
        return {**facts, "current": active[0], "previous": active[1], "runs": self.memory.runs()}

    def _status(self, args: dict[str, Any], _: bytes) -> dict[str, Any]:
        active = [*self.memory.active, None, None]
        have = {sha256: self.memory.have.get(sha256, 0) for sha256 in args["blobs"]}
        found: dict[str, Any] = {
            "activated_at": None,
            "releases": [],
            "free_bytes": 1 << 40,
            "used_bytes": 0,
            "lock": None,
        }
        return {**found, "current": active[0], "previous": active[1], "have": have}

    def _put(self, args: dict[str, Any], payload: bytes) -> dict[str, Any]:
        have = args["offset"] + len(payload)
        self.memory.have[args["sha256"]] = have
        return {"have": have, "complete": have == args["size"]}

    def _bench(self, args: dict[str, Any], _: bytes) -> dict[str, Any]:
        plan, options = from_dict(Plan, args["plan"]), from_dict(RunOptions, args["options"])
        began = time.monotonic()
        time.sleep(plan.min_seconds)
        samples = [_empty_call() for _ in range(plan.min_samples)]
        seconds = time.monotonic() - began
        process = ProcessSamples(1, 1, 0, True, None, samples, options.batch, Window(0.0, seconds))
        raw = RawRun("null", "0", "none", "null", [process], [], None, began=began)
        if args["run"]:
            manifest = from_dict(Manifest, args["manifest"])
            self.memory.keep(Run(args["run"], self._owner, time.time(), manifest, plan, options, raw))
        return to_dict(raw)  # type: ignore[no-any-return]

    def _run(self, args: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        return {}, self.memory.read(args["run"])

    def _forget(self, args: dict[str, Any], _: bytes) -> dict[str, Any]:
        return {"forgotten": self.memory.forget(args["runs"])}

    def _clock(self, _args: dict[str, Any], _: bytes) -> dict[str, Any]:
        return {"monotonic": time.monotonic()}

    def _activate(self, args: dict[str, Any], _: bytes) -> dict[str, Any]:
        release = from_dict(Manifest, args["manifest"]).id
        changed = release not in self.memory.active[:1]
        if changed:
            self.memory.move([release, *self.memory.active[:1]])
        return self._release(changed=changed)

    def _rollback(self, _args: dict[str, Any], _: bytes) -> dict[str, Any]:
        if len(self.memory.active) < 2:  # noqa: PLR2004 - current and previous
            raise BoardError("there is no release before this one", self.name)
        self.memory.move(self.memory.active[::-1])
        return self._release(changed=True)

    def _release(self, *, changed: bool) -> dict[str, Any]:
        active = [*self.memory.active, None]
        return {"id": active[0], "previous": active[1], "activated_at": time.time(), "changed": changed}

    def finish(self, last: bytes = b"") -> None:
        """Nothing is left to do."""

    def line(self, until: float, limit: int) -> bytes:  # noqa: ARG002 - replies are ours
        """The next line of a reply."""
        if not self._out:
            raise DeadlineError("no answer", self.name)
        return self._out.popleft()

    def read(self, count: int, until: float) -> bytes:
        """The bytes after a reply."""
        return self.line(until, count)

    def rest(self, until: float, limit: int) -> bytes:  # noqa: ARG002 - see `line`
        """All that is left."""
        return b""

    def status(self, until: float) -> int:  # noqa: ARG002 - it never ends of itself
        """The exit status."""
        return 0

    def stderr_tail(self) -> str:
        """It has no stderr."""
        return ""

    def close(self) -> None:
        """Nothing is open."""


class NullLink:
    """A link to such a board."""

    channel = NullChannel

    def __init__(self, endpoint: Endpoint) -> None:
        self.python, self.root = endpoint.python, endpoint.root
        self.name = endpoint.target
        folder = Path(endpoint.root) / endpoint.target if endpoint.root.startswith("/") else None
        held = _boards[endpoint.root, endpoint.target]
        if not held:
            held.append(Memory(folder))
        self.memory = held[0]
        self.fingerprint = "null:" + hashlib.sha256(f"{endpoint.root} {endpoint.target}".encode()).hexdigest()[:16]

    def open(self, argv: list[str]) -> NullChannel:
        """Start the agent; ``argv`` ends with its hash."""
        return self.channel(self.name, self.memory, argv[-1])

    def run(self, argv: list[str], stdin: bytes = b"", deadline: float = 30.0) -> Result:  # noqa: ARG002
        """Run nothing."""
        return Result(0, b"", b"")

    def describe(self) -> str:
        """Say where this leads."""
        return "nowhere"

    def close(self) -> None:
        """Nothing is open."""


def open_link(endpoint: Endpoint) -> NullLink:
    """Open the link."""
    return NullLink(endpoint)


def _empty_call() -> int:
    began = time.perf_counter_ns()
    return max(time.perf_counter_ns() - began, 1)
