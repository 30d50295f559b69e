"""Run one function in a child process: a crash, a hang or the chatter of a converter becomes one typed error.

Converters of model formats are large native programs. They print freely, they may crash, and some never come back.
So each heavy step is a function that takes and returns JSON values and runs as ``python -m edgepipe.isolate``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgepipe import paths
from edgepipe.errors import BoardError, DeadlineError, EdgepipeError, IntegrityError, from_wire

DEADLINE = 1800.0
READING = 300.0
_LEAST_MEMORY = 8 << 30  # TensorFlow and torch reserve some gigabytes of addresses without using them
_FORBIDDEN = {
    "pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "socket.connect", "socket.bind",
    "os.remove", "os.symlink", "os.link", "os.chmod", "os.chown",
}  # fmt: skip
_POLL = 0.1
_LOGS_KEPT = 20
_TAIL_LINES = 4
_PROGRESS = "progress.json"
_progress: Path | None = None  # where `report` writes; only set in a child
_reported = 0.0
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")

# Converters send usage statistics and look for updates unless told otherwise; a build tool must not.
_QUIET = {
    "CI": "true",
    "NNCF_CI": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "PYTHONWARNINGS": "ignore",
}


def call(
    target: str,
    kwargs: dict[str, Any],
    *,
    deadline: float = DEADLINE,
    tick: Callable[..., None] | None = None,
    sealed: bool = False,
) -> Any:
    """Call ``target`` ("module:function") with JSON-able ``kwargs`` in a child process and return its result.

    Paths become strings. ``tick`` is called about ten times a second: with the seconds passed, or with what the
    function last told `report`. The child lives in a process group of its own; it is killed when the deadline passes,
    when this process is interrupted, or when this process dies. ``sealed`` is for reading files that come from
    anywhere: see `seal`.

    Raises:
        DeadlineError: it took longer than ``deadline`` seconds.
        BoardError: it crashed, or raised something that is not one of edgepipe's own errors.
        EdgepipeError: whatever error of edgepipe's the function raised.
    """
    base = paths.cache_home() / "jobs"
    base.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="job-", dir=base))
    try:
        return _run(folder, target, kwargs, deadline, tick, sealed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read(target: str, path: Path) -> Any:
    """Call ``target`` with ``path`` in a sealed child: for files that come from anywhere.

    Raises:
        IntegrityError: its reader crashed, ran out of memory or never came back: whatever it is, it is no sound model.
        EdgepipeError: whatever error of edgepipe's the function raised.
    """
    fix = "get the file again, or export it again"
    try:
        return call(target, {"path": str(path.absolute())}, deadline=READING, sealed=True)
    except BoardError as error:
        raise IntegrityError(f"the file can't be read: {error.what}", str(path), f"{fix}; {error.fix}") from None
    except DeadlineError as error:
        raise IntegrityError(f"the file can't be read: {error.what}", str(path), fix) from None


def _run(
    folder: Path,
    target: str,
    kwargs: dict[str, Any],
    deadline: float,
    tick: Callable[..., None] | None,
    sealed: bool,
) -> Any:
    job = {"target": target, "kwargs": kwargs, "result": folder / "result.json", "sealed": sealed}
    log = folder / "log"
    with log.open("wb") as sink:
        child = subprocess.Popen(
            [sys.executable, "-m", "edgepipe.isolate"],
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_environment(),
        )
    try:
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(json.dumps(job, default=str).encode() + b"\n")
            child.stdin.flush()  # kept open: its end tells the child that we are gone
        if not _wait(child, deadline, tick, folder / _PROGRESS):
            raise DeadlineError(
                f"{_title(target)} did not end within {deadline:.0f} s",
                f"{target} (log: {_keep(log, target)})",
                f"the log ends: {_tail(log)}",
            )
    finally:
        _kill(child)
    return _result(folder, target, child.returncode)


def _wait(child: subprocess.Popen[bytes], deadline: float, tick: Callable[..., None] | None, told: Path) -> bool:
    """Wait for the child; false if the deadline passed first."""
    start = time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_POLL)
            return True
        passed = time.monotonic() - start
        if tick:
            tick(*(_told(told) or (passed,)))
        if passed > deadline:
            return False


def report(done: float, total: float, text: str = "") -> None:
    """Tell the parent how far the work is: for the function that runs in the child, as often as it likes."""
    global _reported  # noqa: PLW0603  one child, one function, one clock
    now = time.monotonic()
    if _progress is None or (now - _reported < _POLL and done < total):
        return
    _reported = now
    partial = _progress.with_suffix(".part")
    partial.write_text(json.dumps([done, total, text]), encoding="utf-8")
    partial.replace(_progress)


def _told(path: Path) -> tuple[float, float, str] | None:
    try:
        done, total, text = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return done, total, text


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the child's process group and collect it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdin:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()


def _result(folder: Path, target: str, code: int) -> Any:
    log = folder / "log"
    try:
        answer = json.loads((folder / "result.json").read_bytes())
    except (OSError, ValueError):
        answer = None
    if isinstance(answer, dict) and "value" in answer:
        return answer["value"]
    if isinstance(answer, dict) and "error" in answer:
        raise from_wire(answer["error"])
    kept = _keep(log, target)
    reason = str(answer["crash"]) if isinstance(answer, dict) else _death(code)
    raise BoardError(f"{_title(target)} failed: {reason}", f"{target} (log: {kept})", f"the log ends: {_tail(log)}")


def _death(code: int) -> str:
    if code >= 0:
        return f"its process ended with code {code} and no result"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"its process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _title(target: str) -> str:
    """``edgepipe.formats.onnx.export:convert`` -> ``onnx export``."""
    parts = target.partition(":")[0].split(".")
    return " ".join(parts[2:]) if parts[:2] == ["edgepipe", "formats"] else target


def _tail(log: Path) -> str:
    """The last lines of a log without control characters, on one line of at most 400 characters."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return "(no log)"
    lines = [line.strip() for line in _CONTROL.sub("", text).splitlines() if line.strip()]
    return " | ".join(lines[-_TAIL_LINES:])[-400:] or "(nothing was printed)"


