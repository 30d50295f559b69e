"""Power and energy on runs whose truth is known; sensors that lie, and sensors that merely are coarse."""

import math
from dataclasses import replace

import pytest

from edgepipe import codec, energy, measurement
from edgepipe.record import Measurement
from edgepipe.schema import Plan, Power, PowerSamples, RunOptions, Window
from tests.unit import power_kit as kit

GROSS_MJ, NET_MJ = kit.LOAD_W * kit.CALL_S * 1e3, (kit.LOAD_W - kit.IDLE_W) * kit.CALL_S * 1e3
PLUG = Power(source="shelly", rail="plug, channel 0", boundary="wall", resolution_w=0.1)


def concluded(seed=0, **more):
    return energy.conclude(kit.run(seed, **more))


def codes(outcome):
    return {caution.code for caution in outcome.cautions}


def edited(raw, change):
    """The run with ``change(at, watts)`` in place of each reading; None drops it."""
    pairs = [(at, change(at, watts)) for at, watts in zip(raw.power_samples.at, raw.power_samples.watts, strict=True)]
    pairs = [pair for pair in pairs if pair[1] is not None]
    return replace(raw, power_samples=PowerSamples([at for at, _ in pairs], [watts for _, watts in pairs]))


@pytest.mark.parametrize(
    "board",
    [
        {"seconds": 60.0, "processes": 5},
        {},  # quick
        {"rate": 4.0, "seconds": 60.0, "processes": 5},  # a Pi 5
        {"step": 0.04, "power": replace(kit.METER, resolution_w=0.04)},  # a Jetson's step
        {"rho": 0.9, "seconds": 60.0, "processes": 5},
    ],
    ids=["standard", "quick", "slow", "coarse", "resembling"],
)
def test_energy_is_within_1_percent_and_net_within_2(board):
    for seed in range(60):
        found = concluded(seed, **board).energy
        assert found.gross == pytest.approx(GROSS_MJ, rel=0.01), seed
        assert found.net == pytest.approx(NET_MJ, rel=0.02), seed


@pytest.mark.parametrize(
    "board",
    [
        {},
        {"rho": 0.0},
        {"rho": 0.9, "seconds": 60.0, "processes": 5},
        {"processes": 1, "rho": 0.3},
        {"rate": 4.0, "seconds": 60.0, "processes": 5},
        {"spread": 0.02, "processes": 5, "seconds": 60.0},
    ],
    ids=["quick", "independent", "resembling", "one process", "slow", "processes differ"],
)
def test_the_interval_holds_the_truth_in_95_of_100_runs(board):
    """Of 200 runs 190 are expected; 3 standard deviations are 9."""
    runs, gross, net = 200, 0, 0
    found = [concluded(1000 + seed, sigma=0.15, **board).energy for seed in range(runs)]
    given = [each for each in found if each.net_low is not None]
    assert len(given) >= 0.98 * runs
    gross = sum(each.low <= GROSS_MJ <= each.high for each in given) / len(given)
    net = sum(each.net_low <= NET_MJ <= each.net_high for each in given) / len(given)
    assert 0.905 <= gross <= 0.995 and 0.905 <= net <= 0.995, (gross, net)


def test_what_is_declared_and_what_was_measured():
    outcome = concluded(seconds=61.0, processes=5)
    power = outcome.power
    assert (power.source, power.rail, power.boundary, power.resolution_w) == ("ina3221", "VDD_IN", "board", 0.001)
    assert power.mean_w == pytest.approx(5.0, rel=0.01) and power.idle_w == pytest.approx(2.0, rel=0.02)
    assert power.rate_hz == pytest.approx(20, rel=0.02) and power.samples == pytest.approx(20 * 61, rel=0.03)
    assert power.seconds == pytest.approx(61, rel=0.01) and power.idle_seconds == 10
    assert not power.reason and not outcome.energy.reason and codes(outcome) == set()
    assert outcome.energy.low < outcome.energy.gross < outcome.energy.high
    assert outcome.energy.net_low < outcome.energy.net < outcome.energy.net_high


def test_a_batch_shares_its_energy():
    assert concluded(batch=8).energy.gross == pytest.approx(GROSS_MJ / 8, rel=0.01)


