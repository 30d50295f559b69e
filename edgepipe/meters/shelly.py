"""A Shelly plug or relay with a power meter, over its local HTTP interface.

Generation 1 answers ``/status`` (Basic access), all later ones ``/rpc/Switch.GetStatus`` (Digest access, SHA-256, user
admin). ``/shelly`` says which it is, without a password.
"""

from __future__ import annotations

from edgepipe.agent.meters import Meter, NoMeterError
from edgepipe.meters import SECRETS, Settings, pick
from edgepipe.meters._http import Device

OPTIONS = {
    "channel": "the relay, from 0",
    "component": "Switch, or PM1 for a meter without a relay (generation 2 on)",
    "user": "for the password; admin if left out",
    **SECRETS,
}
# The plug's own figure changes about once a second.
_RATE_HZ = 1.0
# Digits the interfaces give: two decimals in generation 1, one later.
_STEP_W = {True: 0.1, False: 0.01}


def find(settings: Settings) -> Meter:
    """The plug at ``address``, ``host[:port]``.

    Raises:
        NoMeterError: it measures no power, or says that its figure is not valid.
        OSError, ValueError: it can't be reached, or is no Shelly.
    """
    address = settings.place("192.168.1.50")
    channel = int(settings.number("channel", 0))
    about = Device(address).get("/shelly")
    if not isinstance(about, dict) or not {"gen", "type", "mac"} & set(about):
        raise ValueError("what answers there is no Shelly")
    modern = "gen" in about
    device = Device(address, settings.text("user", "admin"), settings.password(), digest=modern)
    component = settings.text("component", "Switch")

    def read() -> float:
        if modern:
            return pick(device.get(f"/rpc/{component}.GetStatus", {"id": str(channel)}), "apower")
        status = device.get("/status")
        watts = pick(status, f"meters.{channel}.power")
        if status["meters"][channel].get("is_valid") is False:
            raise ValueError("the plug says that its own figure is not valid")
        return watts

    try:
        read()
    except ValueError as error:
        raise NoMeterError(f"the Shelly measures no power on channel {channel}: {error}", present=True) from None
    return Meter("shelly", f"plug, channel {channel}", "wall", read, _RATE_HZ, _STEP_W[modern])
