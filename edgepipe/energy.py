"""From a meter's readings to the power of a run and the energy of an inference, with intervals; pure functions.

Energy of an inference = mean W x duration / inferences, from the same run as the latency (Tschand et al., "MLPerf
Power", HPCA 2025: energy is the integral of power over the window that is timed). The interval is that of a product of
means, by the law of propagation of uncertainty (JCGM 100:2008, 5.1.2) with the degrees of freedom of Welch and
Satterthwaite (there G.4.1). The variance of each mean counts how far neighbours resemble each other (`stats.mean`).
What it can't know is the sensor's own error of gain: that is the same in every reading.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from itertools import pairwise

from edgepipe import sensors, stats
from edgepipe.record import Energy
from edgepipe.schema import Caution, Power, ProcessSamples, RawRun, Window

# Readings in the timed run below which a mean is none, and below which it is doubtful.
FEWEST, FEW = 5, 100
# An interval needs readings enough to see whether they resemble each other, and independent ones among them.
LEAST_READINGS, LEAST_WORTH = 30, 3.0
# Share of a window that readings must stand for.
COVERED = 0.9
SHORT_SECONDS = 60.0
PERIODS = 10  # of the meter in the shortest process
# Where processes are suspected to differ, with 40 % of false alarms, the spread between them counts (as for latency).
_SUSPICION = statistics.NormalDist().inv_cdf(1 - stats.SUSPICION)


@dataclass(frozen=True)
class Outcome:
    """What a meter's readings come to."""

    power: Power
    energy: Energy
    cautions: list[Caution]


@dataclass(frozen=True)
class _Term:
    """A standard error and the degrees of freedom it rests on."""

    error: float
    degrees: float = math.inf


@dataclass(frozen=True)
class _Level:
    """Mean W over some windows, and how sure it is: by chance, and by the ``grain`` of the sensor's steps."""

    watts: float
    chance: _Term
    grain: float
    samples: int
    worth: float


def conclude(raw: RawRun) -> Outcome:
    """Judge the readings and sum them up; a lie or too few of them make all figures null, with the reason."""
    processes = [process for process in raw.processes if process.samples_ns and process.timed]
    windows = [process.timed for process in processes if process.timed]
    if raw.power.reason or not windows or raw.power.source is None:
        return nothing(raw.power, raw.power.reason or "no meter")
    steady = [*windows, *filter(None, [raw.idle])]
    span = Window(min(w.start for w in steady), max(w.end for w in windows))
    false = sensors.lie(raw.power_samples, span, steady, raw.power)
    if false:
        return nothing(raw.power, false)
    found = sensors.readings(raw.power_samples, span)
    run = _level(found, windows, raw.power.resolution_w)
    if isinstance(run, str):
        return nothing(raw.power, run)
    false = sensors.too_little(run.watts, raw.power.boundary)
    if false:
        return nothing(raw.power, false)
    idle = _level(found, [raw.idle], raw.power.resolution_w) if raw.idle else "idle power was not measured"
    seconds = sum(w.end - w.start for w in windows)
    power = replace(
        raw.power,
        mean_w=run.watts,
        idle_w=None if isinstance(idle, str) else idle.watts,
        rate_hz=run.samples / seconds,
        samples=run.samples,
        seconds=seconds,
        idle_seconds=raw.idle.end - raw.idle.start if raw.idle else None,
    )
    return Outcome(power, _energy(found, processes, run, idle), _cautions(power, raw, windows))


def nothing(power: Power, reason: str) -> Outcome:
    """Return what is said where there are no figures: the meter, if there is one, and why."""
    return Outcome(replace(power, reason=reason), Energy(reason=reason), [])


def _level(found: sensors.Readings, windows: list[Window], resolution: float | None) -> _Level | str:
    """Mean power over all windows, or why there is none."""
    groups = [[watts for _, watts in found.within(window)] for window in windows]
    count = sum(map(len, groups))
    means = [_mean(found, window) for window in windows]
    whole = sum(window.end - window.start for window in windows)
    covered = sum(seconds for _, seconds in means)
    if covered < COVERED * whole:
        silent, last = 1 - covered / whole, found.at[-1]
        return f"the meter was silent for {silent:.0%} of the time, its last reading came at {last:.1f} s"
    if count < FEWEST:
        return f"the meter gave {count} readings in the time that counts, and {FEWEST} are the least: measure longer"
    mean = stats.mean(groups)
    spread = statistics.pstdev([value for group in groups for value in group])
    # Readings that move by less than half a step always round the same way (JCGM 100:2008, F.2.2.1).
    grain = resolution / math.sqrt(12) if resolution and spread < resolution / 2 else 0.0
    watts = sum(watts * seconds for watts, seconds in means) / covered
    return _Level(watts, _Term(mean.error, mean.degrees), grain, count, mean.worth)


