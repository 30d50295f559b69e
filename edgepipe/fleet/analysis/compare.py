"""Two runs of a fleet against each other, candidate by candidate and board by board, as one family of tests each."""

# ruff: noqa: UP045 - the codec reads Optional

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from edgepipe import codec, ratios, versus
from edgepipe.errors import GateError, UsageError
from edgepipe.fleet.analysis import chances
from edgepipe.fleet.plan import Request
from edgepipe.record import Bound, Difference

SURE = 0.05


@dataclass(frozen=True)
class Changed:
    """Time of the second run over that of the first; ``board`` is empty for all boards together, ``pairs`` of trials.

    ``p_holm`` is adjusted for all rows of the same list. The verdict is as of `versus.verdict`, and sure only where
    ``p_holm`` lies below 0.05.
    """

    candidate: str
    board: str
    pairs: int
    ratio: Bound
    p: Optional[float]
    p_holm: Optional[float] = None
    verdict: str = versus.UNKNOWN


@dataclass(frozen=True)
class Comparison:
    """Two runs: what differs in how they were measured; each candidate over all boards, and on each board."""

    first: str
    second: str
    differs: list[Difference]
    candidates: list[Changed]
    boards: list[Changed]
    left_out: int
    max_slowdown: float
    schema: str = field(default="edgepipe.fleet-comparison/1")


def runs(
    one: tuple[str, Request, Sequence[dict[str, Any]]],
    other: tuple[str, Request, Sequence[dict[str, Any]]],
    limit: float,
    force: bool,
) -> Comparison:
    """Compare two runs (id, request, rows of `table.rows`), trial by trial: same board, candidate and round.

    Raises:
        UsageError: they were measured otherwise and ``force`` is false; they share no trial; one of them is emulated.
    """
    where, differs = f"{one[0]} and {other[0]}", _differences(one[1], other[1])
    if differs and not force:
        listed = "; ".join(f"{each.what}: {each.a} / {each.b}" for each in differs)
        raise UsageError(f"not comparable: {listed}", where, "measure both alike, or look with --force")
    sides = [{_key(row): row for row in side[2]} for side in (one, other)]
    shared = [key for key in sides[0] if key in sides[1]]
    if not shared:
        raise UsageError("the two runs share no board and candidate", where, "name runs of the same fleet")
    if any(bool(sides[0][key]["emulated"]) != bool(sides[1][key]["emulated"]) for key in shared):
        raise UsageError("a board is real in one and emulated in the other", where, "measure both on the same boards")
    pairs = [(sides[0][key], sides[1][key]) for key in shared]
    good = [(a, b) for a, b in pairs if _good(a) and _good(b)]
    total = len(set(sides[0]) | set(sides[1]))
    candidates, boards = _together(good), _apart(good)
    return Comparison(
        one[0], other[0], differs, _judged(candidates, limit), _judged(boards, limit), total - len(good), limit
    )


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("board", "model", "recipe", "format", "round"))


def _good(row: dict[str, Any]) -> bool:
    """Unstable and throttled runs are no evidence, nor are failed ones."""
    return row["status"] == "ok" and bool(row["p50_ms"])


def _differences(one: Request, other: Request) -> list[Difference]:
    sides = [
        {"profile": side.plan.profile, "plan": codec.canonical(side.plan).decode(), "options": str(side.options)}
        for side in (one, other)
    ]
    found = [Difference(name, sides[0][name], sides[1][name]) for name in sides[0]]
    return [each for each in found if each.a != each.b]


def _name(row: dict[str, Any]) -> str:
    return f"{row['model']} {row['recipe']} {row['format']}"


def _together(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[Changed]:
    """Each candidate: a board counts once, by the mean of its rounds, for it is the boards that were drawn."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for a, b in pairs:
        found[_name(a)][a["board"]].append(math.log(b["p50_ms"] / a["p50_ms"]))
    made = []
    for name, boards in found.items():
        ratio, p = chances.of_ratios([math.exp(sum(own) / len(own)) for own in boards.values()])
        made.append(Changed(name, "", sum(map(len, boards.values())), ratio, p))
    return made


def _apart(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[Changed]:
    """Each candidate on each board: over its rounds, or by the two runs' own intervals where there is one round."""
    found: dict[tuple[str, str], list[tuple[dict[str, Any], dict[str, Any]]]] = defaultdict(list)
    for a, b in pairs:
        found[_name(a), a["board"]].append((a, b))
    made = []
    for (name, board), own in found.items():
        if len(own) > 1:
            ratio, p = chances.of_ratios([b["p50_ms"] / a["p50_ms"] for a, b in own])
        else:
            first, second = (Bound(row["p50_ms"], row["p50_low_ms"], row["p50_high_ms"]) for row in own[0])
            ratio = ratios.quotient(second, first)
            p = chances.of_bounds(ratio)
        made.append(Changed(name, board, len(own), ratio, p))
    return made


def _judged(found: Sequence[Changed], limit: float) -> list[Changed]:
    """With p-values adjusted for all rows; a verdict that they do not bear out is "no difference shown"."""
    adjusted = chances.holm([each.p for each in found])
    judged = []
    for each, p in zip(found, adjusted, strict=True):
        verdict = versus.verdict(each.ratio, limit)
        if verdict in {versus.REGRESSION, versus.SLOWER, versus.FASTER} and (p is None or p >= SURE):
            verdict = versus.SAME
        judged.append(Changed(each.candidate, each.board, each.pairs, each.ratio, each.p, p, verdict))
    return judged


def gate(found: Comparison) -> GateError | None:
    """The error of a comparison that shows a regression, of a candidate or on a board, if one does."""
    bad = [each for each in found.candidates + found.boards if each.verdict == versus.REGRESSION]
    if not bad:
        return None
    first = bad[0]
    ratio, where = first.ratio, f" on {first.board}" if first.board else ""
    what = f"{first.candidate}{where} takes {ratio.value:.3f} of its time [{ratio.low:.3f}, {ratio.high:.3f}]"
    more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
    fix = "or allow it: --max-slowdown 10%"
    return GateError(
        f"{what}, over the {1 + found.max_slowdown:g} allowed{more}", f"{found.first}, {found.second}", fix
    )
