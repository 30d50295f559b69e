"""Tests of many hypotheses at once, and of the means of a few logarithms. Pure; sources beside each formula."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from edgepipe import stats
from edgepipe.record import Bound

_STEPS = 512  # of Simpson's rule; the integrand is smooth, so that the error lies below 1e-9


def holm(chances: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values so that among all of them one false alarm has at most the chance asked for; null stays null.

    Holm, Scandinavian Journal of Statistics 6, 1979. It asks nothing of how the tests depend on each other.
    """
    order = sorted((p, at) for at, p in enumerate(chances) if p is not None)
    found: list[float | None] = [None] * len(chances)
    highest = 0.0
    for rank, (p, at) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        found[at] = highest
    return found


def two_sided(t: float, degrees: float) -> float:
    """The chance that |Student's t| is at least |t|.

    With x = sqrt(degrees) tan(a) the density is cos(a)^(degrees - 1) up to a factor; both integrals by Simpson's rule.
    """
    start = math.atan(abs(t) / math.sqrt(degrees))
    return min(1.0, _integral(start, degrees) / _integral(0.0, degrees))


def _integral(start: float, degrees: float) -> float:
    step = (math.pi / 2 - start) / _STEPS
    values = [math.pow(max(math.cos(start + at * step), 0.0), degrees - 1) for at in range(_STEPS + 1)]
    return step / 3 * (values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2]))


def of_ratios(ratios: Sequence[float]) -> tuple[Bound, float | None]:
    """The geometric mean of ratios with its 95 % interval, and the chance of it where nothing has changed.

    Both from Student's t on the logarithms; null with a reason for fewer than two, or where all are the same.
    """
    if len(ratios) < 2:  # noqa: PLR2004
        value = ratios[0] if ratios else None
        return Bound(value, reason="no interval: one board and round" if ratios else "nothing to compare"), None
    logs = [math.log(each) for each in ratios]
    spread, mean = statistics.stdev(logs), statistics.fmean(logs)
    if not spread:
        return stats.ratio(ratios), 1.0 if not mean else 0.0
    return stats.ratio(ratios), two_sided(mean / spread * math.sqrt(len(logs)), len(logs) - 1)


def of_bounds(ratio: Bound) -> float | None:
    """The chance of a ratio with a 95 % interval where nothing has changed; the interval is taken as normal on logs."""
    if not ratio.value or not ratio.low or not ratio.high or ratio.high <= ratio.low:
        return None
    error = math.log(ratio.high / ratio.low) / (2 * 1.959964)
    return math.erfc(abs(math.log(ratio.value)) / error / math.sqrt(2))
