"""Statistics of repeated timings: pure functions of the standard library, no units assumed.

Every figure here is distribution-free unless its docstring says otherwise: latencies are skewed, have several modes
and long tails, so nothing may lean on a bell curve. docs/measurement.md tells the same story in prose.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from edgepipe.record import Bound

CONFIDENCE = 0.95
SUSPICION = 0.4
# hyperfine's outlier rule: a modified z-score above 10, and 10 / 0.6745 = 14.826 MADs.
OUTLIER_MADS = 14.826
BLOCKS = 200
MIN_BLOCKS = 10

# A correlation that is one but for chance would leave no change to be seen.
_LONGEST_MEMORY = 0.98
_CERTAIN = 0.5  # below this swing the probability is 1 - 1e-6 or more, and the series converges too slowly to say so

# Two-sided 95 % points of Student's t by degrees of freedom (any statistical table).
_ROUNDING = 1e-12
_SMALLEST, _LARGEST_LOG = 1e-300, 700.0  # what a logarithm and its power can hold
_STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class Change:
    """The likeliest shift in a series: a segment ``[start, end)`` of it and how far its median lies off the rest.

    ``shift`` is relative (0.1 = the segment is 10 % slower), ``probability`` the chance of as large a swing in a
    series whose order means nothing.
    """

    start: int
    end: int
    shift: float
    probability: float


@lru_cache(maxsize=64)
def minimum_samples(quantile: float, confidence: float = 0.99) -> int:
    """Return how many samples a percentile needs before it may be stated.

    MLPerf's early stopping (LoadGen, tolerance d = 0) states a percentile once the second largest sample is an upper
    bound of it with the given confidence: the least n with P(Binomial(n, 1 - q) <= 1) <= 1 - confidence. For 0.99 that
    is 11 (p50), 64 (p90), 130 (p95), 219 (p97), 662 (p99) and 6,636 (p99.9).
    """
    n = 2
    while quantile**n + n * (1 - quantile) * quantile ** (n - 1) > 1 - confidence:
        n += 1
    return n


def percentile(ordered: Sequence[float], quantile: float) -> float:
    """Return the nearest-rank percentile of sorted samples: always a value that was really seen."""
    return ordered[max(math.ceil(quantile * len(ordered) - 1e-9), 1) - 1]


@lru_cache(maxsize=256)
def interval_ranks(n: int, quantile: float, confidence: float = CONFIDENCE) -> tuple[int | None, int | None]:
    """Return the ranks (1-based) of the order statistics that bound a percentile; null where n is too small.

    With B ~ Binomial(n, q), P(X(l) <= percentile < X(u)) = P(l <= B < u): exact for any distribution (David and
    Nagaraja, Order Statistics, section 7.1). Each tail gets half of 1 - confidence.
    """
    tail = (1 - confidence) / 2
    low = _binomial_quantile(n, quantile, tail)
    high = _binomial_quantile(n, quantile, 1 - tail) + 1
    return (low or None), (high if high <= n else None)


def _binomial_quantile(n: int, p: float, probability: float) -> int:
    """The least k with P(Binomial(n, p) <= k) > probability."""
    spread = 12 * math.sqrt(n * p * (1 - p)) + 12  # what lies further out weighs less than 1e-30
    constant, log_p, log_q = math.lgamma(n + 1), math.log(p), math.log1p(-p)
    total = 0.0
    for k in range(max(int(n * p - spread), 0), n + 1):
        total += math.exp(constant - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * log_p + (n - k) * log_q)
        if total > probability:
            return k
    return n


def autocorrelation(series: Sequence[float]) -> list[float]:
    """Return the correlation of each value with the one k places later, for k from 0 to a quarter of the series.

    A constant or empty series resembles itself at lag 0 alone.
    """
    products = _products(series, max(len(series) // 4, 2))
    if not products[0]:
        return [1.0] + [0.0] * (len(products) - 1)
    return [value / products[0] for value in products]


def _products(series: Sequence[float], lags: int) -> list[float]:
    """Sums of the products of each value with the one k places later, all less their mean; 0 for a constant series."""
    import numpy as np

    values = np.asarray(series, dtype=np.float64)
    if not len(values) or np.ptp(values) == 0:
        return [0.0] * lags
    size = 1 << (2 * len(values) - 1).bit_length()  # padded, so that the end does not meet the start
    spectrum = np.fft.rfft(values - values.mean(), size)
    return [float(value) for value in np.fft.irfft(spectrum * spectrum.conj(), size)[:lags]]


def effective_samples(groups: Sequence[Sequence[float]], threshold: float) -> int:
    """Return how many independent samples the groups are worth, where "below the threshold" tends to repeat itself.

    The bounds of a percentile rest on the count of samples below it. Where that indicator resembles itself at lag k
    with correlation r(k), its mean varies as that of n / (1 + 2 sum r(k)) independent ones. The sum ends with the
    first pair of lags that is not positive (Geyer 1992). Chance is not counted: r(1) below two standard errors,
    2 / sqrt n, leaves n as it is.
    """
    groups = [group for group in groups if group]
    total = sum(len(group) for group in groups)
    own = [autocorrelation([float(value <= threshold) for value in group]) for group in groups]
    lags = min(map(len, own), default=2)
    weights = [len(group) / total for group in groups]
    r = [math.fsum(w * rows[lag] for w, rows in zip(weights, own, strict=True)) for lag in range(lags)]
    return max(int(total / _repetition(r, total)[0]), 1)


def _repetition(r: Sequence[float], total: int) -> tuple[float, int]:
    """How many neighbours say the same thing, 1 + 2 sum r(k), and the last k that counts; see `effective_samples`."""
    if r[1] <= 2 / math.sqrt(max(total, 1)):
        return 1.0, 0
    added, last = r[1], 1
    for lag in range(2, len(r) - 1, 2):
        pair = r[lag] + r[lag + 1]
        if pair <= 0:
            break
        added, last = added + pair, lag + 1
    return 1 + 2 * added, last


@dataclass(frozen=True)
class Mean:
    """A mean with its standard error, that error's degrees of freedom, and the independent values it stands on."""

    value: float
    error: float
    degrees: float
    worth: float


