"""A budget: what a deployed model may cost at most, written as ``p90<=30ms,drop<=1%,bytes<=500k``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from edgepipe import plugins, stats
from edgepipe.errors import UsageError

Figures = Mapping[str, float | None]
"""What is known of a candidate, by the names of `MEASURES`; a figure that nobody took is null."""

EXAMPLE = '--budget "p90<=30ms,drop<=1%,bytes<=500k"'
PERCENTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
HOST = ("bytes", "gzip", "parameters", "macs", "drop")
"""Measures that are known before any board is asked."""

_POINT = 0.01  # a limit on the drop near 0 is exceeded "once over" by one point of the metric
_LIMIT = re.compile(r"\s*([a-z0-9_]+)\s*(<=|≤)\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµ%]*)\s*\Z")
_COUNT = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}
_SIZE = {**_COUNT, "B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9}
_TIME = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
_SHARE = {"%": 0.01, "": 1.0}
_WORK = {"uJ": 1e-3, "µJ": 1e-3, "mJ": 1.0, "J": 1e3}


@dataclass(frozen=True)
class Measure:
    """Something a budget can limit: its units with their factors to the unit the figure is kept in."""

    help: str
    units: Mapping[str, float]
    example: str
    show: Callable[[float], str]


def _scaled(unit: str) -> Callable[[float], str]:
    def show(value: float) -> str:
        for prefix in ("", "k", "M"):
            if abs(value) < 1000:  # noqa: PLR2004  decimal units by definition
                return f"{value:.4g} {prefix}{unit}".rstrip()
            value /= 1000
        return f"{value:.4g} G{unit}"

    return show


def _per_cent(value: float) -> str:
    return f"{100 * value:.4g} %"


def _number(unit: str) -> Callable[[float], str]:
    return lambda value: f"{value:.4g} {unit}"


MEASURES: dict[str, Measure] = {
    **{name: Measure(f"{name} of the time of one call", _TIME, "30ms", _number("ms")) for name in PERCENTILES},
    "drop": Measure("loss of the task's metric against the float model", _SHARE, "1%", _per_cent),
    "bytes": Measure("size of the file", _SIZE, "500k", _scaled("B")),
    "gzip": Measure("size of the file as gzip packs it", _SIZE, "500k", _scaled("B")),
    "memory": Measure("peak memory of the runtime's process", _SIZE, "64M", _scaled("B")),
    "parameters": Measure("parameters of the network", _COUNT, "1M", _scaled("")),
    "macs": Measure("multiply-accumulates of one sample", _COUNT, "10M", _scaled("")),
    "energy": Measure("energy of one inference", _WORK, "5mJ", _number("mJ")),
}


@dataclass(frozen=True)
class Limit:
    """A measure and the largest value it may have: ms, bytes, mJ, counts, or a share of 1 for ``drop``."""

    name: str
    most: float

    def __str__(self) -> str:
        return f"{self.name} <= {MEASURES[self.name].show(self.most)}"


@dataclass(frozen=True)
class Excess:
    """A limit that is not kept. ``share`` is by how much of itself it is exceeded; infinite where nobody knows."""

    limit: Limit
    value: float | None
    share: float
    reason: str = ""

    def __str__(self) -> str:
        name, show = self.limit.name, MEASURES[self.limit.name].show
        if self.value is None:
            return f"{name} is not known ({self.reason or 'it was not measured'})"
        return f"{name} {show(self.value)} > {show(self.limit.most)}"


@dataclass(frozen=True)
class Budget:
    """Limits in the order they were written; no limits is a budget that everything keeps."""

    limits: tuple[Limit, ...] = ()

    def __str__(self) -> str:
        return ", ".join(map(str, self.limits)) or "no limits"

    @property
    def names(self) -> tuple[str, ...]:
        """What is limited."""
        return tuple(limit.name for limit in self.limits)

    @property
    def percentile(self) -> str:
        """The latency percentile that counts: the first one limited, else the median."""
        return next((name for name in self.names if name in PERCENTILES), "p50")

    def broken(
        self, figures: Figures, names: Iterable[str] | None = None, reasons: Mapping[str, str] | None = None
    ) -> list[Excess]:
        """The limits (among ``names``, default all) that ``figures`` break; what is not known is not kept."""
        wanted = set(self.names if names is None else names)
        found = []
        for limit in self.limits:
            value = figures.get(limit.name)
            if limit.name not in wanted or (value is not None and stats.within(value, limit.most)):
                continue
            share = math.inf if value is None else (value - limit.most) / _scale(limit)
            found.append(Excess(limit, value, share, (reasons or {}).get(limit.name, "")))
        return found


def _scale(limit: Limit) -> float:
    return max(limit.most, _POINT) if limit.name == "drop" else limit.most


def parse(text: str) -> Budget:
    """Read limits joined by commas; an empty text is a budget without limits.

    Raises:
        UsageError: not of the form ``name<=number unit``, an unknown name or unit, a limit given twice or of nothing.
    """
    if not text.strip():
        return Budget()
    limits = [_limit(part) for part in text.split(",")]
    names = [limit.name for limit in limits]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UsageError(f"{twice} is limited twice", f"--budget {text!r}", "say each limit once")
    return Budget(tuple(limits))


def _limit(text: str) -> Limit:
    where = f"--budget, {text.strip()[:60]!r}"
    found = _LIMIT.match(text)
    if not found:
        raise UsageError("not a limit", where, f"write name<=number and its unit, e.g. {EXAMPLE}")
    name, _, digits, unit = found.groups()
    if name not in MEASURES:
        raise plugins.unknown("measure of a budget", name, list(MEASURES))
    measure = MEASURES[name]
    fix = f"e.g. {name}<={measure.example}"
    if unit not in measure.units:
        units = ", ".join(word or "none" for word in measure.units)
        what = f"{unit} is not a unit of {name}" if unit else f"{name} needs a unit"
        raise UsageError(f"{what} (known: {units})", where, fix)
    try:
        most = float(digits) * measure.units[unit]
    except ValueError:
        raise UsageError(f"{digits} is not a number", where, fix) from None
    if not math.isfinite(most) or (most <= 0 and name != "drop"):
        raise UsageError(f"{name} can't be limited to {digits}", where, f"a limit is above 0, {fix}")
    if name == "drop" and most > 1:
        raise UsageError("a drop is a share, at most 100 %", where, fix)
    return Limit(name, most)
