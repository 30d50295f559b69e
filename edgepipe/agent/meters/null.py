"""The meter of a board that has none: it says so, with the reason a report shows beside the empty figure."""

from __future__ import annotations

from typing import Tuple

# Boards known to carry no sensor that sees the whole board's current.
_SENSORLESS = (
    "Raspberry Pi 4",
    "Raspberry Pi 3",
    "Raspberry Pi 2",
    "Raspberry Pi Zero",
    "Raspberry Pi Compute Module 4",
)


def open_meter(sysfs_root: str) -> None:
    """There is never a meter behind this one; ``sysfs_root`` (the folder that holds sys/ and proc/) is not read."""


def reason(board_model: str) -> str:
    """Why power is null on this board, e.g. ``no meter: a Raspberry Pi 4 has no current sensor``."""
    for name in _SENSORLESS:
        if board_model.startswith(name):
            return f"no meter: a {name} has no current sensor"
    return "no meter"


def channel() -> Tuple[str, str]:
    """The source and rail it reads: none of either."""
    return "", ""
