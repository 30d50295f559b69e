"""A Texas Instruments INA2xx that somebody wired into the board's supply, by the kernel's hwmon drivers.

hwmon numbers change between boots, so the chip is known by its name. Its figure is power1_input in uW (the chip
multiplies), else in1_input in mV times curr1_input in mA. What it sees is what runs through its shunt: it counts as the
whole board, since that is where such a sensor is put.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Optional

from edgepipe.agent.meters import Meter, NoMeterError
from edgepipe.agent.meters._files import folders, number, rate_hz, text

_RATE_HZ = 20.0
# Divisor of the shunt voltage (its step is 1 / divisor mV) and steps of current in one of power, as the kernel's ina2xx
# driver sets the chips up; the ina238 driver's chips calibrate otherwise, so their step is not known here.
_STEPS = {"ina209": (100, 20), "ina219": (100, 20), "ina220": (100, 20)}
_STEPS.update({"ina226": (400, 25), "ina230": (400, 25), "ina231": (400, 25)})
_CHIPS = (*_STEPS, "ina2xx", "ina228", "ina233", "ina234", "ina237", "ina238", "ina260")


def find(sysfs_root: str, rail: str = "") -> Meter:
    """The one chip there is, or the one whose label or i2c device (e.g. ``1-0040``) is ``rail``.

    Raises:
        NoMeterError: none, or several and no word which. OSError, ValueError: it can't be read.
    """
    chips = {_label(folder): folder for folder in folders(sysfs_root, "sys/class/hwmon/hwmon*") if _is_chip(folder)}
    if not chips:
        raise NoMeterError("no INA219, INA226 or the like on this board")
    if rail not in chips and (rail or len(chips) > 1):
        what = f"no current sensor {rail}" if rail else f"{len(chips)} current sensors"
        fix = 'say which one sees the whole board: rail = "..." in [meter] of the target\'s file'
        raise NoMeterError(f"{what}: there are {', '.join(chips)}", present=True, fix=fix)
    label = rail or next(iter(chips))
    folder = chips[label]
    read = partial(_watts, folder)
    read()
    chip = text(folder, "name")
    return Meter(chip, label, "board", read, rate_hz(_RATE_HZ, folder, "update_interval"), _resolution_w(folder, chip))


def _watts(folder: str) -> float:
    """What the chip in this hwmon folder measures now, in W.

    Raises:
        OSError: it can't be read. ValueError: it is no number.
    """
    if os.path.exists(os.path.join(folder, "power1_input")):
        return number(folder, "power1_input") / 1e6
    return number(folder, "in1_input") * number(folder, "curr1_input") / 1e6


def _is_chip(folder: str) -> bool:
    return text(folder, "name") in _CHIPS


def _label(folder: str) -> str:
    own = text(folder, "power1_label") or text(folder, "in1_label") or text(folder, "label")
    return own or os.path.basename(os.path.realpath(os.path.join(folder, "device")))


def _resolution_w(folder: str, chip: str) -> Optional[float]:
    """The step of the chip's power register, by its shunt (uOhm)."""
    if chip not in _STEPS:
        return None
    divisor, steps = _STEPS[chip]
    try:
        microamperes = 1e9 / (number(folder, "shunt_resistor") * divisor)
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return steps * microamperes / 1e6
