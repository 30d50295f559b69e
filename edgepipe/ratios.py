"""One run's times over another's, with an interval: measured in turns, or apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from edgepipe import stats
from edgepipe.record import Bound

MIN_TURNS = 5
THINNED = 1000


def ratio_of_turns(
    one: Sequence[Sequence[float]], other: Sequence[Sequence[float]], quantile: float, tries: int = 1000
) -> Bound:
    """A percentile of ``other`` over that of ``one``, measured in turns, with its 95 % interval by the bootstrap.

    Whole turns are drawn with both their sides: neighbours share what else the machine was doing, and turns (each a
    process of its own) differ more than calls within one (Kalibera and Jones, ISMM 2013). Percentiles are those of all
    calls drawn. With few turns the plain percentile interval is too narrow; its ends are moved out to
    Phi(-sqrt(n / (n - 1)) t(n - 1)) (the expanded interval: Hesterberg, The American Statistician 69, 2015). The draws
    have a fixed seed, so the same samples give the same interval.
    """
    import numpy as np

    need, name = stats.minimum_samples(quantile), f"p{quantile * 100:g}"
    least = min(sum(map(len, side)) for side in (one, other))
    if least < need:
        return Bound(None, reason=f"{name} needs {need:,} samples, there are {least:,}")
    value = math.prod(
        stats.percentile(sorted(ns for turn in side for ns in turn), quantile) ** power
        for side, power in ((other, 1), (one, -1))
    )
    turns = len(one)
    if turns < MIN_TURNS:
        return Bound(value, reason=f"no interval: {turns} turns, {MIN_TURNS} are needed")
    draws = np.random.default_rng(1).multinomial(turns, [1 / turns] * turns, size=tries)
    ratios = np.sort(_drawn(other, draws, quantile) / _drawn(one, draws, quantile))
    tail = statistics.NormalDist().cdf(-math.sqrt(turns / (turns - 1)) * stats.student(turns - 1))
    low, high = (float(np.quantile(ratios, q)) for q in (tail, 1 - tail))
    return Bound(value, min(low, value), max(high, value))


def _drawn(turns: Sequence[Sequence[float]], draws: Any, quantile: float) -> Any:
    """The percentile of the calls of the turns drawn, for each row of how often each turn was drawn.

    A long turn stands for itself by a thousand of its order statistics.
    """
    import numpy as np

    kept, weights = [], []
    for turn in turns:
        ordered = np.sort(np.asarray(turn, dtype=np.float64))
        places = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), THINNED)).round().astype(int))
        kept.append(ordered[places])
        weights.append(np.full(len(places), len(ordered) / len(places)))
    values, owner = np.concatenate(kept), np.repeat(np.arange(len(turns)), [len(each) for each in kept])
    order = np.argsort(values, kind="stable")
    values, owner, weight = values[order], owner[order], np.concatenate(weights)[order]
    found = []
    for counts in draws:
        reached = np.cumsum(weight * counts[owner])
        found.append(values[min(np.searchsorted(reached, quantile * reached[-1] - 1e-9), len(values) - 1)])
    return np.asarray(found)


def quotient(one: Bound, other: Bound) -> Bound:
    """``one`` over ``other``, two positive figures measured apart from each other, with the interval of the quotient.

    On logarithms, each bound lies as far from the quotient as the root of the sum of squares of what the two intervals
    allow to that side (MOVER: Donner and Zou, Statistical Methods in Medical Research 21, 2012).
    """
    if one.value is None or other.value is None:
        return Bound(None, reason=one.reason or other.reason)
    if not one.low or not one.high or not other.low or not other.high:
        return Bound(one.value / other.value, reason=one.reason or other.reason or "no interval")
    centre = math.log(one.value / other.value)
    down = math.hypot(math.log(one.value / one.low), math.log(other.high / other.value))
    up = math.hypot(math.log(one.high / one.value), math.log(other.value / other.low))
    return Bound(one.value / other.value, math.exp(centre - down), math.exp(centre + up))
