"""What a board can keep up: the first inference, the burst before it is hot, and the level it settles at."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from edgepipe import ratios, stats
from edgepipe.record import Bound, Sustained
from edgepipe.schema import ProcessSamples

BURST_SECONDS = 10.0
BURST_SHARE = 1 / 6  # of a run too short for that
SETTLED_SHARE = 1 / 3  # the end of the run, which counts as the level it settled at
SLOWER = 0.05  # from this slow-down on, the moment when it set in is stated
_MS = 1e6


def conclude(process: ProcessSamples, throttled_after_s: float | None) -> Sustained:
    """The regimes of one sustained process; ``throttled_after_s`` counts from its first timed call.

    Burst and sustained are medians in ms with their 95 % interval, each of its own part of the run. ``slowdown`` is
    sustained over burst; its interval joins theirs on logarithms (see `ratios.quotient`).
    """
    seconds = len(process.kept)
    early, late = max(1, min(int(BURST_SECONDS), math.ceil(seconds * BURST_SHARE))), _late(seconds)
    first, last = _kept(process, 0, early), settled(process)
    burst, sustained = (_median(part) for part in (first, last))
    slowdown = ratios.quotient(sustained, burst)
    after = reason = None
    if slowdown.low is not None and slowdown.value is not None and slowdown.low > 1 and slowdown.value >= 1 + SLOWER:
        after = _slower_after(process)
    if throttled_after_s is None:
        reason = "no clock fell and no throttle bit rose"
    return Sustained(
        seconds=seconds,
        cold_ms=process.first_ns / _MS,
        burst_ms=burst,
        burst_seconds=early,
        sustained_ms=sustained,
        sustained_seconds=seconds - late,
        slowdown=slowdown,
        throttled_after_s=throttled_after_s,
        slower_after_s=after,
        reason=reason or "",
    )


def settled(process: ProcessSamples) -> list[int]:
    """The samples of the last part of a sustained run, in ns."""
    seconds = len(process.kept)
    return _kept(process, _late(seconds), seconds)


def _late(seconds: int) -> int:
    """The second from which a run of so many counts as settled."""
    return min(seconds - 1, int(seconds * (1 - SETTLED_SHARE)))


def _kept(process: ProcessSamples, start: int, end: int) -> list[int]:
    """The samples kept from second ``start`` to ``end``."""
    before = sum(process.kept[:start])
    return process.samples_ns[before : before + sum(process.kept[start:end])]


def _median(samples: Sequence[int]) -> Bound:
    return stats.scaled(stats.quantile_interval([samples], 0.5), _MS)


def _slower_after(process: ProcessSamples) -> float | None:
    """The second from which the medians of seconds are more than half way from the burst to the settled level."""
    medians, at = [], 0
    for count in process.kept:
        medians.append(statistics.median(process.samples_ns[at : at + count]) if count else math.nan)
        at += count
    smooth = [statistics.median(medians[max(0, n - 2) : n + 3]) for n in range(len(medians))]
    half = (smooth[0] + statistics.median(settled(process))) / 2
    return next((float(n) for n, value in enumerate(smooth) if value > half), None)
