"""A board's control group: its memory, its share of a CPU, and a freezer. Version 1 and 2 of the kernel's interface."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_TOP = "edgepipe-lab"
_KINDS = ("memory", "cpu", "freezer")
_PERIOD_US = 100_000


class Group:
    """The group of one board. On a kernel that has no such controller the limits do nothing."""

    def __init__(self, name: str) -> None:
        self._two = (_ROOT / "cgroup.controllers").is_file()
        tops = [_ROOT] if self._two else [_ROOT / kind for kind in _KINDS if (_ROOT / kind).is_dir()]
        self.folders = [top / _TOP / name for top in tops]

    def make(self) -> None:
        """Make the group, without limits."""
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)
            if self._two:
                for parent in (folder.parent.parent, folder.parent):
                    for kind in ("memory", "cpu"):
                        with contextlib.suppress(OSError):
                            (parent / "cgroup.subtree_control").write_text(f"+{kind}")

    def members(self) -> list[Path]:
        """The files that a process writes 0 to in order to join."""
        return [folder / "cgroup.procs" for folder in self.folders]

    def memory(self, limit: int | None) -> None:
        """Let the board have this many bytes, or as many as there are."""
        self._set("memory", "memory.limit_in_bytes", "memory.max", limit, "-1")

    def cpu(self, share: float | None) -> None:
        """Let it have this much of one CPU, or all."""
        quota = None if share is None else int(share * _PERIOD_US)
        self._set("cpu", "cpu.cfs_quota_us", "cpu.max", quota, "-1")

    def freeze(self, frozen: bool) -> None:
        """Stop every process of the board where it is, or let them go on: a board that hangs."""
        if self._two:
            (self.folders[0] / "cgroup.freeze").write_text("1" if frozen else "0")
        for folder in self.folders:
            if folder.parts[4] == "freezer":
                (folder / "freezer.state").write_text("FROZEN" if frozen else "THAWED")

    def killed(self) -> int:
        """How many processes the kernel killed here for want of memory."""
        name = "memory.events" if self._two else "memory.oom_control"
        for folder in self.folders:
            with contextlib.suppress(OSError):
                words = (folder / name).read_text().split()
                return int(words[words.index("oom_kill") + 1])
        return 0

    def remove(self) -> None:
        """Remove the group; its processes must have ended. Never raises."""
        until = time.monotonic() + 3
        for folder in self.folders:
            while folder.is_dir() and time.monotonic() < until:
                try:
                    folder.rmdir()
                except OSError:
                    time.sleep(0.02)
            with contextlib.suppress(OSError):
                folder.parent.rmdir()

    def _set(self, kind: str, one: str, two: str, value: int | None, off: str) -> None:
        for folder in self.folders:
            if self._two:
                (folder / two).write_text("max" if value is None else str(value))
            elif folder.parts[4] == kind:
                (folder / one).write_text(off if value is None else str(value))
