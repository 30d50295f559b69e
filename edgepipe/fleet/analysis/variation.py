"""Boards of one kind against each other: how much they differ, apart from how much a board differs from itself.

Times are compared on logarithms, as shares of the median of the same candidate on the other boards of the kind.
"""

# ruff: noqa: UP045 - the codec reads Optional

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

from edgepipe import stats
from edgepipe.fleet.analysis import chances
from edgepipe.record import Bound

SURE = 0.05
_LEAST = 3  # boards of a kind, for fewer can't say which of them is the odd one
_SHOWN = 0.02  # a board closer to the others than this is no news, however sure
_COOLER = 5.0  # degrees C


@dataclass(frozen=True)
class Odd:
    """A board held against the others of its kind: its time as a share of theirs, and why it may be so."""

    board: str
    kind: str
    ratio: Bound
    p: Optional[float]
    p_holm: Optional[float]
    odd: bool
    causes: list[str]

    @property
    def told(self) -> str:
        """In words."""
        off = (self.ratio.value or 1.0) - 1
        why = f", it {' and '.join(self.causes)}" if self.causes else ", and nothing measured says why"
        return f"board {self.board} is {abs(off):.0%} {'slow' if off > 0 else 'fast'}{why if self.odd else ''}"


@dataclass(frozen=True)
class Spread:
    """Of one candidate on the boards of one kind: standard deviations as shares of the time.

    ``between`` is that of boards, with what rounds alone would give taken out; ``within`` is that of rounds on a board.
    """

    kind: str
    candidate: str
    boards: int
    rounds: int
    median_ms: float
    between: Optional[float]
    within: Optional[float]
    reason: str = ""


@dataclass(frozen=True)
class Variation:
    """What a run says of its boards."""

    spreads: list[Spread]
    boards: list[Odd]


def of(rows: Sequence[dict[str, Any]]) -> Variation:
    """Hold the boards of each kind against each other; ``rows`` are those of `table.rows`, of one run or several."""
    usable = [row for row in rows if row["p50_ms"] and row["status"] in {"ok", "unstable", "throttled"}]
    groups: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in usable:
        candidate = f"{row['model']} {row['recipe']} {row['format']}"
        groups[row["kind"], candidate][row["board"]].append(math.log(row["p50_ms"]))
    spreads = [_spread(kind, candidate, boards) for (kind, candidate), boards in groups.items()]
    found = _odd(groups, usable)
    adjusted = chances.holm([each.p for each in found])
    judged = [
        replace(each, p_holm=p, odd=p is not None and p < SURE and abs((each.ratio.value or 1.0) - 1) > _SHOWN)
        for each, p in zip(found, adjusted, strict=True)
    ]
    return Variation(spreads, sorted(judged, key=lambda each: (not each.odd, each.kind, each.board)))


def _spread(kind: str, candidate: str, boards: dict[str, list[float]]) -> Spread:
    """Variance components of a one-way layout (Searle, Casella and McCulloch, Variance Components, 1992, 3.6)."""
    times = [each for own in boards.values() for each in own]
    median = math.exp(statistics.median(times))
    count, total = len(boards), len(times)
    known = Spread(kind, candidate, count, max(map(len, boards.values())), median, None, None)
    if count < 2:  # noqa: PLR2004
        return replace(known, reason="one board of this kind")
    if total == count:
        both = statistics.stdev(times)
        return replace(known, between=both, reason="one round: what boards differ by is not apart from rounds")
    means = {board: statistics.fmean(own) for board, own in boards.items()}
    middle = statistics.fmean(times)
    inner = sum((each - means[board]) ** 2 for board, own in boards.items() for each in own) / (total - count)
    outer = sum(len(own) * (means[board] - middle) ** 2 for board, own in boards.items()) / (count - 1)
    each = (total - sum(len(own) ** 2 for own in boards.values()) / total) / (count - 1)
    return replace(known, between=math.sqrt(max(0.0, (outer - inner) / each)), within=math.sqrt(inner))


def _odd(groups: dict[tuple[str, str], dict[str, list[float]]], rows: Sequence[dict[str, Any]]) -> list[Odd]:
    """Each board of a kind that has enough of them, by the mean over candidates of its distance to the others."""
    off: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for (kind, _), boards in groups.items():
        means = {board: statistics.fmean(own) for board, own in boards.items()}
        squares[kind][0] += sum((each - means[board]) ** 2 for board, own in boards.items() for each in own)
        squares[kind][1] += sum(len(own) - 1 for own in boards.values())
        for board, own in boards.items() if len(boards) >= _LEAST else ():
            others = [mean for name, mean in means.items() if name != board]
            rounds = sum(len(each) for name, each in boards.items() if name != board)
            # A median of many varies by pi / 2 as much as their mean.
            off[kind, board].append((means[board] - statistics.median(others), 1 / len(own) + math.pi / 2 / rounds))
    found = []
    for (kind, board), own_off in off.items():
        ratio, p = _judged(own_off, *squares[kind])
        found.append(Odd(board, kind, ratio, p, None, False, _causes(kind, board, rows)))
    return found


def _judged(off: list[tuple[float, float]], squares: float, degrees: float) -> tuple[Bound, float | None]:
    """The mean distance as a ratio with its 95 % interval, and its chance.

    ``off`` are distances on logarithms with their variances, in units of that of rounds, which all boards of the kind
    tell together (``squares`` over ``degrees``). With one round the candidates have to tell it.
    """
    if degrees < 1 or not squares:
        return chances.of_ratios([math.exp(distance) for distance, _ in off])
    mean = statistics.fmean(distance for distance, _ in off)
    error = math.sqrt(squares / degrees * sum(variance for _, variance in off)) / len(off)
    half = stats.student(degrees) * error
    ratio = Bound(math.exp(mean), math.exp(mean - half), math.exp(mean + half))
    return ratio, chances.two_sided(mean / error, degrees)


def _causes(kind: str, board: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """What was measured on this board and not on the others of its kind."""
    own = [row for row in rows if (row["kind"], row["board"]) == (kind, board)]
    others = [row for row in rows if row["kind"] == kind and row["board"] != board]
    found = []
    throttled = [sum(bool(row["throttled"]) or row["status"] == "throttled" for row in side) for side in (own, others)]
    if throttled[0] * len(others) > throttled[1] * len(own):
        found.append("throttles" if throttled[0] == len(own) else f"throttled in {throttled[0]} of {len(own)} trials")
    clock, normal = _median(own, "clock_khz"), _median(others, "clock_khz")
    if clock and normal and abs(clock / normal - 1) > _SHOWN:
        found.append(f"runs at {clock / 1000:.0f} MHz where others run at {normal / 1000:.0f}")
    warm, usual = _median(own, "max_c"), _median(others, "max_c")
    if warm and usual and abs(warm - usual) > _COOLER:
        found.append(f"is at {warm:.0f} \N{DEGREE SIGN}C where others are at {usual:.0f}")
    versions = [{f"{row['runtime']} {row['runtime_version']}" for row in side} for side in (own, others)]
    if versions[0] - versions[1]:
        found.append(f"has {', '.join(sorted(versions[0]))} where others have {', '.join(sorted(versions[1]))}")
    return found


def _median(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return statistics.median(values) if values else None
