"""MLPerf's scenarios on the host: what a plan for one is, and what its run came to by LoadGen's rules.

Lengths and counts are those of the MLPerf Inference rules (https://github.com/mlcommons/inference_policies); which
queries come when is in `agent/scenarios.py`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from edgepipe import stats
from edgepipe.agent.scenarios import MULTI, NAMES, OFFLINE, SERVER, SINGLE, calls_of_query
from edgepipe.errors import UsageError
from edgepipe.record import Measurement, Scenario
from edgepipe.schema import Caution, Plan, RawRun, RunOptions

SECONDS = 600.0  # a valid run takes at least
OFFLINE_SAMPLES = 24_576
_QUANTILES = {SINGLE: 0.90, MULTI: 0.99, SERVER: 0.99}
_LEFT_OVER = 0.01  # of all queries; a few wait at the end of any run
_FEW = 3
_OF_QUEUES = {"noisy", "outliers"}  # what says nothing where queries wait for each other


def plan(profile: Plan, name: str, rate: float, options: RunOptions) -> Plan:
    """The profile as a run of one process in a scenario; without a name it is left alone.

    Raises:
        UsageError: no such scenario, or one that the rate or batch does not fit.
    """
    if not name and not rate:
        return profile
    if name and name not in NAMES:
        raise UsageError(f"no such scenario: {name[:40]}", "--scenario", f"one of {', '.join(NAMES)}")
    if profile.sustain_seconds:
        raise UsageError("a sustained run is no scenario", "--scenario, --sustain", "leave one of them out")
    if name == SERVER and not rate:
        what = "a server needs to know how many queries arrive in a second"
        raise UsageError(what, "--rate", "--scenario server --rate 20")
    if rate and name != SERVER:
        raise UsageError("a rate is for a server", "--rate", "--scenario server --rate 20")
    if name == MULTI:
        calls_of_query(options.batch)
    least = stats.minimum_samples(_QUANTILES[name]) if name in _QUANTILES else profile.min_samples
    if name == SINGLE:
        least = max(least, profile.min_samples)
    if name == OFFLINE and profile.profile == "mlperf":
        least = math.ceil(OFFLINE_SAMPLES / options.batch)
    return replace(profile, processes=1, min_samples=least, scenario=name, rate=rate)


def stated(found: Measurement, raw: RawRun, plan: Plan) -> Measurement:
    """The measurement with what its scenario came to; as it is where there was none, or nothing was measured."""
    process = next((each for each in raw.processes if each.samples_ns), None)
    if not plan.scenario or process is None or process.timed is None:
        return found
    name, queries = plan.scenario, len(process.samples_ns)
    seconds = process.timed.end - process.timed.start
    throughput = queries * process.batch / seconds if seconds else None
    if name == OFFLINE:
        metric, unit, value, reason = "throughput", "samples/s", throughput, ""
    else:
        quantile = _QUANTILES[name]
        metric, unit = f"p{quantile * 100:g} latency", "ms"
        bound = early_stopping(process.samples_ns, quantile)
        value = None if bound is None else bound / 1e6
        reason = "" if value is not None else f"{queries} queries, {stats.minimum_samples(quantile)} are the least"
    short = _short(name, queries * process.batch, seconds)
    outcome = Scenario(
        name=name,
        metric=metric,
        unit=unit,
        value=value,
        queries=1 if name == OFFLINE else queries,
        samples_per_query=queries * process.batch if name == OFFLINE else process.batch,
        seconds=round(seconds, 3),
        valid=not short and not reason and found.status not in {"failed", "timeout"},
        reason="; ".join(filter(None, (reason, short))),
        rate_per_s=plan.rate or None,
        waiting=process.waiting,
    )
    warnings = [each for each in found.warnings if name != SERVER or each.code not in _OF_QUEUES]
    return replace(
        found,
        scenario=outcome,
        throughput_per_s=throughput,
        warnings=[*warnings, *_overload(outcome, process.samples_ns)],
    )


def words(found: Scenario) -> str:
    """What a run in a scenario came to, for people."""
    value = "-" if found.value is None else f"{found.value:.4g}"
    asked = f" at {found.rate_per_s:g} queries/s" if found.rate_per_s else ""
    queries = f"{found.queries:,} {'query' if found.queries == 1 else 'queries'}"
    said = "valid by MLPerf's rules" if found.valid else f"not a valid run: {found.reason}"
    counted = f"{queries} of {found.samples_per_query:,} in {found.seconds:.0f} s"
    return f"{found.metric} {value} {found.unit}{asked}, {counted}; {said}"


def early_stopping(samples: Sequence[int], quantile: float, confidence: float = 0.99) -> int | None:
    """LoadGen's estimate of a percentile (tolerance 0): no smaller than the true one, with this confidence; else null.

    It is the t-th largest sample, t being the largest number for which P(Binomial(n, 1 - q) <= t) <= 1 - confidence.
    """
    n, tail = len(samples), 1 - quantile
    total, t = 0.0, -1
    for k in range(n + 1):
        weight = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        total += math.exp(weight + k * math.log(tail) + (n - k) * math.log(quantile))
        if total > 1 - confidence:
            break
        t = k
    return sorted(samples)[n - t] if t >= 1 else None


def _short(name: str, samples: int, seconds: float) -> str:
    """What a run lacks to be valid by the rules, or nothing."""
    if seconds < SECONDS:
        return f"{seconds:.0f} s, where MLPerf's rules ask for {SECONDS:g} s: --profile mlperf"
    if name == OFFLINE and samples < OFFLINE_SAMPLES:
        return f"{samples:,} samples, where MLPerf's rules ask for {OFFLINE_SAMPLES:,}"
    return ""


def _overload(outcome: Scenario, samples: Sequence[int]) -> list[Caution]:
    """The warning of a server that did not keep up."""
    if outcome.name != SERVER or outcome.waiting <= max(_FEW, _LEFT_OVER * outcome.queries):
        return []
    waited = statistics.median(samples[-max(len(samples) // 20, 1) :]) / 1e9
    text = (
        f"{outcome.waiting:,} queries were left over at the end, and the last ones took {waited:.2g} s:"
        f" the board does not keep up with {outcome.rate_per_s:g} queries a second"
    )
    return [Caution("overload", text, "a lower --rate, more --threads, or a faster recipe")]
