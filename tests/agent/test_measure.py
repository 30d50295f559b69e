"""The measuring loop and the end of the warm-up, on series whose truth is known."""

import gc
import os
import random
import time
from types import SimpleNamespace

import pytest

from edgepipe import measurement
from edgepipe.agent import measure
from edgepipe.agent.preprocess import prepare
from edgepipe.agent.rules import Links, activated, collectable, rolled_back
from edgepipe.agent.text import clean
from edgepipe.codec import from_dict
from edgepipe.errors import BoardError
from edgepipe.schema import Plan, Preprocessing, RawRun, RunOptions


def noisy(source, level, count, spread=0.02):
    """Latencies as they look: a normal body and a tail of slow ones."""
    return [int(level * (1 + source.gauss(0, spread)) * (5 if source.random() < 0.02 else 1)) for _ in range(count)]


def test_steady_noise_is_called_steady():
    source = random.Random(1)
    wrong = sum(measure.change_point(noisy(source, 1e6, 300)) is not None for _ in range(300))
    assert wrong <= 6, wrong


@pytest.mark.parametrize("shift", [0.9, 1.1, 1.5])
def test_a_change_of_level_is_found_where_it_is(shift):
    source = random.Random(2)
    found = [measure.change_point(noisy(source, 1e6, 200) + noisy(source, shift * 1e6, 200)) for _ in range(50)]
    assert sum(at is not None and 170 <= at <= 230 for at in found) >= 48


def test_a_change_too_small_to_matter_is_none():
    source = random.Random(3)
    series = noisy(source, 1e6, 3000, 0.001) + noisy(source, 1.01e6, 3000, 0.001)
    assert measure.change_point(series) is None


def test_twenty_values_are_enough_to_see_a_change():
    assert measure.change_point([100] * 10 + [80] * 10) == 10
    assert measure.change_point([100] * 20) is None and measure.change_point([5]) is None


class Model:
    """Takes ``slow`` seconds for the first runs, ``fast`` afterwards."""

    def __init__(self, slow, fast, until):
        self.slow, self.fast, self.until, self.runs = slow, fast, until, 0

    def __call__(self):
        self.runs += 1
        self.spend(self.slow if self.runs <= self.until else self.fast)

    def spend(self, seconds):
        time.sleep(seconds)


@pytest.fixture
def virtual(monkeypatch):
    """A clock that only models move on, so that a busy machine changes nothing."""

    class Virtual(Model):
        now, noise = 0, random.Random(4)

        def spend(self, seconds):
            Virtual.now += int(seconds * self.noise.gauss(1, 0.02) * 1e9)

    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter_ns=lambda: Virtual.now))
    return Virtual


def test_the_warm_up_waits_for_the_slow_start_to_end(virtual):
    model = virtual(0.006, 0.003, 60)
    done = measure.warm_up(model, Plan(warmup_seconds=0.4, warmup_cap_seconds=10))
    assert done.steady and done.runs == model.runs and done.runs > 110


def test_a_series_that_is_steady_from_the_start_is_not_waited_for(virtual):
    done = measure.warm_up(virtual(0, 0.003, 0), Plan(warmup_seconds=0.4, warmup_cap_seconds=10))
    assert done.steady and virtual.now == pytest.approx(0.4e9, rel=0.02)


def test_the_warm_up_gives_up_at_its_cap(virtual):
    class Drift(virtual):
        def __call__(self):
            self.runs += 1
            self.spend(0.001 * 1.005**self.runs)

    done = measure.warm_up(Drift(0, 0, 0), Plan(warmup_seconds=0.2, warmup_cap_seconds=1.0))
    assert not done.steady and virtual.now == pytest.approx(1.0e9, rel=0.02)


def test_seconds_and_runs_are_both_reached():
    few = Model(0, 0.02, 0)
    done = measure.warm_up(few, Plan(warmup_seconds=0.05, warmup_runs=20))
    assert done.runs >= 20
    assert len(measure.timed(lambda: None, 0.05, 5, stop_at=None, most=10**9)) > 5
    assert len(measure.timed(Model(0, 0.001, 0), 0.0, 7, stop_at=None, most=100)) == 7
    assert len(measure.timed(lambda: None, 10, 5, stop_at=None, most=50)) == 50
    late = time.perf_counter_ns() + 50_000_000
    assert 1 <= len(measure.timed(Model(0, 0.01, 0), 10, 5, stop_at=late, most=50)) <= 6
    assert len(measure.timed(lambda: None, 1, 1, stop_at=0, most=5)) == 1


