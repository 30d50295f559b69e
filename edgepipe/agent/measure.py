"""Timing, in the child: warm up until the series is steady, then a loop with nothing in it but the clock and the model.

Standard library only: the boards' numpy is the runtime's own affair.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from array import array
from dataclasses import dataclass
from typing import Any, Callable, List, Optional, Sequence, Tuple

from edgepipe.schema import Plan

# A shift smaller than this is not called a change of the series, however sure it is: the same 2 % within which
# two tools that measure the same file are said to agree.
SHIFT = 0.02
# Chance of calling a steady series unsteady, for each look at it.
ALPHA = 0.01
_BLOCKS = 64
_KEEP = 100_000
# With fewer than 15 values the test below can't reach ALPHA, whatever they are.
_FEWEST = 20
_NS = 1_000_000_000


@dataclass(frozen=True)
class WarmUp:
    """How many runs the warm-up took, and whether the series was steady at its end."""

    runs: int
    steady: bool


def warm_up(once: Callable[[], object], plan: Plan) -> WarmUp:
    """Run until at least ``warmup_seconds`` and ``warmup_runs`` are over and the recent window has no change point.

    The recent window is the latter half of all runs, 20 at least.
    At ``warmup_cap_seconds`` it gives up: steady is False.
    """
    series = array("q")
    runs, began = 0, time.perf_counter_ns()
    look_at = began + int(plan.warmup_seconds * _NS)
    cap = began + int(max(plan.warmup_cap_seconds, plan.warmup_seconds) * _NS)
    while True:
        fresh = timed_until(once, min(look_at, cap))
        runs += len(fresh)
        series.extend(fresh)
        now = time.perf_counter_ns()
        enough = now >= look_at and runs >= plan.warmup_runs
        if enough:
            if change_point(series[min(len(series) // 2, max(0, len(series) - _FEWEST)) :]) is None:
                return WarmUp(runs, steady=True)
            look_at = now + int(0.5 * plan.warmup_seconds * _NS)
        elif now >= look_at:
            look_at = now + 1
        if now >= cap:
            return WarmUp(runs, steady=False)
        if len(series) > 2 * _KEEP:
            del series[:_KEEP]


def timed_until(once: Callable[[], object], end_ns: int) -> Any:
    """Durations in ns of as many runs as fit before ``end_ns`` on the perf_counter, one at least, `_KEEP` at most."""
    return timed(once, max(0, end_ns - time.perf_counter_ns()) / _NS, 1, stop_at=end_ns, most=_KEEP)


def timed(once: Callable[[], object], seconds: float, count: int, *, stop_at: Optional[int], most: int) -> Any:
    """Durations in ns of runs, over at least ``seconds`` and ``count`` runs: an ``array('q')``.

    It ends early, after one run at least, at ``stop_at`` (ns of perf_counter, a deadline) or after ``most`` runs.
    """
    return timed_window(once, seconds, count, stop_at=stop_at, most=most)[0]


def timed_window(
    once: Callable[[], object], seconds: float, count: int, *, stop_at: Optional[int], most: int
) -> Tuple[Any, Tuple[int, int]]:
    """The same, and when the first run began and the last one ended, in ns of perf_counter."""
    clock = time.perf_counter_ns
    samples = array("q")
    keep = samples.append
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        began = stop = clock()
        end = began + int(seconds * _NS)
        last = math.inf if stop_at is None else stop_at
        done = 0
        while not done or ((stop < end or done < count) and stop < last and done < most):
            start = clock()
            once()
            stop = clock()
            keep(stop - start)
            done += 1
    finally:
        if collecting:
            gc.enable()
    return samples, (began, stop)


def sustained(
    once: Callable[[], object], seconds: float, *, stop_at: int, most: int
) -> Tuple[Any, Tuple[int, int], List[int]]:
    """Runs without a pause over ``seconds``, and how many samples were kept of each second of them.

    The first calls of a second are kept, ``most`` in all; the others are run alike, so that the board gets no rest.
    """
    clock = time.perf_counter_ns
    share = max(1, int(most / max(seconds, 1.0)))
    samples, kept = array("q"), []  # type: Any, List[int]
    began = stop = clock()
    end = min(began + int(seconds * _NS), stop_at)
    while stop < end:
        due = min(stop + _NS, end)
        fresh, (_, stop) = timed_window(once, 1.0, 1, stop_at=due, most=share)
        samples.extend(fresh)
        kept.append(len(fresh))
        while stop < due:
            once()
            stop = clock()
    return samples, (began, stop), kept


def timer_overhead_ns(empty: Callable[[], object]) -> float:
    """The median of what the loop above measures for a call that does nothing, in ns."""
    return float(statistics.median(timed(empty, 0.0, 2000, stop_at=None, most=2000)))


def change_point(series: Sequence[int]) -> Optional[int]:
    """The index before which the series was at another level, or None if it is steady.

    Pettitt's rank test (A. N. Pettitt, "A non-parametric approach to the change-point problem", Applied Statistics 28,
    1979: p ~ 2 exp(-6 K^2 / (n^3 + n^2))) on at most 64 block medians, so that single outliers don't count.
    A sure shift of the median of less than `SHIFT` is not one.
    """
    size = max(1, len(series) // _BLOCKS)
    blocks = [statistics.median(series[i : i + size]) for i in range(0, len(series) - size + 1, size)]
    count = len(blocks)
    ranks = _ranks(blocks)
    total, best, at = 0.0, 0.0, 0
    for index in range(count - 1):
        total += ranks[index]
        reach = abs(2 * total - (index + 1) * (count + 1))
        if reach > best:
            best, at = reach, index + 1
    if not at or 2 * math.exp(-6 * best**2 / (count**3 + count**2)) > ALPHA:
        return None
    before, after = statistics.median(blocks[:at]), statistics.median(blocks[at:])
    return at * size if abs(after - before) > SHIFT * min(before, after) else None


def _ranks(values: List[float]) -> List[float]:
    """Ranks from 1, equal values sharing their mean rank."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    first = 0
    while first < len(order):
        last = first
        while last + 1 < len(order) and values[order[last + 1]] == values[order[first]]:
            last += 1
        for index in order[first : last + 1]:
            ranks[index] = (first + last) / 2 + 1
        first = last + 1
    return ranks


def memory_peak_bytes() -> Optional[int]:
    """The most memory this process held at any time (VmHWM), in bytes."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
