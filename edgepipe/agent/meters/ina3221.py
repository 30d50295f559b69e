"""The Texas Instruments INA3221 of a Jetson: three channels, of which one is the whole board's input.

Only the total rail is read. The others are parts of it, so they are never added to it, nor to each other.

* JetPack 5 and 6 (the kernel's hwmon driver): in<n>_label, in<n>_input in mV, curr<n>_input in mA; in7 is the sum of
  the shunt voltages and no rail.
* JetPack 4 (NVIDIA's iio driver): rail_name_<n>, in_power<n>_input in mW.
"""

from __future__ import annotations

import os
from functools import partial
from typing import List, NamedTuple, Optional

from edgepipe.agent.meters import Meter, NoMeterError
from edgepipe.agent.meters._files import folders, number, rate_hz, text

_TOTALS = ("VDD_IN", "POM_5V_IN")
# More often than this the reading itself would begin to cost the board power.
_RATE_HZ = 20.0
# The smallest step of a shunt voltage: TI data sheet SBOS576, section 6.5.
_SHUNT_STEP_V = 40e-6


class _Channel(NamedTuple):
    label: str
    folder: str
    position: int
    iio: bool


def find(sysfs_root: str, rail: str = "") -> Meter:
    """The total rail, or the one called ``rail``.

    Raises:
        NoMeterError: no such chip, or none of its channels is that rail. OSError, ValueError: it can't be read.
    """
    channels = _channels(sysfs_root)
    if not channels:
        raise NoMeterError("no INA3221 on this board")
    wanted = [rail] if rail else list(_TOTALS)
    chosen = next((channel for channel in channels if channel.label in wanted), None)
    if chosen is None:
        known = ", ".join(channel.label for channel in channels)
        raise NoMeterError(f"the INA3221 has no rail {' or '.join(wanted)}, only {known}", present=True)
    read = partial(_iio_watts if chosen.iio else _hwmon_watts, chosen)
    read()
    delay = f"polling_delay_{chosen.position}" if chosen.iio else "update_interval"
    return Meter(
        source="ina3221",
        rail=chosen.label,
        boundary="board" if chosen.label in _TOTALS else "soc",
        read=read,
        rate_hz=rate_hz(_RATE_HZ, chosen.folder, delay),
        resolution_w=_resolution_w(chosen),
    )


def _channels(sysfs_root: str) -> List[_Channel]:
    """All labelled channels that are switched on; hwmon's are numbered from 1, iio's from 0."""
    found = []
    for folder in folders(sysfs_root, "sys/bus/i2c/devices/*/hwmon/hwmon*", "sys/class/hwmon/hwmon*"):
        if text(folder, "name") == "ina3221":
            found += [_Channel(text(folder, f"in{n}_label"), folder, n, False) for n in (1, 2, 3) if _on(folder, n)]
    for folder in folders(sysfs_root, "sys/bus/i2c/drivers/ina3221x/*/iio:device*"):
        found += [_Channel(text(folder, f"rail_name_{n}"), folder, n, True) for n in (0, 1, 2)]
    return [channel for channel in found if channel.label]


def _on(folder: str, index: int) -> bool:
    return text(folder, f"in{index}_enable") != "0"


def _hwmon_watts(channel: _Channel) -> float:
    millivolts = number(channel.folder, f"in{channel.position}_input")
    return millivolts * number(channel.folder, f"curr{channel.position}_input") / 1e6


def _iio_watts(channel: _Channel) -> float:
    return number(channel.folder, f"in_power{channel.position}_input") / 1e3


def _resolution_w(channel: _Channel) -> Optional[float]:
    """The step of the current times the voltage of the moment; null where the shunt's value (uOhm) is not told."""
    shunt = os.path.join(channel.folder, f"shunt{channel.position}_resistor")
    try:
        volts = number(channel.folder, f"in{channel.position}_input") / 1e3
        return round(_SHUNT_STEP_V / (number(shunt) / 1e6) * volts, 6)
    except (OSError, ValueError, ZeroDivisionError):
        return None
