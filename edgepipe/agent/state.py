"""The board's state while something is measured: sampled by a thread of the parent, never of the timed process."""

from __future__ import annotations

import glob
import os
import re
import threading
import time
from types import TracebackType
from typing import Any, Dict, List, Optional, Type

from edgepipe.agent import vcgencmd
from edgepipe.schema import StateSample

_PERIOD_SECONDS = 0.5
# Sensors are known to give nonsense when they are absent or asleep.
_LEAST_C, _MOST_C = -40.0, 150.0


def read_text(path: str) -> Optional[str]:
    """The stripped text of a small file, or None if it can't be read."""
    try:
        with open(path, "rb") as file:
            return file.read(65536).decode("utf-8", "replace").strip("\x00 \n\t")
    except OSError:
        return None


def read_int(path: str) -> Optional[int]:
    """The integer in a small file, or None."""
    try:
        return int(read_text(path) or "")
    except ValueError:
        return None


def clocks_khz(sysfs_root: str, which: str = "scaling_cur_freq") -> List[int]:
    """A cpufreq figure of each core in kHz, in the order of cores; empty where the board has no cpufreq."""
    folders = glob.glob(os.path.join(sysfs_root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq"))
    folders.sort(key=lambda path: int(re.sub(r"\D", "", os.path.basename(os.path.dirname(path)))))
    values = (read_int(os.path.join(folder, which)) for folder in folders)
    return [value for value in values if value is not None and value > 0]


def governor(sysfs_root: str) -> Optional[str]:
    """The cpufreq governor; several joined by commas where cores differ; None without cpufreq."""
    paths = glob.glob(os.path.join(sysfs_root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"))
    found = {read_text(path) or "" for path in paths} - {""}
    return ",".join(sorted(found))[:64] or None


def temperatures_c(sysfs_root: str) -> Dict[str, float]:
    """Degrees C of each thermal zone by its type; zones of one type are numbered, absurd readings left out."""
    found: Dict[str, float] = {}
    for folder in sorted(glob.glob(os.path.join(sysfs_root, "sys/class/thermal/thermal_zone*"))):
        milli = read_int(os.path.join(folder, "temp"))
        if milli is None or not _LEAST_C <= milli / 1000 <= _MOST_C:
            continue
        name = (read_text(os.path.join(folder, "type")) or "zone")[:64]
        found[name if name not in found else f"{name}-{os.path.basename(folder)[12:]}"] = milli / 1000
    return found


def throttle_bits(sysfs_root: str = "/") -> Optional[int]:
    """What a Raspberry Pi's firmware says of throttling (bits 0-3 now, 16-19 since boot); None on other boards."""
    try:
        match = re.match(r"throttled=(0x[0-9a-fA-F]{1,8})\Z", vcgencmd.ask("get_throttled", sysfs_root))
    except OSError:
        return None
    return int(match.group(1), 16) if match else None


def sample(at: float, sysfs_root: str = "/") -> StateSample:
    """One look at the board. ``at`` is in seconds; ``sysfs_root`` is the folder that holds sys/ and proc/."""
    load = (read_text(os.path.join(sysfs_root, "proc/loadavg")) or "").split()
    return StateSample(
        at=at,
        temperature_c=temperatures_c(sysfs_root),
        clock_khz=clocks_khz(sysfs_root),
        governor=governor(sysfs_root),
        throttle_bits=throttle_bits(sysfs_root),
        load1=float(load[0]) if load and re.match(r"\d+(\.\d+)?\Z", load[0]) else None,
        memory_free_bytes=memory_bytes("MemAvailable", sysfs_root),
    )


def memory_bytes(field: str, sysfs_root: str = "/") -> Optional[int]:
    """A line of /proc/meminfo (``MemTotal``, ``MemAvailable``) in bytes."""
    match = re.search(rf"^{field}:\s+(\d+) kB", read_text(os.path.join(sysfs_root, "proc/meminfo")) or "", re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None


class Sampler:
    """``with Sampler() as states:`` fills the list at 2 Hz: before (at 0), during, and once more at the end."""

    def __init__(self, sysfs_root: str = "/") -> None:
        self._root = sysfs_root
        self._states: List[StateSample] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sampler", daemon=True)
        self.began = 0.0

    def __enter__(self) -> List[StateSample]:
        self.began = time.monotonic()
        self._look()
        self._thread.start()
        return self._states

    def __exit__(self, kind: Optional[Type[BaseException]], error: Any, trace: Optional[TracebackType]) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _look(self) -> None:
        self._states.append(sample(round(time.monotonic() - self.began, 3), self._root))

    def _loop(self) -> None:
        due = self.began + _PERIOD_SECONDS
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            self._look()
            due = max(due + _PERIOD_SECONDS, time.monotonic())
