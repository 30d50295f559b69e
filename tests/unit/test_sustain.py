"""Regimes of made-up sustained runs whose truth is known."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from edgepipe import bench, measurement, ratios
from edgepipe.errors import UsageError
from edgepipe.record import Bound
from edgepipe.schema import ProcessSamples, RawRun, RunOptions, StateSample, Window

PLAN = bench.sustained(bench.plan("quick"), 120.0)


def run_of(slow_from: int, slower: float, clocks_fall: bool) -> RawRun:
    rng = random.Random(3)
    samples = [
        int(1e6 * rng.gauss(1, 0.01) * (slower if second >= slow_from else 1))
        for second in range(120)
        for _ in range(50)
    ]
    process = ProcessSamples(1, 5_000_000, 20, True, 1, samples, timed=Window(10, 130), kept=[50] * 120)
    states = [
        StateSample(at / 2, {"cpu": 60.0}, [1_200_000 if clocks_fall and at / 2 >= 10 + slow_from else 1_800_000])
        for at in range(264)
    ]
    return RawRun("null", "1", "", "", [process], states, 100.0)


def test_burst_sustained_and_the_time_to_throttle():
    found = measurement.conclude(run_of(60, 1.3, clocks_fall=True), PLAN, RunOptions())
    assert found.status == "throttled"
    seen = found.sustained
    assert seen is not None and seen.cold_ms == 5.0
    assert seen.burst_ms.value == pytest.approx(1.0, rel=0.01)
    assert seen.sustained_ms.value == pytest.approx(1.3, rel=0.01)
    assert seen.slowdown.low < 1.3 < seen.slowdown.high
    assert seen.throttled_after_s == pytest.approx(60, abs=3)
    assert seen.slower_after_s == pytest.approx(60, abs=2)


def test_a_board_that_keeps_its_pace_is_ok():
    found = measurement.conclude(run_of(0, 1.0, clocks_fall=False), PLAN, RunOptions())
    assert found.status == "ok" and found.sustained is not None
    assert found.sustained.throttled_after_s is None and found.sustained.reason
    assert found.sustained.slower_after_s is None
    assert found.sustained.slowdown.value == pytest.approx(1, abs=0.01)


def test_becoming_slower_without_a_fallen_clock_is_told_and_the_settled_level_counts():
    found = measurement.conclude(run_of(30, 1.2, clocks_fall=False), PLAN, RunOptions())
    assert found.status == "ok" and found.sustained.slower_after_s == pytest.approx(30, abs=2)
    late = measurement.conclude(run_of(100, 1.2, clocks_fall=False), PLAN, RunOptions())
    assert late.status == "unstable"


def test_too_short_to_be_sustained():
    with pytest.raises(UsageError, match="too short"):
        bench.sustained(bench.plan("quick"), 2.0)
    assert bench.sustained(bench.plan("quick"), 0.0) == bench.plan("quick")


def test_a_quotient_joins_both_intervals():
    one, other = Bound(2.0, 1.9, 2.1), Bound(1.0, 0.9, 1.1)
    found = ratios.quotient(one, other)
    assert found.value == 2.0 and 1.75 < found.low < 1.9 * 0.96 and 2.1 < found.high < 2.4
    assert ratios.quotient(replace(one, value=None, reason="none"), other).reason == "none"
    assert ratios.quotient(replace(one, low=None), other).low is None
