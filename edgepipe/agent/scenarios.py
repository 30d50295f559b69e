"""MLPerf's four ways to ask a model for answers, in the child: which queries come when, and what counts as their time.

The rules are those of MLPerf Inference (LoadGen, https://github.com/mlcommons/inference_policies): single-stream asks
again as soon as it has its answer; multi-stream does so with queries of eight samples; offline has all samples from the
start; a server is asked at random moments (a Poisson process), whether it is still busy or not.
"""

from __future__ import annotations

import random
import time
from array import array
from typing import Any, Callable, NamedTuple, Tuple

from edgepipe.agent import measure
from edgepipe.errors import UsageError
from edgepipe.schema import Plan

MULTI_STREAM = 8  # samples of a query
SINGLE, MULTI, OFFLINE, SERVER = NAMES = ("single-stream", "multi-stream", "offline", "server")
# Before an arrival the process sleeps up to this moment, and then looks at the clock: a sleep is late by some 0.1 ms.
_AWAKE_NS = 300_000
_SEED = 0


class Asked(NamedTuple):
    """Times of queries in ns, from when to when they were asked, samples of a query, and queries left over."""

    samples_ns: Any
    timed_ns: Tuple[int, int]
    of_query: int
    waiting: int = 0


def run(once: Callable[[], object], plan: Plan, batch: int, *, stop_at: int, most: int) -> Asked:
    """Ask for ``plan.min_seconds`` and ``plan.min_samples`` queries; ``once`` answers ``batch`` samples.

    Raises:
        UsageError: no such scenario, or one that this batch or rate does not fit.
    """
    bounds = {"stop_at": stop_at, "most": most}
    if plan.scenario in (SINGLE, OFFLINE):
        return Asked(*measure.timed_window(once, plan.min_seconds, plan.min_samples, **bounds), batch)
    if plan.scenario == MULTI:
        calls = range(calls_of_query(batch))

        def query() -> None:
            for _ in calls:
                once()

        return Asked(*measure.timed_window(query, plan.min_seconds, plan.min_samples, **bounds), MULTI_STREAM)
    if plan.scenario != SERVER:
        raise UsageError(f"no such scenario: {plan.scenario[:40]!r}", "plan", f"one of {', '.join(NAMES)}")
    if plan.rate <= 0:
        raise UsageError("nobody said how many queries arrive in a second", "plan", "--rate 20")
    return _server(once, plan, batch, **bounds)


def calls_of_query(batch: int) -> int:
    """How often the runtime is called for one query of multi-stream.

    Raises:
        UsageError: eight samples are no whole number of batches.
    """
    if MULTI_STREAM % batch:
        raise UsageError(f"a query of {MULTI_STREAM} samples is no whole number of batches of {batch}", "--batch")
    return MULTI_STREAM // batch


def _server(once: Callable[[], object], plan: Plan, batch: int, *, stop_at: int, most: int) -> Asked:
    """Queries that come whether or not the last one was answered; their time counts from when they came.

    They are answered in the order they came. What came within the time and was not begun at its end is left over: a
    board that can't keep up would otherwise run for ever.
    """
    clock, sleep = time.perf_counter_ns, time.sleep
    gap = random.Random(_SEED).expovariate  # noqa: S311 - arrivals that can be repeated, no secret
    rate = plan.rate / 1e9  # queries in a ns
    samples = array("q")
    due = began = now = clock()
    end = min(began + int(plan.min_seconds * 1e9), stop_at)
    while True:
        due += int(gap(rate))
        if due >= end and (len(samples) >= plan.min_samples or due >= stop_at):
            return Asked(samples, (began, max(now, min(end, due))), batch)
        now = clock()
        if (now >= end and len(samples) >= plan.min_samples) or now >= stop_at or len(samples) >= most:
            return Asked(samples, (began, now), batch, _between(due, now, gap, rate))
        if due - now > _AWAKE_NS:
            sleep((due - now - _AWAKE_NS) / 1e9)
        while now < due:
            now = clock()
        once()
        now = clock()
        samples.append(now - due)


def _between(due: int, end: int, gap: Callable[[float], float], rate: float) -> int:
    """How many queries of the schedule came from ``due`` on until ``end``."""
    count = 0
    while due < end:
        count, due = count + 1, due + int(gap(rate))
    return count
