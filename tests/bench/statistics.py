"""Whether intervals, verdicts and energies can be believed: runs whose truth is known, and what looking on costs."""

from __future__ import annotations

import math
import random
import statistics
import subprocess
import sys
import time
from bisect import bisect
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from statistics import NormalDist

from edgepipe import energy, measurement, stats
from edgepipe.agent.state import Sampler
from tests.bench.figure import Figure, at_most
from tests.unit import power_kit
from tests.unit.report_samples import OPTIONS, PLAN, raw

RUNS, PROCESSES, CALLS = 1000, 3, 231
LOW, HIGH = 0.93, 0.97  # of an interval of 95 %
_RHO = 0.8  # how far a call resembles the one before it, where calls do
# Calls of half a millisecond in a process of its own, as the board's child is; it says when each of them ended.
_CALLS = """
import time
from array import array
ends, clock = array("q"), time.monotonic_ns
until = clock() + %d
while clock() < until:
    sum(range(40_000))
    ends.append(clock())
print(*ends)
"""
_TURNS, _TURN = 40, 1.0  # with and without the sampler, and s of each

Draw = Callable[[random.Random], list[float]]


def figures(_folder: Path) -> list[Figure]:
    """Coverage and verdicts over simulated runs, energy of a replayed meter, cost of the sampler."""
    return [*_coverage(), *_verdicts(), *_energies(), _sampler()]


def _groups(draw: Draw, rng: random.Random) -> list[list[float]]:
    return [draw(rng) for _ in range(PROCESSES)]


def _even(rng: random.Random) -> list[float]:
    """Independent calls with the long right tail of latencies, median 10."""
    return [10 * rng.lognormvariate(0, 0.05) for _ in range(CALLS)]


def _bimodal(rng: random.Random) -> list[float]:
    """Independent calls, three in ten of which take a slower path."""
    return [(10 if rng.random() < 0.7 else 11) * rng.lognormvariate(0, 0.01) for _ in range(CALLS)]


def _alike(rng: random.Random) -> list[float]:
    """Calls that resemble the one before: an AR(1) process on the logarithms, median 10."""
    values, x = [], rng.gauss(0, 0.02)
    for _ in range(CALLS):
        x = _RHO * x + rng.gauss(0, 0.02 * math.sqrt(1 - _RHO**2))
        values.append(10 * math.exp(x))
    return values


def _drifting(rng: random.Random) -> list[float]:
    """Independent calls that end a fifth slower than they began."""
    return [value * (1 + 0.2 * at / CALLS) for at, value in enumerate(_even(rng))]


def _stepped(rng: random.Random) -> list[float]:
    """Independent calls that turn slower by an eighth at some point of the middle."""
    at = rng.randrange(CALLS // 5, 4 * CALLS // 5)
    return [value * 1.125 if i >= at else value for i, value in enumerate(_even(rng))]


def _coverage() -> Iterator[Figure]:
    """How often the 95 % interval of p50 and p90 holds the truth, in percent of `RUNS`."""
    z = NormalDist().inv_cdf(0.9)
    truths = {
        "independent calls": (_even, {0.5: 10.0, 0.9: 10 * math.exp(0.05 * z)}),
        "two modes": (_bimodal, {0.5: _bimodal_truth(0.5), 0.9: _bimodal_truth(0.9)}),
        "calls like their neighbours": (_alike, {0.5: 10.0, 0.9: 10 * math.exp(0.02 * z)}),
    }
    for name, (draw, wanted) in truths.items():
        for quantile, truth in wanted.items():
            share = _holding(draw, quantile, truth)
            asked = f"{LOW:.0%} to {HIGH:.0%}"
            yield Figure(f"95 % interval of p{quantile * 100:g}, {name}", asked, f"{share:.1%}", LOW <= share <= HIGH)


def _holding(draw: Draw, quantile: float, truth: float) -> float:
    """The share of runs whose interval holds the truth."""
    rng, hits = random.Random(11), 0
    for _ in range(RUNS):
        found = stats.quantile_interval(_groups(draw, rng), quantile)
        hits += found.low is not None and found.high is not None and found.low <= truth <= found.high
    return hits / RUNS


def _bimodal_truth(quantile: float) -> float:
    """The quantile of `_bimodal`, by bisection of its distribution function."""
    normal = NormalDist()

    def below(x: float) -> float:
        return sum(w * normal.cdf(math.log(x / centre) / 0.01) for w, centre in ((0.7, 10), (0.3, 11)))

    low, high = 9.0, 12.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < quantile else (low, middle)
    return low


def _verdicts() -> Iterator[Figure]:
    """False alarms on quiet runs, and runs called ok that were not."""
    for name, draw in (("independent calls", _even), ("two modes", _bimodal), ("calls like their neighbours", _alike)):
        yield at_most(f"false alarms, {name}", 100 - 100 * _called_ok(draw), 5, "% of runs")
    for name, draw in (("a drift of 20 %", _drifting), ("a step of 12.5 %", _stepped)):
        yield at_most(f'false "ok", {name}', 100 * _called_ok(draw), 1, "% of runs")


def _called_ok(draw: Draw) -> float:
    rng, fine = random.Random(5), 0
    for _ in range(RUNS):
        samples = [[int(value * 1e6) for value in group] for group in _groups(draw, rng)]
        fine += measurement.conclude(raw(samples), PLAN, OPTIONS).status == "ok"
    return fine / RUNS


def _energies() -> Iterator[Figure]:
    """The worst of 200 runs at a replayed meter whose truth is known."""
    gross = power_kit.LOAD_W * power_kit.CALL_S * 1e3
    net = (power_kit.LOAD_W - power_kit.IDLE_W) * power_kit.CALL_S * 1e3
    found = [energy.conclude(power_kit.run(seed, seconds=60.0, processes=5)).energy for seed in range(200)]
    errors = [abs((each.gross or 0) / gross - 1) for each in found]
    yield at_most("energy of an inference, replayed meter", 100 * max(errors), 1, "% off", "(worst of 200)")
    errors = [abs((each.net or 0) / net - 1) for each in found]
    yield at_most("the same, net of idle", 100 * max(errors), 2, "% off", "(worst of 200)")


def _sampler() -> Figure:
    """How much fewer calls a process makes in turns with the sampler of the board's state beside it.

    It is one process throughout: from one to the next, medians differ by more than what is looked for.
    """
    seconds = (2 * _TURNS + 4) * _TURN
    argv = [sys.executable, "-c", _CALLS % int(seconds * 1e9)]
    turns: list[tuple[int, int]] = []
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        time.sleep(3 * _TURN)  # it starts
        for at in range(2 * _TURNS):
            with nullcontext() if at % 2 else Sampler():  # it looks at once, and at its end: outside the turn
                began = time.monotonic_ns()
                time.sleep(_TURN)
                turns.append((began, time.monotonic_ns()))
        ends = [int(end) for end in child.communicate()[0].split()]
    rates = [(bisect(ends, end) - bisect(ends, began)) / (end - began) * 1e9 for began, end in turns]
    pairs = [without / with_it for with_it, without in zip(rates[::2], rates[1::2], strict=True)]
    found = statistics.median(pairs)
    detail = f"({statistics.median(rates[::2]):.1f} / {statistics.median(rates[1::2]):.1f} calls a second)"
    return at_most("sampler's cost on the timed run", 100 * (found - 1), 0.5, "%", detail)