def mean(groups: Sequence[Sequence[float]]) -> Mean:
    """Return the mean of all groups, each a series in time order, and how sure it is within them.

    The values' variance over the number of independent ones they are worth (see `effective_samples`). Each group is
    held against its own mean, which takes the variance of that mean from every autocovariance; it is put back, in two
    rounds (its bias to first order: Priestley, Spectral Analysis and Time Series, 1981, section 5.3). A sum of n
    values' correlations up to lag m varies with a relative variance of 2 (2 m + 1) / n, as that of n / (2 m + 1)
    degrees of freedom does (Sokal, Monte Carlo Methods in Statistical Mechanics, 1996, section 3).
    """
    groups = [group for group in groups if group]
    total = sum(map(len, groups))
    lags = max(min(map(len, groups)) // 4, 2)
    own = [_products(group, lags) for group in groups]
    seen = [max(total - len(groups) * lag, 1) for lag in range(lags)]
    plain = [math.fsum(rows[lag] for rows in own) / seen[lag] for lag in range(lags)]
    value = math.fsum(map(math.fsum, groups)) / total
    free = max(total - len(groups), 1)
    if not plain[0]:
        return Mean(value, 0.0, free, total)
    covariance, repetition, last = plain, 1.0, 0
    for _ in range(3):
        repetition, last = _repetition([each / covariance[0] for each in covariance], total)
        lost = covariance[0] * repetition * len(groups) / total
        covariance = [each + lost for each in plain]
    worth = max(total / repetition, 1.0)
    degrees = max(min(free, total / (2 * last + 1)), 1.0)
    return Mean(value, math.sqrt(covariance[0] / worth), degrees, worth)


def student(degrees: float) -> float:
    """Return the two-sided 95 % point of Student's t, for any degrees of freedom from 1 on.

    Beyond the table by its expansion about the normal distribution (Abramowitz and Stegun, 26.7.5), which is good to
    four digits there.
    """
    if degrees < len(_STUDENT_T):
        whole = max(int(degrees), 1)
        low, high = _STUDENT_T[whole - 1], _STUDENT_T[whole]
        return low + (high - low) * (max(degrees, 1.0) - whole)
    z = 1.959964
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def quantile_interval(groups: Sequence[Sequence[float]], quantile: float) -> Bound:
    """Return a percentile of all groups together with its 95 % interval. One group is one process, in time order.

    The bounds are order statistics of the pooled samples, for as many independent samples as there are. Where
    processes differ by more than chance (see `differing`), they are widened to what the processes show: their range,
    and the Student interval of the processes' own percentiles, cut at the samples seen (the highest level of
    repetition carries the error: Kalibera and Jones, ISMM 2013).
    """
    ordered = sorted(value for group in groups for value in group)
    need = minimum_samples(quantile)
    if len(ordered) < need:
        name = f"p{quantile * 100:g}"
        return Bound(None, reason=f"{name} needs {need:,} samples, there are {len(ordered):,}")
    value = percentile(ordered, quantile)
    worth = effective_samples(groups, value)
    low_rank, high_rank = interval_ranks(worth, quantile)
    if low_rank is None or high_rank is None:
        reason = f"no interval: the samples depend on each other and are worth {worth:,} independent ones"
        return Bound(value, reason=reason)
    low = ordered[max(math.floor(low_rank / worth * len(ordered)), 1) - 1]
    high = ordered[min(math.ceil(high_rank / worth * len(ordered)), len(ordered)) - 1]
    if differing(groups, quantile, value):
        spread = _spread([percentile(sorted(group), quantile) for group in groups if group])
        low, high = min(low, max(spread[0], ordered[0])), max(high, min(spread[1], ordered[-1]))
    return Bound(value, low, high)


def scaled(bound: Bound, unit: float) -> Bound:
    """The same figure in a unit that is ``unit`` times as large: ns become ms with 1e6."""
    value, low, high = (None if each is None else each / unit for each in (bound.value, bound.low, bound.high))
    return Bound(value, low, high, bound.reason)


def differing(groups: Sequence[Sequence[float]], quantile: float, value: float) -> bool:
    """Return whether any group's own interval for the percentile misses ``value``.

    A suspicion is enough: the groups share 40 % of false alarms. Widening without need costs little (the bounds of
    samples that are alike still hold 95 %); missing a spread as small as that of the samples costs much more.
    Groups too short for bounds of their own can't speak.
    """
    groups = [group for group in groups if group]
    if len(groups) == 1:
        return False
    for group in groups:
        worth = effective_samples([group], value)
        low, high = interval_ranks(worth, quantile, 1 - SUSPICION / len(groups))
        ordered = sorted(group)
        if low and ordered[max(math.floor(low / worth * len(group)), 1) - 1] > value:
            return True
        if high and ordered[min(math.ceil(high / worth * len(group)), len(group)) - 1] < value:
            return True
    return False


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """The wider of the range and the 95 % Student interval of a few positive values, on a scale of ratios.

    What slows a process down multiplies its times, so it is their logarithms that scatter evenly.
    """
    _, low, high = _on_logarithms(values)
    return min(*values, low), max(*values, high)


def ratio(ratios: Sequence[float]) -> Bound:
    """The geometric mean of at least two positive ratios with its 95 % Student interval, both taken on logarithms.

    For ratios of neighbours in time, which share whatever else the machine was doing, so that they scatter evenly.
    """
    return Bound(*_on_logarithms(ratios))


def _on_logarithms(values: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean, and the ends of its 95 % Student interval."""
    logs = [math.log(max(value, _SMALLEST)) for value in values]
    mean = statistics.fmean(logs)
    half = student(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    low, high = mean - half, mean + half
    return math.exp(mean), math.exp(min(low, _LARGEST_LOG)), math.exp(min(high, _LARGEST_LOG))


def within(value: float, limit: float) -> bool:
    """Whether ``value`` is at most ``limit``, but for rounding: a loss of 1 % passes a gate of 1 %."""
    return value <= limit + _ROUNDING


def outliers(samples: Sequence[float]) -> list[int]:
    """Return the positions of outliers: |x - median| / MAD > 14.826 (hyperfine). They are flagged, never deleted.

    Where more than half of the samples are equal the MAD is 0; it counts as a thousandth of the median then, so that
    the grain of a clock is no outlier.
    """
    if not samples:
        return []
    median = statistics.median(samples)
    mad = statistics.median([abs(value - median) for value in samples])
    limit = OUTLIER_MADS * max(mad, abs(median) / 1000)
    return [position for position, value in enumerate(samples) if abs(value - median) > limit]


def change(series: Sequence[float]) -> Change | None:
    """Return the likeliest shift of level in a series and its probability; null below 10 samples.

    The range of the cumulative sum of centred ranks, over its standard deviation sqrt(n (n^2 - 1) / 12), is
    distribution-free; for n -> infinity it is the range of a Brownian bridge, which has Kuiper's distribution (Kuiper
    1960; Lo 1991 for the range of partial sums). It sees a lasting step, a slow drift and a phase that comes and
    goes. Longer series are first cut into 200 blocks, each standing for its median. Values that resemble their
    neighbours swing further by themselves, which `_memory` takes out; so a wave of several periods is no change: it
    makes the samples worth fewer, and widens the bounds.
    """
    size = max(len(series) // BLOCKS, 1)
    blocks = [statistics.median(series[at : at + size]) for at in range(0, len(series) - size + 1, size)]
    n = len(blocks)
    if n < MIN_BLOCKS:
        return None
    ranks = _ranks(blocks)
    walk = _walk(ranks)
    top, bottom = walk.index(max(walk)), walk.index(min(walk))
    start, end = sorted((top, bottom))
    swing = (walk[top] - walk[bottom]) / math.sqrt(n * (n * n - 1) / 12 * _memory(ranks, start, end))
    inside = series[start * size : end * size]
    outside = [*series[: start * size], *series[end * size :]]
    shift = statistics.median(inside) / (statistics.median(outside) or 1.0) - 1 if inside and outside else 0.0
    return Change(start * size, end * size, shift, _kuiper(swing))


def _memory(ranks: Sequence[float], start: int, end: int) -> float:
    """By what the variance of sums of the ranks exceeds that of independent ones: (1 + r) / (1 - r), 1 at least.

    That is the long-run variance of a first-order autoregression with correlation r. A change resembles itself too:
    r is that of what is left by the levels before, in and after ``[start, end)``, or by a straight line where that
    leaves less, so that a step or a drift is not taken for memory. Each mean fitted costs r about (1 + 3 r) / n
    (Kendall 1954), which is put back. Below two standard errors, 2 / sqrt n, r is chance.
    """
    n = len(ranks)
    levels = []
    for part in (ranks[:start], ranks[start:end], ranks[end:]):
        level = statistics.fmean(part) if part else 0.0
        levels += [value - level for value in part]
    line = statistics.linear_regression(range(n), ranks)
    trend = [value - line.slope * at - line.intercept for at, value in enumerate(ranks)]
    r = min(_resemblance(levels, 3), _resemblance(trend, 2))
    return (1 + r) / (1 - r) if r > 2 / math.sqrt(n) else 1.0


def _resemblance(rest: Sequence[float], fitted: int) -> float:
    """The correlation of each value with the next one, less what fitting that many parameters took from it."""
    total = math.fsum(value * value for value in rest)
    if total <= _ROUNDING:
        return 0.0
    r = math.fsum(one * other for one, other in pairwise(rest)) / total
    return min(r + (1 + 3 * r) * fitted / len(rest), _LONGEST_MEMORY)


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    at = 0
    while at < len(order):
        end = at
        while end < len(order) and values[order[end]] == values[order[at]]:
            end += 1
        for position in order[at:end]:
            ranks[position] = (at + 1 + end) / 2
        at = end
    return ranks


def _walk(ranks: Sequence[float]) -> list[float]:
    """Cumulative sums of the centred ranks, from 0 to 0."""
    centre = (len(ranks) + 1) / 2
    sums = [0.0]
    for rank in ranks:
        sums.append(sums[-1] + rank - centre)
    return sums


def _kuiper(swing: float) -> float:
    """P(range of a Brownian bridge > swing) = 2 sum (4 j^2 s^2 - 1) exp(-2 j^2 s^2)."""
    terms = ((4 * j * j * swing * swing - 1) * math.exp(-2 * j * j * swing * swing) for j in range(1, 100))
    return min(max(2 * math.fsum(terms), 0.0), 1.0) if swing > _CERTAIN else 1.0
