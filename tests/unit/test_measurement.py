"""From raw runs to verdicts: what must be flagged is, what is quiet stays quiet, and a null has its reason."""

from __future__ import annotations

import gzip
import random
import statistics
from dataclasses import replace

import pytest

from edgepipe import codec, measurement
from edgepipe.errors import EdgepipeError, IntegrityError
from edgepipe.record import Measurement
from edgepipe.schema import Caution
from tests.unit.report_samples import OPTIONS, PLAN, process, raw, states, steady


def codes(run: Measurement) -> set[str]:
    return {caution.code for caution in run.warnings}


def test_a_steady_run_is_ok_and_its_figures_are_those_of_the_samples():
    groups = steady(random.Random(1), 2.0)
    bits = states(50.0, bits=[0] * 20)
    run = measurement.conclude(raw(groups, states=bits), PLAN, OPTIONS)
    samples = sorted(value for group in groups for value in group)
    assert run.status == "ok" and codes(run) == set()
    assert (run.samples, run.processes, run.threads, run.profile) == (1200, 3, 1, "quick")
    assert run.latency_ms.p50.value == samples[599] / 1e6
    assert run.latency_ms.p99.value == samples[1187] / 1e6
    assert run.latency_ms.p50.low <= run.latency_ms.p50.value <= run.latency_ms.p50.high
    assert run.latency_ms.mean == pytest.approx(statistics.fmean(samples) / 1e6)
    assert run.latency_ms.max == samples[-1] / 1e6
    assert run.throughput_per_s == pytest.approx(1200 / (sum(samples) / 1e9))
    assert (run.load_ms, run.first_ms, run.memory_peak_bytes) == (50.0, 9.0, 41_000_000)
    assert run.timer_overhead_us == 0.9
    assert run.thermal.before_c == 50.0 and run.thermal.max_c == pytest.approx(51.9)
    assert run.thermal.throttled is False
    assert run.power.mean_w is None and run.power.reason == "no meter"
    assert run.energy_mj.gross is None and run.energy_mj.reason == "no meter"
    assert codec.from_dict(Measurement, codec.to_dict(run)) == run


def test_short_runs_give_no_high_percentiles():
    run = measurement.conclude(raw(steady(random.Random(2), calls=30)), PLAN, OPTIONS)
    assert run.latency_ms.p90.value is not None
    assert run.latency_ms.p95.value is None and "130" in run.latency_ms.p95.reason
    assert run.latency_ms.p99.value is None and "662" in run.latency_ms.p99.reason
    assert "few_samples" in codes(run)


def test_throughput_counts_every_sample_of_a_batch():
    data = raw([])
    data = replace(data, processes=[process([2_000_000] * 200, batch=8)])
    run = measurement.conclude(data, PLAN, replace(OPTIONS, batch=8))
    assert run.throughput_per_s == pytest.approx(4000)
    assert run.latency_ms.p50.value == 2.0


def test_a_drifting_run_is_unstable():
    groups = [[int(v * (1 + i / 2000)) for i, v in enumerate(group)] for group in steady(random.Random(3))]
    run = measurement.conclude(raw(groups), PLAN, OPTIONS)
    assert run.status == "unstable" and "unstable" in codes(run)
    assert run.latency_ms.p50.value is not None
    texts = [caution.text for caution in run.warnings if caution.code == "unstable"]
    assert len(texts) == 1 and all(f"process {number}" in texts[0] for number in (1, 2, 3))
    assert "load average" not in texts[0]
    busy = [replace(state, load1=3.5) for state in states()]
    run = measurement.conclude(raw(groups, states=busy), PLAN, OPTIONS)
    assert "load average was 3.5" in run.warnings[0].text


def test_a_process_without_steady_state_makes_the_run_unstable():
    groups = steady(random.Random(4))
    data = replace(raw(groups), processes=[process(groups[0]), process(groups[1], steady=False), process(groups[2])])
    run = measurement.conclude(data, PLAN, OPTIONS)
    assert run.status == "unstable"
    assert "process 2" in next(c.text for c in run.warnings if c.code == "unstable")


def test_quiet_runs_are_hardly_ever_called_unstable():
    rng = random.Random(5)
    verdicts = [measurement.conclude(raw(steady(rng, calls=60)), PLAN, OPTIONS).status for _ in range(200)]
    assert verdicts.count("ok") >= 198


def test_noise_with_steps_is_hardly_ever_called_ok():
    rng, fine = random.Random(6), 0
    for _ in range(100):
        at, size = rng.randrange(80, 320), rng.choice([0.85, 1.12, 1.3])
        groups = steady(rng)
        groups[1] = [int(v * size) if i >= at else v for i, v in enumerate(groups[1])]
        fine += measurement.conclude(raw(groups), PLAN, OPTIONS).status == "ok"
    assert fine == 0


@pytest.mark.parametrize(
    ("bits", "throttled"),
    [
        ([0] * 12, False),
        ([0] * 6 + [0x4] * 3 + [0] * 3, True),  # throttled for a while
        ([0] * 6 + [0x40000] * 6, True),  # the sticky bit rose
        ([0x50000] * 12, False),  # old history of this boot
        ([0x50005] * 12, True),  # throttled all along
    ],
)
def test_throttle_bits(bits, throttled):
    run = measurement.conclude(raw(steady(random.Random(7)), states=states(bits=bits)), PLAN, OPTIONS)
    assert run.thermal.throttled is throttled
    assert run.status == ("throttled" if throttled else "ok")
    assert ("throttled" in codes(run)) is throttled


