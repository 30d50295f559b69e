"""Which candidates are worth the board, which are the best there are, and which one to recommend: pure functions.

All objectives are costs: less is better. A candidate is its figures, by the names of `edgepipe.budget`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edgepipe.budget import PERCENTILES, Budget, Excess, Figures

PROXIES = ("bytes", "drop", "macs")
"""What is known of a candidate before it runs, and tells two of the same arithmetic apart."""

_LEAST_ERROR = 1e-3  # below it a metric's error is luck, and must not win by its logarithm
_ALIKE = 0.05
_BEST = {"bytes": "smallest", "drop": "most accurate", "energy": "most frugal"}
_WORDS = {"bytes": "size", "drop": "error", "energy": "energy"}


def objectives(budget: Budget) -> tuple[str, ...]:
    """What a search makes small: size, loss, the percentile the budget names (else the median), energy."""
    return ("bytes", "drop", budget.percentile, "energy")


def known(points: Sequence[Figures], names: Sequence[str]) -> tuple[str, ...]:
    """The names for which every point has a figure: what can be compared."""
    return tuple(name for name in names if all(point.get(name) is not None for point in points))


def dominates(one: Figures, other: Figures, names: Sequence[str]) -> bool:
    """Whether ``one`` is nowhere worse and somewhere better. Every figure of ``names`` must be known."""
    pairs = [(_value(one, name), _value(other, name)) for name in names]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def front(points: Sequence[Figures], names: Sequence[str]) -> list[int]:
    """The places of the points that no other one dominates, in order."""
    return [at for at, point in enumerate(points) if not any(dominates(other, point, names) for other in points)]


def beaten(figures: Figures, rivals: Mapping[str, Figures]) -> str | None:
    """The rival of the same arithmetic that is nowhere worse by the proxies, or None.

    It stands for the candidate on the board: with the same arithmetic, no more multiply-accumulates and no more bytes
    are not slower, as a rule. Where a proxy is not known nothing can be said.
    """
    if known([figures], PROXIES) != PROXIES:
        return None
    for name, rival in rivals.items():
        comparable = known([rival], PROXIES) == PROXIES
        if comparable and all(_value(rival, key) <= _value(figures, key) for key in PROXIES):
            return name
    return None


def choose(points: Sequence[Figures], budget: Budget, steps: Sequence[int] = ()) -> tuple[int, str]:
    """The place of the point to recommend among those that keep the budget, and why.

    A limit says what is good enough, so what counts is what has none: the least product of those costs. Where all are
    limited, or none is, all count. The product of ratios needs no weights: halving the time is worth as much as
    halving the file or the share of wrong answers. Among those within 5 % of it, where a few samples or a restless
    board would decide, the one with the fewest ``steps`` wins.
    """
    names = known(points, objectives(budget))
    free = [name for name in names if not _limited(name, budget)] or list(names)

    def cost(at: int) -> tuple[float, ...]:
        point = points[at]
        return (sum(_log(point, name) for name in free), *(_value(point, name) for name in names))

    best = min(range(len(points)), key=cost)
    alike = [at for at in range(len(points)) if cost(at)[0] <= cost(best)[0] + math.log1p(_ALIKE)]
    simplest = min(alike, key=lambda at: (steps[at] if steps else 0, cost(at)))
    words = " x ".join(_WORDS.get(name, "time") for name in free)
    why = f"the {_BEST.get(free[0], 'fastest')}" if len(free) == 1 else f"the least {words}"
    return simplest, why if simplest == best else f"the fewest steps within {_ALIKE:.0%} of {why}"


def nearest(points: Sequence[Figures], budget: Budget) -> int:
    """The place of the point that breaks the budget least: by how many limits are unknown, then by how far in all."""

    def distance(at: int) -> tuple[int, float]:
        shares = [excess.share for excess in budget.broken(points[at])]
        return sum(map(math.isinf, shares)), sum(share for share in shares if math.isfinite(share))

    return min(range(len(points)), key=distance)


def blame(points: Sequence[Figures], budget: Budget) -> tuple[str, ...]:
    """The names of the limits that can't be kept: those that every point breaks of which the figure is known.

    Else those of which no point has the figure; else all of them: each is kept by some point, but never together.
    """
    figures = {name: [point for point in points if point.get(name) is not None] for name in budget.names}
    alone = [name for name, some in figures.items() if some and all(budget.broken(point, [name]) for point in some)]
    return tuple(alone or [name for name, some in figures.items() if not some] or budget.names)


def told(excesses: Sequence[Excess]) -> str:
    """Broken limits in words."""
    return ", ".join(map(str, excesses))


def _limited(name: str, budget: Budget) -> bool:
    if name in PERCENTILES:
        return any(limited in PERCENTILES for limited in budget.names)
    return name in budget.names or (name == "bytes" and "gzip" in budget.names)


def _value(figures: Figures, name: str) -> float:
    value = figures[name]
    assert value is not None
    return value


def _log(figures: Figures, name: str) -> float:
    """The logarithm of a cost; of the loss it is that of the share of wrong answers, where the metric is a share."""
    value = _value(figures, name)
    if name == "drop":
        accuracy = figures.get("accuracy")
        value = 1 - accuracy if accuracy is not None and 0 <= accuracy <= 1 else 1.0
        value = max(value, _LEAST_ERROR)
    return math.log(value) if value > 0 else 0.0
