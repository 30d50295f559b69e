"""What the kernel knows of the board's supply (class power_supply): a battery that is being drained, or a USB input.

power_now in uW, else voltage_now in uV times current_now in uA; some drivers sign the current of a battery that is
drained, some do not. A battery that is charged, or full and at rest, does not see what the board draws.
"""

from __future__ import annotations

import os
from functools import partial

from edgepipe.agent.meters import Meter, NoMeterError
from edgepipe.agent.meters._files import folders, number, text

# Fuel gauges give a new figure about once a second.
_RATE_HZ = 1.0


def find(sysfs_root: str, rail: str = "") -> Meter:
    """The supply that feeds the board and says how much, or the one called ``rail`` (e.g. BAT0).

    Raises:
        NoMeterError: none that does. OSError, ValueError: it can't be read.
    """
    obstacle = NoMeterError("no power supply that says what it gives")
    for folder in folders(sysfs_root, "sys/class/power_supply/*"):
        name = os.path.basename(folder)
        if (rail and name != rail) or not _sees_the_board(folder):
            continue
        state = _state(folder)
        if state not in ("Discharging", "online"):
            obstacle = NoMeterError(f"{name} is {state.lower() or 'in no known state'}, so it does not feed the board")
            continue
        read = partial(_watts, folder)
        read()
        return Meter("power_supply", name, "board", read, _RATE_HZ)
    raise obstacle


def _sees_the_board(folder: str) -> bool:
    """Whether it measures at all, and is neither a mouse's battery nor a mere negotiated figure (UCSI)."""
    measures = any(os.path.exists(os.path.join(folder, each)) for each in ("power_now", "current_now"))
    name = os.path.basename(folder)
    return measures and text(folder, "scope") != "Device" and not name.startswith("ucsi")


def _state(folder: str) -> str:
    if text(folder, "type") == "Battery":
        return text(folder, "status")
    return "online" if text(folder, "online") != "0" else "offline"


def _watts(folder: str) -> float:
    if _state(folder) not in ("Discharging", "online"):
        raise ValueError(f"{os.path.basename(folder)} stopped feeding the board: {_state(folder)}")
    if os.path.exists(os.path.join(folder, "power_now")):
        watts = number(folder, "power_now") / 1e6
    else:
        watts = number(folder, "voltage_now") * number(folder, "current_now") / 1e12
    return abs(watts) if text(folder, "type") == "Battery" else watts
