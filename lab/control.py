"""Bring boards up and down: each is one process (`lab.keeper`) with a folder below the lab's ``run``."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgepipe.link._trust import HostKey, pin_file, write_pin
from lab import host, rootfs
from lab.boards import Kind, kind_of, run_folder, work
from lab.cgroup import Group
from lab.host import LabError

_START_SECONDS = 240.0
_STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Running:
    """A board that is up: log in as root at ``port`` of 127.0.0.1."""

    name: str
    kind: Kind
    pid: int
    port: int

    @property
    def group(self) -> Group:
        """Its control group."""
        return Group(self.name)

    def reboot(self) -> None:
        """Pull its plug and wait until it is up again."""
        ready = run_folder(self.name) / "ready"
        ready.unlink()
        os.kill(self.pid, signal.SIGHUP)
        _wait_ready(self.name, ready, lambda: _is_ours(self.name, self.pid))


def up(name: str, disk_mb: int = 0) -> Running:
    """Bring a board up; one that is up already is left alone. ``disk_mb`` above 0 gives it a small disk.

    Raises:
        LabError: this machine can't, or the board does not start.
    """
    if found := running().get(name):
        return found
    kind = kind_of(name)
    if why := host.missing(kind.tier):
        raise LabError(why)
    base, key, folder = rootfs.root(kind), login_key(), run_folder(name)
    _clear(name)
    etc = folder / "own/etc/ssh"
    etc.mkdir(parents=True)
    shutil.copy(key.with_suffix(".pub"), etc / "lab_key.pub")
    _make_key(etc / "ssh_host_ed25519_key")
    (folder / "base").symlink_to(base)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lab.keeper", name, str(disk_mb)],
            cwd=Path(__file__).parents[1], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    (folder / "pid").write_text(str(process.pid))
    try:
        _wait_ready(name, folder / "ready", lambda: process.poll() is None)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    return running()[name]


def down(name: str) -> None:
    """End a board and remove all that it was: processes, mounts, namespaces, control group, files, target and pin."""
    if found := running().get(name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(found.pid, signal.SIGTERM)
        until = time.monotonic() + _STOP_SECONDS
        while _is_ours(name, found.pid) and time.monotonic() < until:
            time.sleep(0.02)
        if _is_ours(name, found.pid):
            os.kill(found.pid, signal.SIGKILL)
    _clear(name)


def running() -> dict[str, Running]:
    """The boards that are up, by name."""
    found = {}
    for folder in sorted((work() / "run").glob("*")):
        with contextlib.suppress(OSError, ValueError, LabError):
            pid = int((folder / "pid").read_text())
            if _is_ours(folder.name, pid):
                port = json.loads((folder / "ready").read_text())["port"]
                found[folder.name] = Running(folder.name, kind_of(folder.name), pid, port)
    return found


def leftovers() -> list[str]:
    """Names of boards that left a folder, up or not."""
    return sorted(path.name for path in (work() / "run").glob("*"))


def announce(board: Running, config: Path) -> str:
    """Make a target ``lab-NAME`` of a board, and trust its host key; returns the target's name."""
    name = f"lab-{board.name}"
    path = config / "targets" / f"{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f'like = "{board.kind.like}"'] if board.kind.like else []
    lines += [f'host = "root@127.0.0.1:{board.port}"', f"identity = {json.dumps(str(work() / 'key'))}"]
    lines += [f'description = "lab: {board.kind.text}"']
    path.write_text("\n".join(lines) + "\n")
    kind, blob, *_ = (run_folder(board.name) / "own/etc/ssh/ssh_host_ed25519_key.pub").read_text().split()
    write_pin(name, HostKey(f"[127.0.0.1]:{board.port}", kind, base64.b64decode(blob)))
    return name


def forget(name: str, config: Path) -> None:
    """Remove the target and the pin that `announce` wrote."""
    (config / "targets" / f"lab-{name}.toml").unlink(missing_ok=True)
    pin_file(f"lab-{name}").unlink(missing_ok=True)


def _wait_ready(name: str, ready: Path, alive: Callable[[], bool]) -> None:
    until = time.monotonic() + _START_SECONDS
    while not ready.exists():
        if not alive() or time.monotonic() > until:
            said = (ready.parent / "log").read_text("utf-8", "replace").strip()[-500:]
            raise LabError(f"board {name} does not start: {said}")
        time.sleep(0.02)


def _is_ours(name: str, pid: int) -> bool:
    """Whether a process still is this board's: its number may belong to another by now."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return b"lab.keeper" in words and name.encode() in words
    return False


def _clear(name: str) -> None:
    Group(name).remove()
    shutil.rmtree(run_folder(name), ignore_errors=True)


def login_key() -> Path:
    """The key that logs in to every board of the lab, made if need be."""
    path = work() / "key"
    if not path.exists():
        work().mkdir(parents=True, exist_ok=True)
        _make_key(path)
    return path


def _make_key(path: Path) -> None:
    host.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "edgepipe lab", "-f", path)
