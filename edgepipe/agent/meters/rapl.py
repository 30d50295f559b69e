"""RAPL: the energy counters of an Intel or AMD processor, by the kernel's powercap files.

Counters run in uJ and wrap at max_energy_range_uj. Packages are added up; their sub-domains (core, uncore, dram) and
the platform's psys are not, since they overlap. Only root may read them, as they leak secrets (CVE-2020-8694).
"""

from __future__ import annotations

import re
import time
from typing import Dict

from edgepipe.agent.meters import Meter, NoMeterError
from edgepipe.agent.meters._files import folders, number, text

# The processor updates its counter about once a millisecond; 50 of them keep that grain below 2 %.
_RATE_HZ = 20.0


def find(sysfs_root: str, rail: str = "") -> Meter:
    """The sum of the processor packages, or the domain called ``rail`` (e.g. psys).

    Raises:
        NoMeterError: no such counter. OSError, ValueError: it can't be read.
    """
    domains = {}
    for folder in folders(sysfs_root, "sys/class/powercap/intel-rapl:[0-9]*"):
        name = text(folder, "name")
        if name == rail or (not rail and re.match(r"package-\d+\Z", name)):
            domains[name] = folder
    if not domains:
        raise NoMeterError(f"no RAPL counter{f' called {rail}' if rail else ''} on this machine")
    counter = _Counter(domains)
    return Meter("rapl", " + ".join(domains), "soc", counter.watts, _RATE_HZ, mean=True)


class _Counter:
    """Turns counters of energy into mean power since the last look."""

    def __init__(self, domains: Dict[str, str]) -> None:
        self._ranges = {folder: number(folder, "max_energy_range_uj") for folder in domains.values()}
        self._last = self._look()
        self._at = time.monotonic()

    def _look(self) -> Dict[str, float]:
        return {folder: number(folder, "energy_uj") for folder in self._ranges}

    def watts(self) -> float:
        """Mean W of all domains since the last look, across at most one wrap of each counter."""
        now, at = self._look(), time.monotonic()
        used = 0.0
        for folder, value in now.items():
            change = value - self._last[folder]
            used += change if change >= 0 else change + self._ranges[folder]
        seconds, self._last, self._at = at - self._at, now, at
        if seconds <= 0:
            raise ValueError("the clock stood still between two looks at the RAPL counter")
        return used / 1e6 / seconds
