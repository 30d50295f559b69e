"""What planning costs and what sick boards cost the others, on boards that are not there.

The planner's own thread is timed, and how that grows with the number of boards.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from pathlib import Path

import pytest

from edgepipe.fleet import schedule
from tests import fleet_kit as kit
from tests.bench.figure import Figure, at_least, at_most

SIZES = (100, 300, 1000)
LARGE = (100, 1000, 10_000)  # with BOARDS=10000; takes several minutes


def figures(folder: Path) -> list[Figure]:
    """Planner milliseconds a trial (CPU of its thread, the journal's flushes included), their growth, and a resume."""
    os.environ["EDGEPIPE_HOME"] = str(folder / "home")
    kit.run(kit.request(kit.members(1), plan=kit.short(0)))  # the file is made, so that no run pays for it
    sizes = LARGE if os.environ.get("BOARDS") == str(LARGE[-1]) else SIZES
    spent = {count: _planned(count) for count in sizes}
    each = {count: 1e3 * seconds / count for count, seconds in spent.items()}
    told = ", ".join(f"{count}: {value:.2f} ms" for count, value in each.items())
    began = time.process_time()
    kit.resume("")
    resumed = time.process_time() - began
    return [
        *_sick(),
        at_most("fleet: planner, a trial", each[sizes[-1]], 1.0, "ms", f"({told})"),
        at_most("fleet: growth of that cost, most to least", max(each.values()) / min(each.values()), 2.0),
        _fit(spent),
        at_most(f"fleet: resume of {sizes[-1]} trials, all done", resumed, 1.0 + 1e-3 * sizes[-1], "s of CPU"),
    ]


def _sick() -> list[Figure]:
    """A fifth of a hundred boards crash, hang, flap or lie: what becomes of the others, and how long it takes."""
    how = ("crash", "hang", "flap", "lie")
    with pytest.MonkeyPatch.context() as patch:
        kit.infect(patch, {})
        found = kit.beside_the_healthy(patch, how, rounds=10, turns=2)
        kit.infect(patch, {})
    told = f"({found.sick} of {found.sick + found.others} {', '.join(how)})"
    return [
        at_least("fleet: a fifth sick, others done", 100 * found.done / found.others, 100.0, "%", told),
        at_most("fleet: a fifth sick, wall beside all healthy", found.ratio, 1.2, "x", told),
    ]


def _planned(count: int) -> float:
    """CPU seconds of the planner's thread for so many boards of one trial each."""
    spent: list[float] = []
    real = schedule.Schedule.run

    def run(self: schedule.Schedule) -> None:
        began = time.thread_time()
        real(self)
        spent.append(time.thread_time() - began)

    schedule.Schedule.run = run  # type: ignore[method-assign]
    try:
        outcome = kit.run(kit.request(kit.members(count), plan=kit.short(0)), parallel=32)
    finally:
        schedule.Schedule.run = real  # type: ignore[method-assign]
    assert outcome.document["done"] == count
    return spent[0]


def _fit(spent: dict[int, float]) -> Figure:
    """The exponent k of cost = c * boards^k, by least squares on the logarithms, beside the straight line in ms."""
    line = statistics.linear_regression(list(spent), [1e3 * seconds for seconds in spent.values()])
    power = statistics.linear_regression(list(map(math.log, spent)), list(map(math.log, spent.values())))
    told = f"({line.intercept:+.0f} ms {line.slope:+.2f} ms a board)"
    return at_most("fleet: exponent of cost = c * boards^k", power.slope, 1.1, "", told)