def test_only_timed_windows_count():
    raw = kit.run(processes=3)
    windows = [process.timed for process in raw.processes]

    def spoil(at, watts):
        return watts if at < 11 or any(w.start - 0.5 <= at <= w.end + 0.5 for w in windows) else 30.0

    assert energy.conclude(edited(raw, spoil)).energy.gross == pytest.approx(GROSS_MJ, rel=0.01)


def test_a_reading_stands_for_the_time_around_it():
    """Uneven readings: four a second at 4 W, eight a second at 6 W, half the time each."""
    raw = kit.run(processes=1, seconds=20.0, jitter=0.0, rate=8.0)
    window = raw.processes[0].timed
    middle = (window.start + window.end) / 2

    def thin(at, watts):
        if at < window.start - 2:
            return watts
        every, level = (1, 6.0) if at > middle else (2, 4.0)
        return level + (watts - 5.0) / 10 if round(at * 8) % every == 0 else None

    assert energy.conclude(edited(raw, thin)).power.mean_w == pytest.approx(5.0, rel=0.01)


def test_short_and_slow_are_told():
    assert codes(concluded()) == {"power_window"}
    plug = concluded(rate=1.0, seconds=61.0, processes=5, power=PLUG, step=0.1)
    assert codes(plug) == {"power_rate"} and "1 Hz" in plug.cautions[0].text
    assert plug.energy.net is not None and plug.energy.net_low is None
    assert "it takes 30 readings, and there are 10" in plug.energy.reason
    assert codes(concluded(rate=2.0, seconds=61.0, processes=20)) == {"power_rate"}
    late = energy.conclude(kit.run(power=replace(PLUG, clock_error_s=0.8)))
    assert "power_clock" in codes(late)
    assert all(caution.hint for caution in late.cautions)


def test_readings_that_always_round_the_same_way_leave_half_a_step_in_doubt():
    exact = concluded(sigma=0.0001, step=0.0001, power=replace(kit.METER, resolution_w=0.0001), jitter=0.001)
    coarse = concluded(sigma=0.0001, step=0.1, power=replace(kit.METER, resolution_w=0.1), jitter=0.001)
    assert exact.energy.high - exact.energy.low < 0.001 * GROSS_MJ
    half = (coarse.energy.high - coarse.energy.low) / 2
    assert half == pytest.approx(1.96 * 0.1 / math.sqrt(12) * kit.CALL_S * 1e3, rel=0.02)


def test_too_few_and_too_like_readings():
    few = concluded(rate=0.3, seconds=10.0, processes=1)
    assert few.power.mean_w is None and "5 are the least" in few.power.reason
    some = concluded(rate=1.5, seconds=10.0)
    assert some.energy.gross is not None and some.energy.low is None and "it takes 30 readings" in some.energy.reason
    like = concluded(rho=0.999, seconds=10.0, processes=1, seed=1)
    assert like.energy.gross is not None and like.energy.low is None and "no interval" in like.energy.reason


def test_no_idle_no_net():
    found = concluded(idle=0.0)
    assert found.energy.gross == pytest.approx(GROSS_MJ, rel=0.01) and found.energy.low is not None
    assert found.energy.net is None and "idle power was not measured" in found.energy.reason
    assert found.power.idle_w is None and found.power.idle_seconds is None


def test_a_board_that_draws_more_at_rest_has_no_net_figure():
    found = concluded(rest=5.2)
    assert found.energy.net is None and "no less than under load" in found.energy.reason
    assert found.energy.gross is not None


def later(seconds, change):
    return lambda at, watts: change(watts) if at > seconds else watts


