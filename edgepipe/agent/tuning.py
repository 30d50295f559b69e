"""Settings of the board that a measurement asks for, put back whatever becomes of the agent.

A process of its own sets them and waits for the end of its stdin, which the kernel brings about however the agent
ends: in good order, by an error, by kill -9, or as the host goes away. What was there before is on the disk first, so
that the next agent puts it back where that process was killed, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import re
import signal
import subprocess
import sys
from typing import Any, Dict, Iterator, List, Optional

from edgepipe.agent import lock, state, worker
from edgepipe.agent.disk import Disk
from edgepipe.agent.text import clean
from edgepipe.errors import BoardError, EdgepipeError, UsageError, from_wire
from edgepipe.schema import Caution

_CORE = re.compile(r"cpu\d{1,4}\Z")
_GOVERNOR = re.compile(r"[a-z_]{1,32}\Z")
_END_SECONDS = 10.0
_RIGHTS = "let ansible/ give this user the right to set clocks (docs/doctor.md), or leave --governor out"


class Tuned:
    """``with Tuned(root, sysfs_root, governor) as tuned:`` sets the governor of every core, unless it is empty.

    ``root`` is the agent's folder. ``cautions`` says afterwards what could not be put back.

    Raises:
        UsageError: the board does not know this governor. BoardError: it can't be set; all is as it was.
    """

    def __init__(self, root: str, sysfs_root: str, governor: str) -> None:
        self._job = {"root": root, "sysfs_root": sysfs_root, "governor": governor}
        self._process: Optional["subprocess.Popen[bytes]"] = None
        self.cautions: List[Caution] = []

    def __enter__(self) -> "Tuned":
        if self._job["governor"]:
            check(self._job["sysfs_root"], self._job["governor"])
            self._start()
        return self

    def _start(self) -> None:
        self._process = worker.start("tune")
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps(self._job).encode() + b"\n")
            self._process.stdin.flush()
            said = json.loads(self._process.stdout.readline() or b"{}")
        except (OSError, ValueError):
            said = {}
        if not said.get("ok"):
            self.__exit__()
            raise from_wire(said["error"]) if "error" in said else BoardError("the governor's keeper died", fix=_RIGHTS)

    def __exit__(self, *error: object) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        assert process.stdin
        assert process.stdout
        with contextlib.suppress(OSError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
        process.stdout.close()
        # It has put all back by now; if it was killed, this does.
        left = restore(self._job["root"], self._job["sysfs_root"])
        if left:
            text = f"the governor of {', '.join(left)} could not be put back to what it was"
            self.cautions.append(Caution("not_restored", text, "set it by hand, or restart the board"))


def check(sysfs_root: str, governor: str) -> None:
    """Make sure that every core knows the governor.

    Raises:
        UsageError: one does not. BoardError: the board has no cpufreq.
    """
    cores = _cores(sysfs_root)
    if not cores:
        raise BoardError("this board has no cpufreq, so its governor can't be set", "--governor", "leave it out")
    for core in cores:
        path = os.path.join(_folder(sysfs_root, core), "scaling_available_governors")
        known = (state.read_text(path) or "").split()
        if not _GOVERNOR.match(governor) or (known and governor not in known):
            listed = clean(", ".join(known), 200) or "not known"
            raise UsageError(f"{core} has no governor {governor[:32]!r}", "--governor", f"it has: {listed}")


def recover(root: str, sysfs_root: str) -> None:
    """Put back what an agent left behind that was killed with its keeper; not while somebody else holds the board."""
    if os.path.exists(_record(root)):
        with contextlib.suppress(EdgepipeError, OSError), lock.Lock(os.path.join(root, "lock"), "recovery"):
            restore(root, sysfs_root)


def restore(root: str, sysfs_root: str) -> List[str]:
    """Put back what is noted, and forget it; returns the cores of which that failed (they stay noted).

    Settings of before a restart of the board are none any more: the kernel began anew.
    """
    if not os.path.exists(_record(root)):
        return []
    with _alone(root):
        noted = _noted(root)
        if noted is None:
            return []
        due = noted["governors"] if noted["boot"] == _boot(sysfs_root) else {}
        left = {core: governor for core, governor in due.items() if not _write(sysfs_root, core, governor)}
        if left:
            _note(root, sysfs_root, left)
        else:
            os.unlink(_record(root))
        return sorted(left)


def main() -> None:
    """The keeper: read the job's line from stdin, set, say so, wait for the end of stdin, put back."""
    job = json.loads(sys.stdin.buffer.readline().decode())
    for each in (signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        try:
            _set(job["root"], job["sysfs_root"], job["governor"])
            said: Dict[str, Any] = {"ok": True}
        except EdgepipeError as error:
            said = {"ok": False, "error": error.to_wire()}
        with contextlib.suppress(OSError):
            os.write(1, json.dumps(said).encode() + b"\n")
        sys.stdin.buffer.read()
    finally:
        restore(job["root"], job["sysfs_root"])


def _set(root: str, sysfs_root: str, governor: str) -> None:
    restore(root, sysfs_root)
    with _alone(root):
        before = {core: state.read_text(_file(sysfs_root, core)) or "" for core in _cores(sysfs_root)}
        _note(root, sysfs_root, {core: text for core, text in before.items() if _GOVERNOR.match(text)})
        for core in before:
            if not _write(sysfs_root, core, governor):
                path = _file(sysfs_root, core)
                why = "it did not take it" if os.access(path, os.W_OK) else "it is read-only to this user"
                raise BoardError(f"the governor of {core} can't be set to {governor}: {why}", path, _RIGHTS)


def _write(sysfs_root: str, core: str, governor: str) -> bool:
    """Write a governor and read it back. A core that is gone (unplugged) has nothing to set."""
    path = _file(sysfs_root, core)
    if not os.path.exists(path):
        return True
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(governor)
    except OSError:
        return False
    return state.read_text(path) == governor


def _noted(root: str) -> Optional[Dict[str, Any]]:
    """What was there before; null where nothing is noted. A damaged note has nothing to put back."""
    try:
        with open(_record(root), encoding="utf-8") as file:
            noted = json.load(file)
        governors = {str(core): str(text) for core, text in noted["governors"].items()}
        sound = {core: text for core, text in governors.items() if _CORE.match(core) and _GOVERNOR.match(text)}
        return {"boot": str(noted["boot"]), "governors": sound}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {"boot": "", "governors": {}}


def _note(root: str, sysfs_root: str, governors: Dict[str, str]) -> None:
    disk, path = Disk(), _record(root)
    disk.remove(path + "~")
    disk.write(path + "~", json.dumps({"boot": _boot(sysfs_root), "governors": governors}).encode())
    disk.sync(path + "~")
    disk.rename(path + "~", path)
    disk.sync(root)


@contextlib.contextmanager
def _alone(root: str) -> Iterator[None]:
    """A keeper whose agent died and the next agent must not put back at the same time."""
    handle = os.open(os.path.join(root, "tuning.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _record(root: str) -> str:
    return os.path.join(root, "tuning.json")


def _boot(sysfs_root: str) -> str:
    return state.read_text(os.path.join(sysfs_root, "proc/sys/kernel/random/boot_id")) or ""


def _cores(sysfs_root: str) -> List[str]:
    paths = glob.glob(os.path.join(sysfs_root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"))
    found = {path.split(os.sep)[-3] for path in paths}
    return sorted((core for core in found if _CORE.match(core)), key=lambda core: int(core[3:]))


def _folder(sysfs_root: str, core: str) -> str:
    return os.path.join(sysfs_root, "sys/devices/system/cpu", core, "cpufreq")


def _file(sysfs_root: str, core: str) -> str:
    return os.path.join(_folder(sysfs_root, core), "scaling_governor")