FAST, SLOW, IDLE = 1_500_000, 1_200_000, 600_000


@pytest.mark.parametrize(
    ("clocks", "throttled"),
    [
        ([FAST] * 30, False),
        ([IDLE] + [FAST] * 28 + [IDLE], False),  # idle before and after
        ([IDLE] + [FAST] * 10 + [IDLE] * 2 + [FAST] * 10 + [IDLE] * 2 + [FAST] * 10 + [IDLE], False),  # and between
        ([IDLE] * 4 + [FAST] * 26, False),  # the governor takes its time
        ([FAST] * 25 + [IDLE] * 3, False),  # the last samples came after the load
        ([FAST] * 15 + [SLOW] * 15, True),
        ([IDLE] + [FAST] * 12 + [SLOW] * 6 + [FAST] * 12, True),  # it recovered
        ([FAST] * 15 + [1_400_000] * 15, False),  # 7 %
        ([FAST] * 5, None),  # too few to tell
    ],
)
def test_falling_clocks_are_throttling_and_idle_cores_are_not(clocks, throttled):
    run = measurement.conclude(raw(steady(random.Random(8)), states=states(clocks=clocks)), PLAN, OPTIONS)
    assert run.thermal.throttled is throttled
    assert bool(run.thermal.reason) is (throttled is not False)
    assert run.clocks["fastest_core_khz"]["max"] == max(clocks)


def test_a_board_that_shows_nothing_gets_nulls_with_reasons():
    run = measurement.conclude(
        raw(steady(random.Random(9)), states=states(None), timer_overhead_ns=None), PLAN, OPTIONS
    )
    assert run.status == "ok" and codes(run) == {"no_sensor"}
    assert run.thermal.max_c is None and "no temperature sensor" in run.thermal.reason
    assert run.thermal.throttled is None
    assert run.clocks["reason"]
    assert run.timer_overhead_us is None
    run = measurement.conclude(raw(steady(random.Random(9)), states=[]), PLAN, OPTIONS)
    assert run.thermal.throttled is None and run.clocks["samples"] == 0


def test_warnings_name_their_cause_and_what_helps():
    groups = steady(random.Random(10), 0.05)
    groups[2] = [int(value * 1.2) for value in groups[2]]
    groups[0][7] *= 40
    run = measurement.conclude(raw(groups), PLAN, OPTIONS)
    assert {"processes_differ", "outliers", "short_calls", "noisy"} <= codes(run)
    assert all(caution.text and caution.hint for caution in run.warnings)
    assert "--profile standard" in next(c.hint for c in run.warnings if c.code == "processes_differ")
    assert run.latency_ms.max == max(groups[0]) / 1e6, "outliers stay in"


def test_a_run_whose_process_died_is_failed_and_keeps_the_rest():
    crash = Caution("crashed", "onnxruntime died of SIGSEGV", "another wheel")
    data = raw(steady(random.Random(11), processes=2), failures=[crash])
    run = measurement.conclude(data, PLAN, OPTIONS)
    assert run.status == "failed" and run.reason == crash.text
    assert run.processes == 2 and run.latency_ms.p50.value is not None
    assert crash in run.warnings


@pytest.mark.parametrize(
    ("code", "status"), [("BoardError", "failed"), ("timeout", "timeout"), ("DeadlineError", "timeout")]
)
def test_a_run_without_samples_has_no_figures_but_a_reason(code, status):
    failure = Caution(code, "it stopped")
    run = measurement.conclude(raw([], failures=[failure]), PLAN, OPTIONS)
    assert (run.status, run.reason) == (status, "it stopped")
    assert run.latency_ms is None and run.throughput_per_s is None and run.samples == 0
    assert run.thermal.reason and run.power.reason and run.energy_mj.reason
    assert measurement.conclude(raw([]), PLAN, OPTIONS).status == "failed"
    assert codec.from_dict(Measurement, codec.to_dict(run)) == run


def test_raw_samples_come_back_as_they_were(tmp_path):
    data = raw(steady(random.Random(12)))
    kept = measurement.keep_raw(tmp_path / "raw", data)
    assert measurement.read_raw(kept) == data
    assert measurement.keep_raw(tmp_path / "raw", data) == kept
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [f"{kept['sha256'][:32]}.json.gz"]


def test_damaged_raw_samples_are_refused(tmp_path):
    kept = measurement.keep_raw(tmp_path, raw(steady(random.Random(13))))
    path = tmp_path / f"{kept['sha256'][:32]}.json.gz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(IntegrityError):
        measurement.read_raw(kept)
    path.write_bytes(gzip.compress(b"{}"))
    with pytest.raises(IntegrityError):
        measurement.read_raw(kept)
    path.unlink()
    with pytest.raises(IntegrityError):
        measurement.read_raw(kept)
    with pytest.raises(IntegrityError):
        measurement.read_raw({})


def test_raw_samples_that_can_not_be_kept_say_why(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgepipeError) as caught:
        measurement.keep_raw(tmp_path / "file" / "raw", raw([[1]]))
    assert caught.value.fix