LIES = {
    "stuck all along": (lambda at, watts: 4.31, "stuck: 4.31 W in all"),
    "stuck in the middle": (later(20.0, lambda watts: 4.977), "stuck: 4.977 W from 20"),
    "stuck at nothing": (later(20.0, lambda watts: 0.0), "impossible jump|stuck"),
    "negative": (lambda at, watts: -0.02 if 20.0 < at < 20.1 else watts, "-0.02 W"),
    "a jump up": (lambda at, watts: 150.0 if 20.0 < at <= 20.04 else watts, "impossible jump: 150 W"),
    "a drop to nothing": (lambda at, watts: 0.0 if 20.0 < at <= 20.04 else watts, "impossible jump: 0 W"),
    "mW for W": (lambda at, watts: watts * 1000, "too much for a whole board: a wrong unit"),
    "W for mW": (lambda at, watts: watts / 1000, "too little for a whole board: a wrong unit"),
    "silent from then on": (later(20.0, lambda watts: None), "silent for .* its last reading came at (19.9|20.0) s"),
    "silent all along": (lambda at, watts: None, "gave no reading"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lying_sensor_is_null_with_its_reason(name):
    change, reason = LIES[name]
    outcome = energy.conclude(edited(kit.run(), change))
    assert outcome.power.mean_w is None and outcome.power.idle_w is None and outcome.energy.gross is None
    assert outcome.power.source == "ina3221", "who lied stays known"
    import re

    assert re.search(reason, outcome.power.reason), outcome.power.reason
    assert outcome.energy.reason == outcome.power.reason


def failing(raw, share, fault):
    """The run with every so-many-th reading failed."""
    every = round(1 / share)
    watts = [None if i % every == 0 else watts for i, watts in enumerate(raw.power_samples.watts)]
    return replace(raw, power_samples=PowerSamples(raw.power_samples.at, watts, {fault: watts.count(None)}))


def test_a_reading_may_fail_now_and_then():
    found = energy.conclude(failing(kit.run(seconds=61.0), 0.02, "[Errno 11] Resource temporarily unavailable"))
    assert found.energy.gross == pytest.approx(GROSS_MJ, rel=0.01) and codes(found) == {"power_gaps"}
    often = energy.conclude(failing(kit.run(), 0.1, "[Errno 5] Input/output error"))
    assert often.power.mean_w is None and "Input/output error" in often.power.reason


def test_nonsense_once_is_too_often():
    found = energy.conclude(failing(kit.run(), 0.002, "nonsense: it said nan"))
    assert found.power.mean_w is None and "it said nan" in found.power.reason


@pytest.mark.parametrize(
    "sensor",
    [
        {"power": PLUG, "rate": 1.0, "step": 0.1, "seconds": 60.0, "sigma": 0.005},
        {"power": PLUG, "rate": 1.0, "step": 0.1, "seconds": 60.0, "sigma": 0.02},
        {"power": PLUG, "rate": 1.0, "step": 1.0, "seconds": 60.0, "sigma": 0.1},
        {"power": replace(kit.METER, resolution_w=None), "step": 0.04},
        {"power": replace(kit.METER, boundary="soc"), "rho": 0.99},
        {"sigma": 0.0005},
        {"load": 30.0, "rest": 2.0, "sigma": 0.3},
        {"load": 0.9, "rest": 0.4, "sigma": 0.01},
    ],
    ids=["plug, quiet", "plug", "plug of 1 W", "jetson", "soc", "quiet", "large", "small"],
)
def test_a_coarse_or_quiet_sensor_is_no_liar(sensor):
    for seed in range(25):
        assert concluded(seed, **sensor).power.mean_w is not None, (seed, concluded(seed, **sensor).power.reason)


def test_a_processor_may_jump():
    raw = kit.run(power=replace(kit.METER, boundary="soc"))
    burst = edited(raw, lambda at, watts: 60.0 if 5.0 < at <= 5.04 else watts)
    assert energy.conclude(burst).power.mean_w is not None


def test_a_run_without_a_meter():
    for power in (Power(), Power(reason="no meter: a Raspberry Pi 4 has no current sensor")):
        found = energy.conclude(kit.run(power=power))
        assert found.power.reason == (power.reason or "no meter") and found.energy.reason == found.power.reason


def test_the_measurement_carries_it():
    raw = kit.run()
    result = measurement.conclude(raw, Plan(), RunOptions())
    assert result.energy_mj.gross == pytest.approx(GROSS_MJ, rel=0.01) and result.power.rail == "VDD_IN"
    assert "power_window" in {caution.code for caution in result.warnings} and result.status == "ok"
    assert codec.from_dict(Measurement, codec.to_dict(result)) == result


def test_low_clocks_while_the_board_rests_hide_no_throttling():
    from tests.unit.report_samples import states

    clocks = [600_000] * 24 + [1_500_000] * 20 + [1_000_000] * 20
    looks = [replace(state, at=i / 2) for i, state in enumerate(states(clocks=clocks))]
    raw = replace(kit.run(), states=looks, idle=Window(1.0, 12.0))
    assert measurement.conclude(raw, Plan(), RunOptions()).thermal.throttled is True
