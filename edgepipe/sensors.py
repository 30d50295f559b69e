"""Catch sensors that lie: pure functions over a meter's readings. A lie makes power null, with its reason.

The limits are wide on purpose: they are there for wrong units, dead channels and frozen drivers, not for odd boards.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby, pairwise

from edgepipe.agent.power import NONSENSE
from edgepipe.schema import Power, PowerSamples, Window

# What a running board may draw, in W, by what the meter sees: a Pi Zero 2 W rests at 0.4 W, and a unit taken for
# another is off by a thousand.
PLAUSIBLE_W = {"soc": (0.02, 500.0), "board": (0.2, 200.0), "wall": (0.2, 4000.0)}
# Share of readings that may fail before the rest is worth nothing.
FAILED = 0.05
# A supply's capacitors do not let a board's input jump by this factor and back between two readings.
JUMP = 20.0
# Readings and seconds of one and the same value before a sensor may be called stuck.
STUCK_READINGS, STUCK_SECONDS = 10, 5.0
# A stretch of one value is unnatural when it is this many times as long as others, and steps elsewhere are wide.
STUCK_TIMES, STUCK_STEPS, STUCK_OTHERS = 20.0, 3.0, 10


@dataclass(frozen=True)
class Readings:
    """The readings within a run that are numbers: s since it began, and W."""

    at: list[float]
    watts: list[float]

    def within(self, window: Window) -> list[tuple[float, float]]:
        """Return time and W of the readings that were taken in the window."""
        pairs = zip(self.at, self.watts, strict=True)
        return [(at, watts) for at, watts in pairs if window.start <= at <= window.end]


def readings(samples: PowerSamples, span: Window) -> Readings:
    """Return what the meter said within ``span``, without the readings that failed."""
    kept = [(at, watts) for at, watts in _within(samples, span) if watts is not None]
    return Readings([at for at, _ in kept], [watts for _, watts in kept])


def lie(samples: PowerSamples, span: Window, steady: list[Window], power: Power) -> str:
    """Return why these readings can't be believed, or nothing if they can.

    ``span`` is the time that counts, in which the board rested or worked evenly during ``steady``; ``power`` declares
    the meter.
    """
    found = readings(samples, span)
    reasons = [_failed(samples, span) or ("" if found.at else "the meter gave no reading")]
    if not reasons[0]:
        reasons = [check(found, power.boundary) for check in _CHECKS]
        reasons.append(_stuck(found, steady, power.resolution_w or 0.0))
    return next(filter(None, reasons), "")


def too_little(watts: float, boundary: str) -> str:
    """Return why this mean power can't be, or nothing."""
    least = PLAUSIBLE_W.get(boundary, (0.0, 0.0))[0]
    return f"{watts:.3g} W is too little for {_whose(boundary)}: a wrong unit?" if watts < least else ""


def _within(samples: PowerSamples, span: Window) -> list[tuple[float, float | None]]:
    pairs = zip(samples.at, samples.watts, strict=False)
    return [(at, watts) for at, watts in pairs if span.start <= at <= span.end]


def _failed(samples: PowerSamples, span: Window) -> str:
    """Nonsense once is too often; a reading may fail now and then."""
    said = max(samples.faults, key=lambda fault: samples.faults[fault], default="no word why")
    nonsense = next((fault for fault in samples.faults if fault.startswith(NONSENSE)), "")
    all_ = _within(samples, span)
    lost = [at for at, watts in all_ if watts is None]
    if nonsense and lost:
        return f"the meter talks {nonsense} ({lost[0]:.1f} s into the run)"
    if len(lost) > FAILED * len(all_):
        return f"{len(lost)} of {len(all_)} readings failed, the first {lost[0]:.1f} s into the run: {said}"
    return ""


def _negative(found: Readings, _: str) -> str:
    least = min(found.watts)
    return f"the meter said {least:.3g} W, and no board gives power back" if least < 0 else ""


def _too_much(found: Readings, boundary: str) -> str:
    most = max(found.watts)
    limit = PLAUSIBLE_W.get(boundary, (0.0, float("inf")))[1]
    return f"{most:.4g} W is too much for {_whose(boundary)}: a wrong unit?" if most > limit else ""


def _jump(found: Readings, boundary: str) -> str:
    """A reading far off its two neighbours on each side. A processor alone may well do that, a whole board can't."""
    if boundary == "soc":
        return ""
    watts = found.watts
    for i in range(2, len(watts) - 2):
        usual = statistics.median((watts[i - 2], watts[i - 1], watts[i + 1], watts[i + 2]))
        if watts[i] > JUMP * usual or watts[i] * JUMP < usual:
            return f"an impossible jump: {watts[i]:.3g} W among readings of {usual:.3g} W, at {found.at[i]:.1f} s"
    return ""


_CHECKS: tuple[Callable[[Readings, str], str], ...] = (_negative, _too_much, _jump)


def _stuck(found: Readings, steady: list[Window], resolution: float) -> str:
    """One value all along, or a stretch of one value that nothing in the rest of the readings explains.

    A coarse sensor (a plug that shows 0.1 W) rightly repeats itself: so a stretch only counts where readings otherwise
    move by several of the smallest steps at a time, while the board does the same thing.
    """
    stretches, position = [], 0
    for _, same in groupby(found.watts):
        count = len(list(same))
        stretches.append((position, position + count - 1))
        position += count
    lasting = [found.at[end] - found.at[start] for start, end in stretches]
    longest = max(range(len(stretches)), key=lambda i: lasting[i])
    start, end = stretches[longest]
    if end - start + 1 < STUCK_READINGS or lasting[longest] < STUCK_SECONDS:
        return ""
    if len(stretches) == 1:
        return f"the meter is stuck: {found.watts[0]:.4g} W in all {len(found.watts)} readings, at rest and under load"
    steps = [step for window in steady for step in _steps(found.within(window))]
    if len(steps) < STUCK_OTHERS or statistics.median(steps) < STUCK_STEPS * max(min(steps), resolution):
        return ""
    period = (found.at[-1] - found.at[0]) / (len(found.at) - 1)
    if lasting[longest] <= STUCK_TIMES * (statistics.median(lasting) + period):
        return ""
    return f"the meter is stuck: {found.watts[start]:.4g} W from {found.at[start]:.1f} to {found.at[end]:.1f} s"


def _steps(found: list[tuple[float, float]]) -> list[float]:
    """By how much readings differ from the one before, where they do; in whole millionths, so that equal steps are."""
    return [round(abs(after - before), 6) for (_, before), (_, after) in pairwise(found) if after != before]


def _whose(boundary: str) -> str:
    return {"soc": "a processor", "wall": "a wall socket"}.get(boundary, "a whole board")