def test_the_loop_adds_little_and_leaves_the_collector_as_it_was():
    gc.enable()
    seen = []
    measure.timed(lambda: seen.append(gc.isenabled()), 0, 5, stop_at=None, most=5)
    assert seen == [False] * 5 and gc.isenabled()
    assert 0 <= measure.timer_overhead_ns(lambda: None) < 20_000
    samples = measure.timed(Model(0, 0.005, 0), 0, 20, stop_at=None, most=20)
    assert 5_000_000 <= sorted(samples)[10] < 7_000_000


WALL = """
import time
_began = time.time()
time.time = lambda: _began - 3600 * time.monotonic()
"""
BROKEN = """
import time
_real = time.perf_counter_ns
_calls = [0]
def _jumping():
    _calls[0] += 1
    return _real() - 20_000_000 * (_calls[0] // 501)
time.perf_counter_ns = _jumping
"""


@pytest.mark.parametrize(("clock", "says"), [(WALL, ""), (BROKEN, "clock went backwards")])
def test_a_wall_clock_that_goes_backwards_changes_nothing_and_a_broken_one_is_told(start, tools, tmp_path, clock, says):
    """The wall clock of a board without a battery jumps when the network tells it the time; the other one must not."""
    (tmp_path / "sitecustomize.py").write_text(clock)
    agent = start(env={**os.environ, "PYTHONPATH": str(tmp_path)})
    manifest, content = tools.null(sleep=0.001)
    agent.push(content)
    plan = Plan(processes=2, min_seconds=2.5, min_samples=20, warmup_seconds=0.1, warmup_cap_seconds=1.0)
    if says:
        error = agent.bad("bench", manifest=manifest, plan=plan, options=RunOptions())
        assert error["kind"] == "BoardError" and says in error["what"] and "clocksource" in error["fix"]
    else:
        raw = from_dict(RawRun, agent.bench(manifest, plan))
        found = measurement.conclude(raw, plan, RunOptions())
        assert found.status in {"ok", "unstable"} and 1 < found.latency_ms.p50.value < 20
        assert [state.at for state in raw.states] == sorted(state.at for state in raw.states)
    assert agent.good("status")["lock"] is None


def test_preprocessing_is_the_formula_in_every_layout():
    import numpy as np

    raw = np.random.RandomState(0).randint(0, 256, (2, 4, 5, 3)).astype(np.uint8)
    pre = Preprocessing("NCHW", "float32", [0, 255], 1 / 255, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7], "BGR")
    wanted = ((raw / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7])[..., ::-1].transpose(0, 3, 1, 2)
    out = prepare(raw, pre, "NHWC")
    assert out.dtype == np.float32 and out.flags.c_contiguous
    np.testing.assert_allclose(out, wanted, atol=1e-6)
    np.testing.assert_allclose(prepare(raw.transpose(0, 3, 1, 2), pre, "NCHW"), wanted, atol=1e-6)
    assert prepare(raw[..., 0], Preprocessing("NCHW"), "NHW").shape == (2, 1, 4, 5)
    assert prepare(raw[..., 0], Preprocessing("NHWC"), "NHW").shape == (2, 4, 5, 1)
    tokens = np.array([[1, 2**40]], np.int64)
    assert (prepare(tokens, Preprocessing(dtype="int64"), "") == tokens).all()
    clipped = prepare(np.array([[-3.0, 1.6, 300.0]]), Preprocessing(dtype="uint8"), "")
    assert clipped.tolist() == [[0, 2, 255]] and clipped.dtype == np.uint8


def test_rules_of_releases():
    links = activated(activated(Links(), "a"), "b")
    assert links == Links("b", "a") and activated(links, "b") == links
    assert rolled_back(links) == Links("a", "b")
    assert Links("a", "a") == Links("a", None)
    for none in (Links(), Links("a")):
        with pytest.raises(BoardError):
            rolled_back(none)
    assert collectable(links, frozenset("abc.")) == {"c", "."}


def test_text_of_a_board_is_one_printable_line():
    assert clean("a\x1b[31mb\x00c\r\nd\u202ee\x1b]8;;http://x\x07f") == "a b c d e f"
    assert clean("x" * 50, 10) == "x" * 7 + "..." and clean("x" * 49 + "y", 10, tail=True) == "...xxxxxxy"
