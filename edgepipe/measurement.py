"""From what the clocks and sensors of a board said to a `Measurement`: a verdict, bounds, and reasons for what is null.

Nothing is averaged away: outliers stay in, flagged; an unstable or throttled run keeps its figures but not the status
"ok". The rules and their sources are in docs/measurement.md.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgepipe import codec, energy, stats, sustain
from edgepipe.errors import EdgepipeError, IntegrityError
from edgepipe.record import Bound, Energy, Latency, Measurement, Sustained, Thermal
from edgepipe.schema import Caution, Plan, Power, ProcessSamples, RawRun, RunOptions, StateSample

STATUSES = ("ok", "unstable", "throttled", "failed", "timeout", "unreachable")
NOISY = 0.10  # stdev / mean from which pyperf calls a benchmark unstable
DIFFER = 0.05  # between the medians of processes
SHIFT, SHIFT_ALPHA = 0.05, 0.01  # a change of level counts when it is this large and this improbable
TIMER_SHARE = 0.01  # of a call; below it the timer's own cost does not matter
CLOCK_FALL = 0.10
CLOCK_WINDOW = 5  # state samples; at 2 Hz a lasting fall is one of 2.5 s
THROTTLED_NOW = 0xF  # vcgencmd get_throttled: bits 0-3 now, 16-19 since boot
MAX_RAW_BYTES = 1 << 30
_MS = 1e6  # ns


def conclude(raw: RawRun, plan: Plan, options: RunOptions) -> Measurement:
    """Judge one run. The samples themselves are left out of the result: see `keep_raw`.

    Percentiles and their bounds are in ms per call, throughput in inferences (calls x batch) per second of timed
    work. Any failure of a process makes the run failed (or timeout); the figures of the other processes are kept.
    """
    measured = [process for process in raw.processes if process.samples_ns]
    groups = [process.samples_ns for process in measured]
    if not groups:
        why = raw.failures[0].text if raw.failures else "no process measured anything"
        return failed(_failure_status(raw), why, plan, options, cautions=raw.failures)
    thermal = _thermal(raw)
    metered = energy.conclude(raw)
    cautions = [caution for rule in _RULES for caution in rule(raw, plan)]
    warnings = [*raw.failures, *raw.cautions, *_throttled(thermal), *cautions, *metered.cautions]
    peaks = [process.memory_peak_bytes for process in measured if process.memory_peak_bytes is not None]
    calls = sum(map(len, groups))
    inferences = sum(len(process.samples_ns) * process.batch for process in measured)
    seconds = sum(map(sum, groups)) / 1e9
    overhead = raw.timer_overhead_ns
    return Measurement(
        status=_status(raw, thermal, warnings),
        profile=plan.profile,
        threads=options.threads,
        precision_executed=raw.precision_executed,
        provider=raw.provider,
        executed=raw.executed,
        load_ms=statistics.median(process.load_ns for process in measured) / _MS,
        first_ms=statistics.median(process.first_ns for process in measured) / _MS,
        samples=calls,
        processes=len(measured),
        latency_ms=_latency(groups),
        throughput_per_s=inferences / seconds if seconds else None,
        memory_peak_bytes=max(peaks, default=None),
        timer_overhead_us=None if overhead is None else overhead / 1e3,
        thermal=thermal,
        clocks=_clocks(raw.states),
        power=metered.power,
        energy_mj=metered.energy,
        warnings=warnings,
        batch=options.batch,
        reason=raw.failures[0].text if raw.failures else "",
        cpus=list(options.cpus),
        governor=plan.governor,
        sustained=_sustained(raw, measured[0]) if plan.sustain_seconds else None,
    )


def _sustained(raw: RawRun, process: ProcessSamples) -> Sustained:
    """The regimes of a sustained run, and when its clocks fell, from its first timed call on."""
    at = _throttled_at(raw)
    start = process.timed.start if process.timed else 0.0
    return sustain.conclude(process, None if at is None else round(max(at - start, 0.0), 1))


def failed(
    status: str, reason: str, plan: Plan, options: RunOptions, *, cautions: Sequence[Caution] = ()
) -> Measurement:
    """Return the measurement of a run that gave no figures: every number is null and ``reason`` says why."""
    return Measurement(
        status=status,
        profile=plan.profile,
        threads=options.threads,
        thermal=Thermal(reason=reason),
        clocks={"reason": reason},
        power=Power(reason=reason),
        energy_mj=Energy(reason=reason),
        warnings=list(cautions),
        batch=options.batch,
        reason=reason,
        cpus=list(options.cpus),
        governor=plan.governor,
    )


def keep_raw(folder: Path, raw: RawRun) -> dict[str, Any]:
    """Write a run's samples and states to one gzipped JSON file, named by its content; return where they lie.

    The file appears whole or not at all. Returns ``{"samples_ns": path, "states": path, "sha256": of the JSON}``.

    Raises:
        EdgepipeError: the folder can't be written, or its disk is full.
    """
    data = codec.canonical(raw)
    sha = hashlib.sha256(data).hexdigest()
    path = folder.resolve() / f"{sha[:32]}.json.gz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _write(path, gzip.compress(data, compresslevel=6, mtime=0))
    except OSError as error:
        raise EdgepipeError(
            f"the raw samples can't be kept: {error.strerror or error}", str(path), "free some space, then run again"
        ) from error
    return {"samples_ns": str(path), "states": str(path), "sha256": sha}


def read_raw(raw: dict[str, Any]) -> RawRun:
    """Read back what `keep_raw` wrote, from the ``raw`` of a `Measurement`.

    Raises:
        IntegrityError: the file is gone, damaged or not the one that was written.
    """
    path = Path(str(raw.get("samples_ns", "")))
    try:
        with gzip.open(path) as file:
            data = file.read(MAX_RAW_BYTES)
    except (OSError, EOFError, ValueError) as error:
        raise IntegrityError(f"the raw samples can't be read: {error}", str(path)) from error
    if hashlib.sha256(data).hexdigest() != raw.get("sha256"):
        raise IntegrityError("the raw samples are not those that were written", str(path))
    return codec.from_dict(RawRun, json.loads(data))


def _write(path: Path, data: bytes) -> None:
    """Write beside, fsync, rename, fsync the folder."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".raw-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _failure_status(raw: RawRun) -> str:
    late = any(word in failure.code.lower() for failure in raw.failures for word in ("timeout", "deadline"))
    return "timeout" if late else "failed"


