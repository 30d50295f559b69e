"""Runs one job in a child process that may crash, hang or shout: each of these is a typed error, never an accident.

The agent uses it on the board, and the host uses it to run exported files.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Sequence

from edgepipe.agent import probe
from edgepipe.agent.text import clean
from edgepipe.errors import BoardError, DeadlineError, EdgepipeError, LinkError, from_wire

Progress = Callable[[str, float], None]

_TAIL_BYTES = 8192
_RESULT_BYTES = 64 << 20
_POLL_SECONDS = 0.2
_PROGRESS_SECONDS = 0.5
_LAST_WORDS_SECONDS = 0.5

_CAUSES = {
    signal.SIGILL: (
        "the wheel uses instructions this CPU does not have",
        "pin an older wheel of it for this target, or choose another runtime",
    ),
    signal.SIGSEGV: ("the runtime crashed", "try another format or recipe, or run it with its optimiser off"),
    signal.SIGBUS: (
        "a memory fault: a truncated model file, or memory that failed",
        "deploy again; check disk and memory",
    ),
    signal.SIGABRT: ("the runtime gave up on an internal check", "try another format or recipe"),
    signal.SIGFPE: ("the runtime divided by zero", "try another format or recipe"),
    signal.SIGKILL: ("most likely out of memory", "use a smaller batch or model, or free memory on the board"),
}


class CancelledError(LinkError):
    """The job was stopped since nobody waits for it any more."""


class KilledError(BoardError):
    """A signal ended the child: ``signal`` is its name, e.g. ``SIGILL``."""

    def __init__(self, signal_name: str, what: str, where: str, fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.signal = signal_name


def command() -> List[str]:
    """The command that starts this same agent again: the zipapp it runs from, or the installed package."""
    root = _package_root()
    start = [root] if os.path.isfile(root) else ["-m", "edgepipe.agent"]
    return [sys.executable or "python3", *start]


def start(verb: str) -> "subprocess.Popen[bytes]":
    """Another process of the agent, in a session of its own, that is told on its stdin what to do."""
    return subprocess.Popen(
        [*command(), verb],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=environment(),
    )


def go_on(cancelled: Callable[[], bool]) -> None:
    """Stop where nobody waits any more.

    Raises:
        CancelledError: ``cancelled`` is true.
    """
    if cancelled():
        raise CancelledError("stopped: the host went away", "agent", "run the command again")


def _package_root() -> str:
    """The zipapp, or the folder that holds the package ``edgepipe``."""
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def _never() -> bool:
    return False


def _silent(phase: str, seconds: float) -> None:
    """Say nothing of a phase and the seconds since it began."""


def run(
    job: Dict[str, Any],
    *,
    python: Optional[Sequence[str]] = None,
    site: Optional[str] = None,
    deadline: float = 600.0,
    cancelled: Callable[[], bool] = _never,
    on_progress: Progress = _silent,
) -> Dict[str, Any]:
    """Run ``job`` (see child.py) in a child process and return its result.

    ``python`` starts the agent, `command` by default. ``site`` is a folder put in front of the child's sys.path.
    ``deadline`` is in seconds. ``job["scratch"]`` must be a folder of the caller's; the child works there.
    ``on_progress`` gets the child's phase and the seconds since it began, at 2 Hz.

    Raises:
        BoardError: the child crashed or its runtime failed; the text names runtime, version and CPU.
        DeadlineError: it took longer than ``deadline``; it is dead now.
        CancelledError: ``cancelled`` became true; the child is dead now.
    """
    child = _Child(dict(job, site=site, parent=os.getpid()), python or command())
    try:
        return child.wait(deadline, cancelled, on_progress)
    finally:
        child.kill()


class _Child:
    """The process, its two streams and what came out of them."""

    def __init__(self, job: Dict[str, Any], python: Sequence[str]) -> None:
        self.job = job
        self.phase, self.tail, self.answer = "start", b"", b""
        self.result: Optional[Dict[str, Any]] = None
        path = os.path.join(job["scratch"], "job.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(job, file)
        result, result_child = os.pipe()
        errors, errors_child = os.pipe()
        try:
            with open(path, "rb") as stdin:
                self.process = subprocess.Popen(
                    [*python, "child", str(result_child)],
                    stdin=stdin,
                    stdout=errors_child,
                    stderr=errors_child,
                    pass_fds=(result_child,),
                    start_new_session=True,
                    cwd=job["scratch"],
                    env=environment(),
                )
        except OSError:
            os.close(result)
            os.close(errors)
            raise
        finally:
            os.close(result_child)
            os.close(errors_child)
        self.streams = {result: self._take_answer, errors: self._take_tail}
        self.result_stream = result
        for handle in self.streams:
            os.set_blocking(handle, False)

    def wait(self, deadline: float, cancelled: Callable[[], bool], on_progress: Progress) -> Dict[str, Any]:
        """Drain both streams until the result, the end, the deadline or a cancellation."""
        began = phase_began = told = time.monotonic()
        phase = self.phase
        with selectors.DefaultSelector() as selector:
            for handle in self.streams:
                selector.register(handle, selectors.EVENT_READ)
            while self.result is None:
                for key, _ in selector.select(_POLL_SECONDS):
                    if not self.streams[key.fd](key.fd):
                        selector.unregister(key.fd)
                        if key.fd == self.result_stream:
                            raise self._crash(selector)
                now = time.monotonic()
                go_on(cancelled)
                if now - began > deadline:
                    raise self._late(deadline)
                if phase != self.phase:
                    phase, phase_began, told = self.phase, now, 0.0
                if now - told >= _PROGRESS_SECONDS:
                    told = now
                    on_progress(phase, now - phase_began)
        if not self.result.get("ok"):
            raise self._failure(self.result.get("error") or {})
        return dict(self.result["result"])

    def _take_tail(self, handle: int) -> bool:
        """Read what the runtime printed, keep the end. False at the end of the stream."""
        data = _read(handle)
        if data:
            self.tail = (self.tail + data)[-_TAIL_BYTES:]
        return data != b""

    def _take_answer(self, handle: int) -> bool:
        """Read lines of the private channel: phases, then one result. False at the end of the stream."""
        data = _read(handle)
        if data:
            self.answer += data
            if len(self.answer) > _RESULT_BYTES:
                raise BoardError("the child's result is too long", self._where(), "measure for a shorter time")
            *lines, self.answer = self.answer.split(b"\n")
            for line in lines:
                message = json.loads(line.decode("utf-8", "replace"))
                if "phase" in message:
                    self.phase = str(message["phase"])
                else:
                    self.result = message
        return data != b""

    def _crash(self, selector: selectors.BaseSelector) -> EdgepipeError:
        """The error of a child that ended without a result."""
        try:
            code = self.process.wait(_LAST_WORDS_SECONDS)
        except subprocess.TimeoutExpired:
            code = 0
        end = time.monotonic() + _LAST_WORDS_SECONDS
        while selector.get_map() and time.monotonic() < end:
            ready = selector.select(0.05)
            if not ready or not self._take_tail(ready[0][0].fd):
                break
        said = f": {clean(self._said(), 300, tail=True)}" if self.tail else ""
        if code >= 0:
            what = f"{self._runtime()} ended during {self.phase} without a result (exit code {code}){said}"
            return BoardError(what, self._where(), "run doctor: the runtime on the board may be broken")
        try:
            kind = signal.Signals(-code)
        except ValueError:
            what = f"{self._runtime()} was killed by signal {-code} during {self.phase}{said}"
            return KilledError(str(-code), what, self._where())
        cause, fix = _CAUSES.get(kind, ("stopped from outside", "run it again"))
        cpu = probe.cpu_name(self.job.get("sysfs_root", "/"))
        what = f"{self._runtime()} was killed by {kind.name} during {self.phase} on {cpu}: {cause}{said}"
        return KilledError(kind.name, what, self._where(), fix)

    def _failure(self, error: Dict[str, str]) -> EdgepipeError:
        """The error the child itself sent, with where it happened."""
        failure = from_wire(error)
        failure.where = failure.where or self._where()
        return failure

    def _late(self, deadline: float) -> DeadlineError:
        return DeadlineError(
            f"{self._runtime()} was still at {self.phase} after {deadline:.0f} s and was stopped",
            self._where(),
            "allow more time, or use a smaller model, batch or profile",
        )

    def _runtime(self) -> str:
        """The runtime by the name and version of its package, as a user would pin it."""
        name = str(self.job.get("runtime", "runtime"))
        found = probe.runtime(name, self.job.get("site"))
        return f"{found.package or name} {found.version}" if found.version else name

    def _said(self) -> str:
        return self.tail.decode("utf-8", "replace")

    def _where(self) -> str:
        model = os.path.basename(str(self.job.get("model", "")))
        return f"{model} on {os.uname().nodename}" if model else os.uname().nodename

    def kill(self) -> None:
        """End the child and all it started, whatever they do; then close the streams."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        for handle in self.streams:
            os.close(handle)
        self.streams = {}


def _read(handle: int) -> Optional[bytes]:
    """What a stream holds now: bytes, b"" at its end, None if there is nothing yet."""
    try:
        return os.read(handle, 1 << 16)
    except BlockingIOError:
        return None


def environment() -> Dict[str, str]:
    """The child's environment; it finds the package where this process found it."""
    environment = dict(os.environ)
    root = _package_root()
    if not os.path.isfile(root):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    return environment
