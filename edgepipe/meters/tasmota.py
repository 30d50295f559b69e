"""A plug that runs Tasmota, over HTTP: ``cm?cmnd=Status 10``, or ``Status 8`` on older firmware."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from edgepipe.agent.meters import Meter, NoMeterError
from edgepipe.meters import SECRETS, Settings, pick
from edgepipe.meters._http import Device

OPTIONS = {"channel": "the phase or outlet, from 0", "user": "for the password; admin if left out", **SECRETS}
# Tasmota reads its chip once a second.
_RATE_HZ = 1.0
_PLACES = {"Status 10": ("StatusSNS", "ENERGY", "Power"), "Status 8": ("StatusPWR", "Power")}


def find(settings: Settings) -> Meter:
    """The plug at ``address``, ``host[:port]``. Its step is that of the digits it sends (``WattRes`` sets them).

    Raises:
        NoMeterError: it measures no power. PermissionError: it wants a password.
        OSError, ValueError: it can't be reached, or is no Tasmota.
    """
    device = Device(settings.place("192.168.1.50"))
    channel = int(settings.number("channel", 0))
    access = {"user": settings.text("user", "admin"), "password": settings.password()}
    query = access if access["password"] else {}

    def ask(command: str) -> Any:
        found = device.get("/cm", {**query, "cmnd": command})
        if isinstance(found, dict) and "WARNING" in found:
            raise PermissionError("it wants a password, or another one")
        return found

    for command in _PLACES:
        value = _power(ask(command), channel)
        if value is not None:
            break
    else:
        raise NoMeterError("the Tasmota device has no power meter", present=True)

    def read() -> float:
        return pick(_power(ask(command), channel), "")

    step = 10.0 ** int(value.as_tuple().exponent) if isinstance(value, Decimal) else 1.0
    return Meter("tasmota", f"plug, channel {channel}", "wall", read, _RATE_HZ, step)


def _power(found: Any, channel: int) -> Any:
    """The figure in an answer, wherever this firmware puts it; a list has one for each channel."""
    for place in _PLACES.values():
        value = found
        for part in place:
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, list):
            value = value[channel] if channel < len(value) else None
        if value is not None:
            return value
    return None