def _status(raw: RawRun, thermal: Thermal, warnings: Sequence[Caution]) -> str:
    if raw.failures:
        return _failure_status(raw)
    if thermal.throttled:
        return "throttled"
    return "unstable" if any(warning.code == "unstable" for warning in warnings) else "ok"


def _latency(groups: Sequence[Sequence[int]]) -> Latency:
    samples = [value for group in groups for value in group]
    p50, p90, p95, p99 = (_bound(groups, quantile) for quantile in (0.50, 0.90, 0.95, 0.99))
    return Latency(
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        mean=statistics.fmean(samples) / _MS,
        stdev=statistics.stdev(samples) / _MS if len(samples) > 1 else None,
        min=min(samples) / _MS,
        max=max(samples) / _MS,
    )


def _bound(groups: Sequence[Sequence[int]], quantile: float) -> Bound:
    return stats.scaled(stats.quantile_interval(groups, quantile), _MS)


# The state of the board


def _thermal(raw: RawRun) -> Thermal:
    hottest = [max(state.temperature_c.values()) for state in raw.states if state.temperature_c]
    throttled, reason = _verdict(raw.states, _under_load(raw))
    if not hottest:
        reason = "; ".join(filter(None, ("no temperature sensor", reason)))
        return Thermal(throttled=throttled, reason=reason, cooling=raw.cooling)
    return Thermal(hottest[0], hottest[-1], max(hottest), throttled, reason, raw.cooling)


def _under_load(raw: RawRun) -> Sequence[StateSample]:
    """The samples without those of the rest before the run, in which clocks are low for no bad reason."""
    return [state for state in raw.states if raw.idle is None or state.at >= raw.idle.end]


