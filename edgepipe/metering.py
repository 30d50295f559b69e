"""Reads a meter of the host in a thread while a board measures, and puts its readings on the board's clock.

The two clocks are held against each other before and after the run: the board is asked for its own some times, and the
answer with the shortest way counts, half of that way being the error (Cristian, "Probabilistic clock synchronization",
Distributed Computing 3, 1989).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from edgepipe import plugins
from edgepipe.agent import power
from edgepipe.agent.meters import NoMeterError
from edgepipe.agent.text import error_text
from edgepipe.meters import Settings
from edgepipe.schema import Power, RawRun
from edgepipe.targets import Meter

_ASKS = 8
_END_SECONDS = 10.0


@dataclass(frozen=True)
class Offset:
    """The board's monotonic clock less this host's, in s, and how far that may be off."""

    seconds: float
    error: float


def offset(ask: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> Offset:
    """Hold the board's clock, which ``ask`` gives, against this host's."""
    found = []
    for _ in range(_ASKS):
        sent = clock()
        board = ask()
        way = clock() - sent
        found.append(Offset(board - sent - way / 2, way / 2))
    return min(found, key=lambda each: each.error)


class Watch:
    """``with Watch(meter) as watch:`` reads the meter until the end of the block; then `into` adds it to a run.

    A meter that can't be reached takes no run down: power is null then, with the reason.

    Raises:
        UsageError: the target's ``[meter]`` is wrong.
    """

    def __init__(self, meter: Meter) -> None:
        self._settings = meter
        self._stop = threading.Event()
        self._trace = power.Trace()
        self._power = Power()

    def __enter__(self) -> Watch:
        name, options = self._settings.name, dict(self._settings.options)
        try:
            found = plugins.load("meters", name).find(Settings(self._settings.address, options))
        except NoMeterError as error:
            self._power = Power(reason=f"{name}: {error.what}{': ' + error.fix if error.fix else ''}")
        except (OSError, ValueError) as error:
            self._power = Power(reason=f"{name} at {self._settings.address}: {error_text(error)}")
        else:
            own = {key: options[key] for key in ("boundary", "rate_hz", "resolution_w") if key in options}
            self._meter = replace(found, rail=self._settings.rail or found.rail, **own)
            self._power = power.declared(self._meter)
            self._thread = threading.Thread(target=self._read, name="meter", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.reads:
            self._stop.set()
            self._thread.join(_END_SECONDS)
            self._meter.close()

    @property
    def reads(self) -> bool:
        """Whether there is a meter to read."""
        return not self._power.reason

    def _read(self) -> None:
        for reading in power.readings(self._meter, self._stop.wait, time.monotonic):
            self._trace.add(reading)

    def into(self, raw: RawRun, before: Offset, after: Offset) -> RawRun:
        """Return the run with this meter's readings, their times in seconds since the run began."""
        if not self.reads or raw.began is None:
            return replace(raw, power=self._power)
        zero = raw.began - (before.seconds + after.seconds) / 2
        error = max(before.error, after.error) + abs(after.seconds - before.seconds) / 2
        declared = replace(self._power, clock_error_s=round(error, 6))
        return replace(raw, power=declared, power_samples=self._trace.samples(zero))
