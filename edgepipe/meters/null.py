"""A meter of the host that is not there: for tests of all that surrounds meters."""

from __future__ import annotations

from edgepipe.agent.meters import Meter, NoMeterError
from edgepipe.meters import Settings

OPTIONS: dict[str, str] = {}


def find(settings: Settings) -> Meter:
    """There is never a meter behind this one.

    Raises:
        NoMeterError: always.
    """
    del settings
    raise NoMeterError("no meter")