def _verdict(states: Sequence[StateSample], loaded: Sequence[StateSample]) -> tuple[bool | None, str]:
    """Whether the board was throttled, and why (or why nobody knows)."""
    bits = [state.throttle_bits for state in states if state.throttle_bits is not None]
    risen = 0
    for value in bits[1:]:
        risen |= value & ~bits[0]
    active = risen | (max((value & THROTTLED_NOW for value in bits), default=0))
    if active:
        return True, f"the firmware's throttle bits: {active:#x}"
    fall = _clock_fall(loaded)
    if fall is not None and fall >= CLOCK_FALL:
        return True, f"the highest clock fell by {fall:.0%} under load"
    if bits or fall is not None:
        return False, ""
    return None, "neither clocks nor throttle bits can be read often enough to tell"


def _clock_fall(states: Sequence[StateSample]) -> float | None:
    """The largest lasting fall of the highest clock under load, as a share; null where too few clocks were read.

    An idle core rests at a low clock, which is no throttling: so only the fastest core counts (a busy board has at
    least one), the first and last samples (before and after the load) do not, and a running median over 2.5 s bridges
    the pauses between processes. The level to hold is the median of the first third, from when it is first reached.
    """
    shares = _clock_shares(states)
    return 1 - min(share for _, share in shares) if shares else None