def _keep(log: Path, target: str) -> Path:
    """Copy the log of a failure to the cache's ``logs`` folder, which holds the last few."""
    logs = paths.cache_home() / "logs"
    name = re.sub(r"[^A-Za-z0-9]+", "-", target).strip("-")
    kept = logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{name}.log"
    with contextlib.suppress(OSError):
        logs.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, kept)
        for old in sorted(logs.glob("*.log"))[:-_LOGS_KEPT]:
            old.unlink(missing_ok=True)
    return kept


def _environment() -> dict[str, str]:
    package = str(Path(__file__).resolve().parent.parent)
    inherited = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    return {**os.environ, **_QUIET, "PYTHONPATH": os.pathsep.join([package, *inherited])}


def _watch(stream: Any) -> None:
    """Die with the parent: its end of our standard input closes when it goes."""
    while stream.read(4096):
        pass
    os.killpg(0, signal.SIGKILL)


def seal() -> None:
    """Bound this process's memory, and forbid Python to unpickle, start programs, connect or write elsewhere.

    A child that reads a model file needs none of that. Native code is bounded by memory and the deadline alone.
    """
    import resource

    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (max(memory // 2, _LEAST_MEMORY),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    own = tuple(os.path.realpath(folder) + os.sep for folder in (tempfile.gettempdir(), paths.cache_home(), "/dev"))

    def guard(event: str, args: tuple[Any, ...]) -> None:
        if event in _FORBIDDEN:
            raise PermissionError(f"a model file must not {event}")
        if event == "open" and isinstance(args[0], str | bytes) and _writes(args):
            place = os.path.realpath(os.fsdecode(args[0]))
            if not place.startswith(own) and not place.endswith((".pyc", ".lock")) and "__pycache__" not in place:
                raise PermissionError("a model file must not write outside its folder")

    sys.addaudithook(guard)


def _writes(args: tuple[Any, ...]) -> bool:
    mode, flags = args[1], args[2] if len(args) > 2 else 0  # noqa: PLR2004  the event's arguments: path, mode, flags
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _child() -> int:
    """The child's side: one JSON job on stdin, the answer in the file it names."""
    stream = sys.stdin.buffer
    job = json.loads(stream.readline())
    threading.Thread(target=_watch, args=(stream.raw if hasattr(stream, "raw") else stream,), daemon=True).start()
    global _progress  # noqa: PLW0603
    # This file runs as __main__ here; the function finds `report` in the module of the package's name.
    sys.modules["edgepipe.isolate"] = sys.modules["__main__"]
    _progress = Path(job["result"]).with_name(_PROGRESS)
    answer: dict[str, Any]
    try:
        if job["sealed"]:
            seal()
        module, _, name = job["target"].partition(":")
        answer = {"value": getattr(importlib.import_module(module), name)(**job["kwargs"])}
    except EdgepipeError as error:
        answer = {"error": error.to_wire()}
    except Exception as error:  # the boundary of the process: every failure must become an answer
        import traceback

        traceback.print_exc()
        text = " ".join(_CONTROL.sub("", str(error)).split())
        answer = {"crash": f"{type(error).__name__}: {text[:300]}"}
    result = Path(job["result"])
    partial = result.with_suffix(".part")
    partial.write_text(json.dumps(answer), encoding="utf-8")
    partial.replace(result)
    sys.stdout.flush()
    # Native libraries may crash while they are torn down, after the work is done and its answer is on disk.
    os._exit(0)


if __name__ == "__main__":
    _child()
