"""The meter of a board that has none: it says so, with the reason a report shows beside the empty figure."""

from __future__ import annotations

from edgepipe.agent import probe
from edgepipe.agent.meters import Meter, NoMeterError

# Boards known to carry no sensor that sees the whole board's current.
_SENSORLESS = (
    "Raspberry Pi 4",
    "Raspberry Pi 3",
    "Raspberry Pi 2",
    "Raspberry Pi Zero 2 W",
    "Raspberry Pi Zero",
    "Raspberry Pi Compute Module 4",
)


def find(sysfs_root: str, rail: str = "") -> Meter:
    """There is never a meter behind this one.

    Raises:
        NoMeterError: always, e.g. ``no meter: a Raspberry Pi 4 has no current sensor``.
    """
    del rail
    model = probe.model(sysfs_root)
    for name in _SENSORLESS:
        if model.startswith(name):
            raise NoMeterError(f"no meter: a {name} has no current sensor")
    raise NoMeterError("no meter")