def _clock_shares(states: Sequence[StateSample]) -> list[tuple[float, float]]:
    """The smoothed highest clock over the level to hold, and when (s), from when that is first reached."""
    seen = [(state.at, max(state.clock_khz)) for state in states[1:-1] if state.clock_khz]
    if len(seen) < 2 * CLOCK_WINDOW:
        return []
    windows = [seen[at : at + CLOCK_WINDOW] for at in range(len(seen) - CLOCK_WINDOW + 1)]
    smooth = [(window[0][0], statistics.median(clock for _, clock in window)) for window in windows]
    level = statistics.median(clock for _, clock in smooth[: max(len(smooth) // 3, 1)])
    reached = next(at for at, (_, clock) in enumerate(smooth) if clock >= level)
    return [(at, clock / level) for at, clock in smooth[reached:]] if level else []


def _throttled_at(raw: RawRun) -> float | None:
    """When the board first slowed itself down, in s since the run began; null if it did not."""
    bits = [(state.at, state.throttle_bits) for state in raw.states if state.throttle_bits is not None]
    risen = (at for at, value in bits if value & THROTTLED_NOW or value & ~bits[0][1])
    fallen = (at for at, share in _clock_shares(_under_load(raw)) if share <= 1 - CLOCK_FALL)
    moments = [at for at in (next(risen, None), next(fallen, None)) if at is not None]
    return min(moments, default=None)


def _clocks(states: Sequence[StateSample]) -> dict[str, Any]:
    fastest = [max(state.clock_khz) for state in states if state.clock_khz]
    governors = sorted({state.governor for state in states if state.governor})
    if not fastest:
        return {"reason": "the board does not say its clocks", "governors": governors, "samples": len(states)}
    return {
        "fastest_core_khz": {
            "first": fastest[0],
            "min": min(fastest),
            "median": int(statistics.median(fastest)),
            "max": max(fastest),
        },
        "governors": governors,
        "samples": len(states),
    }


# Warnings: each rule looks at the run and says what it has to say


def _longer(plan: Plan) -> str:
    following = {"quick": "--profile standard", "standard": "--profile mlperf"}.get(plan.profile)
    return following or "let nothing else run on the board, then measure again"


def _throttled(thermal: Thermal) -> list[Caution]:
    if not thermal.throttled:
        return []
    hint = "cool the board, check its power supply, or use fewer cores: --threads 1"
    return [Caution("throttled", f"the board slowed itself down: {thermal.reason}", hint)]


def _unstable(raw: RawRun, plan: Plan) -> list[Caution]:
    restless = [number for number, process in enumerate(raw.processes, 1) if process.samples_ns and not process.steady]
    found = []
    if restless and not plan.sustain_seconds:
        which = ", ".join(map(str, restless))
        text = f"process {which} had no steady state within {plan.warmup_cap_seconds:g} s of warm-up"
        found.append(Caution("unstable", text, "let nothing else run on the board, then measure again"))
    shifts = []
    for number, process in enumerate(raw.processes, 1):
        # Becoming slower is what a sustained run is to show; only its end must be of one level.
        change = stats.change(sustain.settled(process) if process.kept else process.samples_ns)
        if change and change.probability < SHIFT_ALPHA and abs(change.shift) >= SHIFT:
            direction = "slower" if change.shift > 0 else "faster"
            where = f"calls {change.start:,} to {change.end:,} of process {number}"
            shifts.append(f"{where} were {abs(change.shift):.0%} {direction}")
    if shifts:
        load = raw.states[0].load1 if raw.states else None
        busy = f"; the board's load average was {load:.1f} when the run began" if load and load > 1 else ""
        text = f"the latency changed while it was measured: {', '.join(shifts)}{busy}"
        found.append(Caution("unstable", text, f"other work on the board? stop it; else {_longer(plan)}"))
    return found


def _cooling(raw: RawRun, _: Plan) -> list[Caution]:
    found = raw.cooling
    if found is None or (found.after_c is not None and found.after_c <= found.target_c):
        return []
    if found.after_c is None:
        text = f"the board was to cool to {found.target_c:g} C, and has no temperature sensor"
        return [Caution("not_cool", text, "leave --cool-to out here, and wait between runs")]
    text = f"the board was at {found.after_c:.1f} C after {found.seconds:g} s, not at {found.target_c:g} C as asked"
    return [Caution("not_cool", text, "a longer --cool-timeout, a fan, or a higher --cool-to")]


def _few_samples(raw: RawRun, plan: Plan) -> list[Caution]:
    samples = sum(len(process.samples_ns) for process in raw.processes)
    if samples >= plan.min_samples:
        return []
    text = f"{samples:,} samples, where the profile {plan.profile} asks for {plan.min_samples:,}"
    return [Caution("few_samples", text, "give the run more time")]


def _noisy(raw: RawRun, plan: Plan) -> list[Caution]:
    samples = [value for process in raw.processes for value in process.samples_ns]
    if len(samples) == 1:
        return []
    share = statistics.stdev(samples) / statistics.fmean(samples)
    if share < NOISY:
        return []
    text = f"the standard deviation is {share:.0%} of the mean"
    return [Caution("noisy", text, f"trust p50 more than the mean; {_longer(plan)}")]


def _outliers(raw: RawRun, _: Plan) -> list[Caution]:
    samples = [value for process in raw.processes for value in process.samples_ns]
    count = len(stats.outliers(samples))
    if not count:
        return []
    text = f"{count:,} of {len(samples):,} samples lie more than {stats.OUTLIER_MADS} MADs off the median (kept)"
    return [Caution("outliers", text, "other work on the board? stop it, then measure again")]


def _processes_differ(raw: RawRun, plan: Plan) -> list[Caution]:
    medians = [statistics.median(process.samples_ns) for process in raw.processes if process.samples_ns]
    gap = max(medians) / max(min(medians), 1) - 1
    if gap <= DIFFER:
        return []
    text = f"the medians of {len(medians)} processes lie {gap:.0%} apart"
    return [Caution("processes_differ", text, _longer(plan))]


def _short_calls(raw: RawRun, _: Plan) -> list[Caution]:
    median = statistics.median(value for process in raw.processes for value in process.samples_ns)
    if raw.timer_overhead_ns is None or raw.timer_overhead_ns <= TIMER_SHARE * median:
        return []
    text = f"the timer takes {raw.timer_overhead_ns / 1e3:.2g} us of a call of {median / 1e3:.3g} us"
    return [Caution("short_calls", text, "measure more per call: --batch 16")]


def _no_sensor(raw: RawRun, _: Plan) -> list[Caution]:
    if any(state.temperature_c or state.clock_khz or state.throttle_bits is not None for state in raw.states):
        return []
    text = "the board shows neither temperatures nor clocks nor throttle bits, so throttling can't be seen"
    return [Caution("no_sensor", text, "measure again some minutes later and compare: heat shows as slower calls")]


_RULES: tuple[Callable[[RawRun, Plan], list[Caution]], ...] = (
    _unstable,
    _cooling,
    _few_samples,
    _noisy,
    _processes_differ,
    _outliers,
    _short_calls,
    _no_sensor,
)