def _mean(found: sensors.Readings, window: Window) -> tuple[float, float]:
    """Mean W in a window, and the seconds of it that readings stand for.

    A reading stands for the time to half-way to its neighbours in the window, or to the window's end, but no further
    than one and a half usual gaps. One taken outside the window says nothing of it: the board did something else then.
    """
    gaps = [after - before for before, after in pairwise(found.at)]
    reach = 1.5 * statistics.median(gaps) if gaps else 0.0
    inside = found.within(window)
    middles = [(before + after) / 2 for (before, _), (after, _) in pairwise(inside)]
    energy = seconds = 0.0
    for (at, watts), low, high in zip(inside, [window.start, *middles], [*middles, window.end], strict=False):
        stands = min(high, at + reach) - max(low, at - reach)
        energy += watts * stands
        seconds += stands
    return (energy / seconds if seconds else 0.0), seconds


def _energy(found: sensors.Readings, processes: list[ProcessSamples], run: _Level, idle: _Level | str) -> Energy:
    """Gross and idle-net energy of an inference in mJ, each with its 95 % interval."""
    each = [_of_process(found, process) for process in processes]
    tau = sum(seconds for _, seconds, _ in each) / sum(count for _, _, count in each)
    call = stats.mean([process.samples_ns for process in processes])
    pace = _Term(tau * call.error / call.value if call.value else 0.0, call.degrees)
    doubt = _doubt("", run)
    energy = Energy(gross=_mj(run.watts * tau), reason=doubt)
    if not doubt:
        terms = [*_terms(run, tau), _times(pace, run.watts)]
        low, high = _interval(run.watts * tau, terms, [w * s / n for w, s, n in each])
        energy = replace(energy, low=_mj(low), high=_mj(high))
    if isinstance(idle, str):
        return _because(energy, f"no net figure: {idle}")
    net = run.watts - idle.watts
    if net <= 0:
        return _because(energy, f"no net figure: the board drew {idle.watts:.3g} W at rest, no less than under load")
    energy = replace(energy, net=_mj(net * tau))
    doubt = doubt or _doubt(" of the net figure", idle)
    if doubt:
        return _because(energy, doubt)
    terms = [*_terms(run, tau), *_terms(idle, tau), _times(pace, net)]
    low, high = _interval(net * tau, terms, [(w - idle.watts) * s / n for w, s, n in each])
    return replace(energy, net_low=_mj(low), net_high=_mj(high))


def _doubt(which: str, level: _Level) -> str:
    """Why there is no interval, or nothing."""
    if level.samples < LEAST_READINGS:
        return f"no interval{which}: it takes {LEAST_READINGS} readings, and there are {level.samples}"
    if level.worth < LEAST_WORTH:
        return f"no interval{which}: {level.samples} readings resemble each other so much that they are worth few"
    return ""


def _because(energy: Energy, why: str) -> Energy:
    """Add a reason, if it is not there already."""
    return energy if why in energy.reason else replace(energy, reason="; ".join(filter(None, (energy.reason, why))))


def _mj(joules: float) -> float:
    return joules * 1e3


def _of_process(found: sensors.Readings, process: ProcessSamples) -> tuple[float, float, int]:
    """Mean W, seconds and inferences of one process."""
    assert process.timed
    watts, _ = _mean(found, process.timed)
    return watts, process.timed.end - process.timed.start, len(process.samples_ns) * process.batch


def _terms(level: _Level, tau: float) -> list[_Term]:
    return [_times(level.chance, tau), _Term(level.grain * tau)]


def _times(term: _Term, factor: float) -> _Term:
    return _Term(term.error * factor, term.degrees)


def _interval(value: float, terms: list[_Term], each: list[float]) -> tuple[float, float]:
    """The 95 % interval of a sum of independent errors, widened to what processes that differ show."""
    error = math.sqrt(sum(term.error**2 for term in terms))
    shares = sum(term.error**4 / term.degrees for term in terms)
    half = stats.student(error**4 / shares if shares else math.inf) * error
    degrees = len(each) - 1
    if degrees:
        spread = statistics.stdev(each)
        # Chi squared by Wilson and Hilferty (1931).
        limit = (1 - 2 / (9 * degrees) + _SUSPICION * math.sqrt(2 / (9 * degrees))) ** 3
        if spread**2 > limit * error**2 * len(each):
            half = max(half, stats.student(degrees) * spread / math.sqrt(len(each)))
    return value - half, value + half


def _cautions(power: Power, raw: RawRun, windows: list[Window]) -> list[Caution]:
    assert power.seconds
    assert power.rate_hz
    shortest = min(window.end - window.start for window in windows)
    found = []
    if power.seconds < SHORT_SECONDS:
        text = f"power was measured over {power.seconds:.0f} s, where {SHORT_SECONDS:.0f} s are the least to trust it"
        found.append(Caution("power_window", text, "--profile standard"))
    if power.samples < FEW or power.rate_hz * shortest < PERIODS:
        text = f"{power.samples} readings at {power.rate_hz:.2g} Hz are few for {power.seconds:.0f} s of timed run"
        found.append(Caution("power_rate", text, "--profile mlperf, or a faster meter"))
    faults = raw.power_samples.faults
    if faults:
        text = f"{sum(faults.values())} readings failed, e.g.: {next(iter(faults))}"
        found.append(Caution("power_gaps", text, "check the meter's wiring or network"))
    if power.clock_error_s is not None and power.clock_error_s > shortest / 20:
        text = f"the meter's readings may lie {power.clock_error_s:.2g} s off the board's clock"
        found.append(Caution("power_clock", text, "measure over a faster link, or longer: --profile standard"))
    return found
