"""Coverage of the intervals and false alarms, by simulation with fixed seeds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from statistics import NormalDist

import pytest

from edgepipe import stats


def exponential(rng: random.Random) -> float:
    return rng.expovariate(1)


def normal(rng: random.Random) -> float:
    return rng.gauss(10, 1)


def bimodal(rng: random.Random) -> float:
    return rng.gauss(10, 1) if rng.random() < 0.7 else rng.gauss(20, 1)


def bimodal_quantile(q: float) -> float:
    low, high = 0.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        if 0.7 * NormalDist(10, 1).cdf(middle) + 0.3 * NormalDist(20, 1).cdf(middle) < q:
            low = middle
        else:
            high = middle
    return low


SHAPES: list[tuple[Callable[[random.Random], float], Callable[[float], float]]] = [
    (exponential, lambda q: -math.log(1 - q)),
    (normal, NormalDist(10, 1).inv_cdf),
    (bimodal, bimodal_quantile),
]


@pytest.mark.parametrize(
    ("quantile", "least"), [(0.5, 11), (0.9, 64), (0.95, 130), (0.97, 219), (0.99, 662), (0.999, 6636)]
)
def test_least_samples_are_those_of_mlperf(quantile, least):
    assert stats.minimum_samples(quantile) == least


def test_a_percentile_of_too_few_samples_is_null_with_a_reason():
    found = stats.quantile_interval([[1.0] * 129], 0.95)
    assert (found.value, found.low, found.high) == (None, None, None)
    assert "130" in found.reason and "129" in found.reason
    assert stats.quantile_interval([[1.0] * 130], 0.95).value == 1.0
    assert stats.quantile_interval([], 0.5).value is None


def test_a_percentile_is_a_value_that_was_seen():
    assert stats.percentile([1, 2, 3, 4], 0.5) == 2
    assert stats.percentile(list(range(1, 101)), 0.9) == 90
    assert stats.percentile(list(range(1, 11)), 0.99) == 10
    assert stats.percentile([5], 0.01) == 5


@pytest.mark.parametrize(("n", "quantile"), [(11, 0.5), (64, 0.9), (130, 0.95), (200, 0.5), (662, 0.99)])
def test_ranks_hold_exactly_the_binomial_probability(n, quantile):
    """The probability is summed here with exact binomials; the ranks must be the tightest ones."""
    low, high = stats.interval_ranks(n, quantile)
    assert low and high

    def upto(k: int) -> float:
        return math.fsum(math.comb(n, i) * quantile**i * (1 - quantile) ** (n - i) for i in range(k + 1))

    assert upto(low - 1) <= 0.025 < upto(low)
    assert 1 - upto(high - 1) <= 0.025 < 1 - upto(high - 2)


def test_ranks_of_very_many_samples_are_right_and_quick():
    low, high = stats.interval_ranks(1_000_000, 0.5)
    assert low and high
    assert low == pytest.approx(500_000 - 980, abs=2) and high == pytest.approx(500_000 + 980, abs=3)


# Ranks are whole numbers, so an interval of few samples holds more than 95 %; here it is 95.2 %.
SAMPLES = 231


@pytest.mark.parametrize(("draw", "truth"), SHAPES)
@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("quantile", [0.5, 0.9])
def test_the_interval_holds_the_percentile_95_times_of_100(draw, truth, processes, quantile):
    rng, wanted, hits = random.Random(11), truth(quantile), 0
    for _ in range(1000):
        groups = [[draw(rng) for _ in range(SAMPLES // processes)] for _ in range(processes)]
        found = stats.quantile_interval(groups, quantile)
        hits += found.low is not None and found.low <= wanted <= found.high
    assert 930 <= hits <= 970


def test_the_interval_holds_the_percentile_where_calls_resemble_their_neighbours():
    rng, hits = random.Random(5), 0
    for _ in range(200):
        groups = []
        for _ in range(3):
            x, group = rng.gauss(0, 1 / math.sqrt(1 - 0.64)), []
            for _ in range(300):
                x = 0.8 * x + rng.gauss(0, 1)
                group.append(10 + x)
            groups.append(group)
        found = stats.quantile_interval(groups, 0.5)
        hits += found.low is not None and found.low <= 10 <= found.high
    assert hits >= 180


@pytest.mark.parametrize("spread", [0.1, 0.5, 2.0])
def test_the_interval_holds_the_percentile_where_processes_differ(spread):
    rng, hits = random.Random(6), 0
    for _ in range(300):
        centres = [rng.gauss(10, spread) for _ in range(5)]
        groups = [[rng.gauss(centre, 1) for _ in range(150)] for centre in centres]
        found = stats.quantile_interval(groups, 0.5)
        hits += found.low <= 10 <= found.high
    assert hits >= 0.88 * 300


def test_the_interval_spans_the_medians_of_processes_that_differ():
    rng = random.Random(1)
    groups = [[rng.gauss(centre, 0.1) for _ in range(200)] for centre in (10, 11, 12)]
    found = stats.quantile_interval(groups, 0.5)
    assert found.low <= 10.02 and found.high >= 11.98
    assert found.low >= min(map(min, groups)) and found.high <= max(map(max, groups))


def test_samples_that_repeat_each_other_are_worth_less():
    rng = random.Random(2)
    alone = [rng.random() for _ in range(400)]
    assert stats.effective_samples([alone], 0.5) == 400
    tenfold = [value for value in alone for _ in range(10)]
    assert 250 <= stats.effective_samples([tenfold], 0.5) <= 550


def test_lag_1_autocorrelation_of_known_series():
    rng = random.Random(3)
    assert stats.autocorrelation([1.0, -1.0] * 500)[1] == pytest.approx(-1, abs=0.01)
    assert stats.autocorrelation([4.0] * 50)[1] == 0
    assert stats.autocorrelation([])[1] == 0
    x, series = 0.0, []
    for _ in range(20_000):
        x = 0.7 * x + rng.gauss(0, 1)
        series.append(x)
    assert stats.autocorrelation(series)[1:4] == pytest.approx([0.7, 0.49, 0.343], abs=0.03)


def test_outliers_follow_hyperfine_and_the_clocks_grain_is_none():
    samples = [100.0 + i % 5 for i in range(100)]  # median 102, MAD 1
    assert stats.outliers([*samples, 116.0]) == []
    assert stats.outliers([*samples, 118.0, 80.0]) == [100, 101]
    assert stats.outliers([1000.0] * 50 + [1001.0]) == []
    assert stats.outliers([1000.0] * 50 + [1100.0]) == [50]
    assert stats.outliers([]) == []


@pytest.mark.parametrize("draw", [shape[0] for shape in SHAPES])
@pytest.mark.parametrize("n", [20, 150, 900])
def test_a_series_without_order_shows_a_change_less_than_5_times_of_100(draw, n):
    rng = random.Random(n)
    alarms = sum(stats.change([draw(rng) for _ in range(n)]).probability < 0.05 for _ in range(300))
    assert alarms <= 0.05 * 300 + 3


@pytest.mark.parametrize(
    ("level", "start", "end"),
    [(lambda i: 1.1 if i >= 300 else 1.0, 300, 500), (lambda i: 1.1 if 200 <= i < 350 else 1.0, 200, 350)],
    ids=["a step", "a phase that comes and goes"],
)
def test_a_change_is_found_where_it_is(level, start, end):
    rng = random.Random(9)
    found = stats.change([level(i) * (1 + rng.expovariate(40)) for i in range(500)])
    assert found.probability < 1e-6
    if found.shift < 0:  # the quicker part was named
        found = stats.Change(found.end, 500, -found.shift, found.probability)
    assert abs(found.start - start) <= 15 and abs(found.end - end) <= 15
    assert found.shift == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.8, 0.9])
@pytest.mark.parametrize("n", [231, 700])
def test_calls_that_resemble_their_neighbours_are_no_change(rho, n):
    rng = random.Random(n)
    alarms = sum(stats.change(_alike(rng, n, rho)).probability < 0.05 for _ in range(200))
    assert alarms <= 0.05 * 200 + 10
    step = [value * (1.1 if at > 350 else 1) for at, value in enumerate(_alike(rng, 700, rho))]
    assert stats.change(step).probability < 0.05


def _alike(rng, n, rho):
    """A first-order autoregression about 1 with a standard deviation of 2 %."""
    values, x = [], rng.gauss(0, 0.02)
    for _ in range(n):
        x = rho * x + rng.gauss(0, 0.02 * math.sqrt(1 - rho**2))
        values.append(1 + x)
    return values


def test_a_slow_drift_is_a_change_and_a_constant_is_none():
    rng = random.Random(4)
    drift = stats.change([1 + i / 2000 + rng.gauss(0, 0.02) for i in range(600)])
    assert drift.probability < 1e-6 and abs(drift.shift) > 0.1
    assert stats.change([1.0] * 600).probability == 1.0
    assert stats.change([1.0] * 9) is None
