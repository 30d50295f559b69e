"""The range of an activation, estimated from what calibration data shows of it; the same rules for every format.

A `Collector` watches one tensor, batch by batch, in constant memory; `Collector.range` then applies its `Rule`:

* ``minmax``: everything seen.
* ``percentile``: the central ``percentile`` % of all values, half of the rest cut off on each side.
* ``mse``: least expected squared error: step^2 / 12 for each value inside, the squared distance for each outside
  (the model of Banner, Nahshan, Soudry, "Post training 4-bit quantization", 2019, with the histogram as density).
* ``entropy``: least Kullback-Leibler divergence between the values and the quantised values, both ends cut at the same
  distance from zero (Migacz, "8-bit inference with TensorRT", 2017), with single values that keep coming left out.

Every range holds zero, since zero must be representable: paddings and ReLUs make it. Imports numpy, so import it inside
the function that needs it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgepipe.errors import IntegrityError

METHODS = ("minmax", "percentile", "entropy", "mse")
SIDE = 4096
"""Bins on each side of zero. The larger side of a distribution fills more than half of them."""

_KEPT = 1 << 19  # values of one batch that enter the histogram; of more, evenly spaced ones do
_CANDIDATES = 128  # thresholds tried on each side
_NARROWEST = 1e-10  # a narrower range would make the product of two scales vanish in float32

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Rule:
    """How a range is estimated: ``bits`` of the integers, ``symmetric`` around zero or not, ``percentile`` in %."""

    method: str = "minmax"
    bits: int = 8
    symmetric: bool = False
    percentile: float = 99.99

    @property
    def levels(self) -> int:
        """Integers in use: symmetric ranges leave out the lowest one, so that zero is in the middle."""
        return int(2**self.bits) - (1 if self.symmetric else 0)


class Collector:
    """Streaming statistics of the tensor ``name``: exact extremes, and a histogram where the rule wants one.

    The width of a bin is a power of two that doubles when a value falls outside, so the histogram does not depend on
    the order of the batches. Exact zeros are counted apart: every range represents them without error.
    """

    def __init__(self, name: str, rule: Rule) -> None:
        self._name, self._rule = name, rule
        self._low = self._high = 0.0
        self._zeros = 0
        self._width = 0.0
        self._counts = np.zeros(2 * SIDE + 1, np.int64)  # bin i holds [(i - SIDE) * width, (i - SIDE + 1) * width)
        self._seen = False

    def add(self, values: Array) -> None:
        """Take in a batch of any shape and any float type.

        Raises:
            IntegrityError: a value is NaN or infinite.
        """
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            what = f"calibration met NaN or infinity in tensor {self._name[:120]}"
            fix = "look for overflow, a division by zero or a mask of -inf before it; check the data's range"
            raise IntegrityError(what, "calibration", fix)
        self._seen = True
        self._low, self._high = min(self._low, low), max(self._high, high)
        if self._rule.method != "minmax":
            self._count(values.reshape(-1), max(-low, high))

    @property
    def seen(self) -> bool:
        """Whether any batch came."""
        return self._seen

    @property
    def extremes(self) -> tuple[float, float]:
        """The lowest and the highest value seen, or zero where all lie beyond it."""
        return self._low, self._high

    def range(self) -> tuple[float, float]:
        """The range (low <= 0 <= high, low < high); (-1, 1) or (0, 1) where nothing but zeros was seen.

        Raises:
            IntegrityError: nothing was seen.
        """
        if not self._seen:
            raise IntegrityError(f"calibration saw no values of tensor {self._name[:120]}", "calibration", "add data")
        low, high = self._low, self._high
        if self._counts.any():
            rules = {"percentile": self._percentile, "entropy": self._entropy, "mse": self._mse}
            low, high = rules[self._rule.method]()
            low, high = max(low, self._low), min(high, self._high)
        if low == high:  # both are zero, as zero is always inside
            high = 1.0
        if high - low < _NARROWEST:
            low, high = low * _NARROWEST / (high - low), high * _NARROWEST / (high - low)
        if self._rule.symmetric:
            high = max(-low, high)
            low = -high
        return low, high

    def _count(self, values: Array, reach: float) -> None:
        if reach == 0:
            self._zeros += values.size
            return
        if values.size > _KEPT:
            stride = -(-values.size // _KEPT)
            while math.gcd(stride, values.size) != 1:  # or it would meet the same columns of an image again and again
                stride += 1
            values = values[::stride]
        self._widen(reach)
        bins = np.floor(values.astype(np.float64) / self._width).astype(np.int32) + SIDE
        self._counts += np.bincount(bins, minlength=self._counts.size)
        zeros = values.size - int(np.count_nonzero(values))
        self._counts[SIDE] -= zeros
        self._zeros += zeros

    def _widen(self, reach: float) -> None:
        """Merge pairs of bins until the histogram reaches as far as ``reach``."""
        width = 2.0 ** math.ceil(math.log2(reach / SIDE))
        while reach > width * SIDE:  # the logarithm may round down
            width *= 2
        self._width = self._width or width
        while self._width < width:
            merged = np.zeros_like(self._counts)
            merged[SIDE // 2 : SIDE // 2 + SIDE] = self._counts[:-1].reshape(-1, 2).sum(1)
            merged[SIDE // 2 + SIDE] = self._counts[-1]
            self._counts = merged
            self._width *= 2

    def _percentile(self) -> tuple[float, float]:
        counts = self._counts.copy()
        counts[SIDE] += self._zeros
        outside = counts.sum() * (1 - self._rule.percentile / 100)
        if self._rule.symmetric:
            # |x| has both ends in one: bin k of the positive side and its mirror image, bin -k - 1, fold together.
            folded = counts[SIDE:].copy()
            folded[:SIDE] += counts[SIDE - 1 :: -1]
            last = int(np.argmax(folded[::-1].cumsum() > outside))
            high = (folded.size - last) * self._width
            return -high, high
        first = int(np.argmax(counts.cumsum() > outside / 2))
        last = counts.size - int(np.argmax(counts[::-1].cumsum() > outside / 2))
        return min((first - SIDE) * self._width, 0.0), max((last - SIDE) * self._width, 0.0)

    def _mse(self) -> tuple[float, float]:
        counts = self._counts.astype(np.float64)
        centres = (np.arange(counts.size) - SIDE + 0.5) * self._width
        if self._rule.symmetric:
            counts, centres = np.concatenate([counts, counts]), np.concatenate([centres, -centres])
        highs = self._ends(max(self._high, -self._low) if self._rule.symmetric else self._high)
        above, beyond_high = _clipping(counts, centres, highs)
        if self._rule.symmetric:
            step = 2 * highs / (self._rule.levels - 1)
            inside = counts.sum() - 2 * above
            high = float(highs[np.argmin(inside * step**2 / 12 + 2 * beyond_high)])
            return -high, high
        lows = self._ends(-self._low)
        below, beyond_low = _clipping(counts, -centres, lows)
        step = (highs[None, :] + lows[:, None]) / (self._rule.levels - 1)
        inside = counts.sum() - above[None, :] - below[:, None]
        loss = inside * step**2 / 12 + beyond_high[None, :] + beyond_low[:, None]
        i, j = np.unravel_index(int(np.argmin(loss)), loss.shape)
        return 0.0 - float(lows[i]), float(highs[j])

    @staticmethod
    def _ends(reach: float) -> Array:
        """Candidates for one end, as distances from zero; zero alone where nothing lies on that side."""
        return np.linspace(reach / _CANDIDATES, reach, _CANDIDATES) if reach > 0 else np.zeros(1)

    def _entropy(self) -> tuple[float, float]:
        reach = max(-self._low, self._high)
        shape = _without_spikes(self._counts.astype(np.float64))
        best, found = math.inf, (self._low, self._high)
        for end in self._ends(reach)[::-1]:
            low, high = -float(end), float(end)
            if not self._rule.symmetric:
                low, high = max(low, self._low), min(high, self._high)
            first, last = math.floor(low / self._width), math.floor(high / self._width)
            if end < reach and last - first < self._rule.levels:
                break  # fewer bins than levels: the histogram can't tell the difference any more
            loss = self._divergence(shape, first + SIDE, last + SIDE + 1)
            if loss < best:
                best, found = loss, (low, high)
        return found

    def _divergence(self, shape: Array, first: int, end: int) -> float:
        """Kullback-Leibler divergence of the values clipped to bins [first, end) from those inside, quantised."""
        inside = shape[first:end]
        used = np.flatnonzero(inside)
        if not used.size:
            return math.inf
        clipped = inside[used]
        clipped[0] += self._counts[:first].sum()
        clipped[-1] += self._counts[end:].sum()
        level = np.arange(inside.size) * min(self._rule.levels, inside.size) // inside.size
        quantised = (np.bincount(level, inside) / np.maximum(np.bincount(level, inside > 0), 1))[level][used]
        p, q = clipped / clipped.sum(), quantised / quantised.sum()
        return float((p * np.log(p / q)).sum())


def _without_spikes(counts: Array) -> Array:
    """Cap each bin at four times the mean of its neighbours.

    A value that comes again and again (a constant background behind a layer) stays one value when it is quantised. To
    the divergence it would be a shape that only ever finer steps can follow, at the price of everything above.
    """
    neighbours = (np.convolve(counts, np.ones(17), "same") - counts) / 16
    capped: Array = np.minimum(counts, 4 * neighbours)
    return capped if capped.any() else counts


class Mean:
    """The mean of a tensor over the axes ``axes`` of each batch and over all batches; None before the first batch.

    A layer that is linear in its input makes the mean output from the mean input: what bias correction needs.
    """

    def __init__(self, axes: tuple[int, ...]) -> None:
        self._axes = axes
        self._sum: Array | None = None
        self._count = 0

    def add(self, values: Array) -> None:
        """Take in a batch; its sizes outside ``axes`` must be those of the first one."""
        total = values.sum(axis=self._axes, keepdims=True, dtype=np.float64)
        self._sum = total if self._sum is None else self._sum + total
        self._count += math.prod(values.shape[axis] for axis in self._axes)

    @property
    def value(self) -> Array | None:
        """The mean as float64, the reduced axes kept with size 1."""
        return None if self._sum is None else self._sum / self._count


def _clipping(counts: Array, centres: Array, ends: Array) -> tuple[Array, Array]:
    """For each candidate end: how many values lie above it, and the sum of their squared distances to it."""
    order = np.argsort(centres)
    counts, centres = counts[order], centres[order]
    sums = [np.append((counts * centres**power)[::-1].cumsum()[::-1], 0.0) for power in (0, 1, 2)]
    first = np.searchsorted(centres, ends, side="right")
    number, linear, square = (column[first] for column in sums)
    return number, np.maximum(square - 2 * ends * linear + ends**2 * number, 0.0)
