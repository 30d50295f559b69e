"""The Raspberry Pi 5's power chip: current and voltage of each rail behind it, by ``vcgencmd pmic_read_adc``.

The current at the 5 V input is not among them. The sum of the rails leaves out what hangs on 5 V itself (USB, fan,
HATs) and the chip's own losses, so it is not the input power, and is labelled as what it is.
"""

from __future__ import annotations

import re
from typing import Dict, Set, Tuple

from edgepipe.agent import vcgencmd
from edgepipe.agent.meters import Meter, NoMeterError

# Each question starts a process and keeps the firmware busy: four a second take 1 % of a PC's core, and more of a Pi's.
_RATE_HZ = 4.0
_LINE = re.compile(r"\s*(\w+)_([AV]) (current|volt)\(\d+\)=(-?\d+(?:\.\d+)?|-?nan|-?inf)[AV]\s*\Z")


def find(sysfs_root: str, rail: str = "") -> Meter:
    """The sum of all rails, or the one called ``rail`` (e.g. VDD_CORE).

    Raises:
        NoMeterError: no Raspberry Pi, one without this chip, or no such rail. ValueError: not the answer expected.
    """
    if not vcgencmd.path(sysfs_root):
        raise NoMeterError("no vcgencmd on this board")
    try:
        rails = _rails(vcgencmd.ask("pmic_read_adc", sysfs_root))
    except OSError as error:
        barred = "/dev/vcio" in str(error) or "VCHI" in str(error)
        what = f"permission denied: {error}" if barred else f"no power chip that can be asked: {error}"
        raise NoMeterError(what, present=barred, fix="put the agent's user into the group video") from None
    if not rails:
        raise ValueError("vcgencmd pmic_read_adc names no rail with both current and voltage")
    if rail and rail not in rails:
        raise NoMeterError(f"the power chip has no rail {rail}, only {', '.join(sorted(rails))}", present=True)
    chosen = {rail} if rail else set(rails)
    label = rail or f"sum of {len(chosen)} PMIC rails, not input power"
    return Meter("rpi5_pmic", label, "soc", lambda: _watts(sysfs_root, chosen), _RATE_HZ)


def _watts(sysfs_root: str, chosen: Set[str]) -> float:
    rails = _rails(vcgencmd.ask("pmic_read_adc", sysfs_root))
    missing = sorted(chosen - set(rails))
    if missing:
        raise ValueError(f"the power chip left out {', '.join(missing)}")
    return sum(volts * amperes for name, (amperes, volts) in rails.items() if name in chosen)


def _rails(said: str) -> Dict[str, Tuple[float, float]]:
    """A and V of each rail that has both."""
    seen: Dict[str, Dict[str, float]] = {"A": {}, "V": {}}
    for line in said.splitlines():
        match = _LINE.match(line)
        if match:
            seen[match.group(2)][match.group(1)] = float(match.group(4))
    return {name: (amperes, seen["V"][name]) for name, amperes in seen["A"].items() if name in seen["V"]}
