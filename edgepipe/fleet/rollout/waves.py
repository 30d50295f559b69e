"""Waves of a roll-out, and what decides about them. Pure: no board, disk or clock is asked."""

# ruff: noqa: UP045 - the codec reads Optional

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Optional

from edgepipe.errors import UsageError
from edgepipe.fleet.plan import Member
from edgepipe.record import Bound, Measurement

PASSED, FAILED, MISSED, ACTIVATING = "passed", "failed", "missed", "activating"
RETURNING, RETURNED, STAYS = "rolling back", "rolled back", "could not be rolled back"
ROLL_BACK = ("wave", "all", "none")


def checked(roll_back: str) -> str:
    """One of `ROLL_BACK`.

    Raises:
        UsageError: it is none of them.
    """
    if roll_back not in ROLL_BACK:
        raise UsageError(f"no such choice: {roll_back}", "--roll-back", f"one of {', '.join(ROLL_BACK)}")
    return roll_back


@dataclass(frozen=True)
class Gates:
    """What a board must hold to pass, and a wave; shares of 1, null where nobody asked.

    ``max_slowdown`` and ``max_energy``: how much more of each an inference may take than with the release before,
    by the lower bound of the ratio. ``tolerate`` boards of a wave may fail; a share of ``quorum`` must have passed.
    """

    max_drop: Optional[float] = None
    max_slowdown: Optional[float] = 0.1
    max_energy: Optional[float] = None
    tolerate: int = 0
    quorum: float = 0.5


@dataclass(frozen=True)
class Standing:
    """How a board stands. ``changed``: its link was moved by this roll-out; ``previous`` is the release before.

    ``latency`` and ``energy`` are ratios of the new release to the one before; ``report`` is the id of its report.
    """

    board: str
    wave: int
    state: str
    release: str = ""
    previous: Optional[str] = None
    changed: bool = False
    reason: str = ""
    report: str = ""
    latency: Optional[Bound] = None
    energy: Optional[Bound] = None

    @property
    def settled(self) -> bool:
        """Whether this board is done with, as far as going forward goes."""
        return self.state in {PASSED, FAILED}


def counts(text: str, boards: int) -> list[int]:
    """Read ``1,5%,25%,all`` as how many boards have the release after each wave, each more than the one before.

    Raises:
        UsageError: no number, percentage or "all", or a wave smaller than the one before it.
    """
    found: list[int] = []
    last = {"%": 0, "": 0}
    for part in text.split(","):
        word = "100%" if part.strip() == "all" else part.strip()
        unit, number = ("%" if word.endswith("%") else ""), word.removesuffix("%")
        if not number.isdecimal() or not number.isascii() or (unit and int(number) > 100):  # noqa: PLR2004
            fix = "numbers of boards, percentages or all, e.g. --waves 1,5%,25%,all"
            raise UsageError(f"not a wave: {part.strip()[:40]!r}", "--waves", fix)
        if int(number) <= last[unit] or last["%"] == 100:  # noqa: PLR2004
            fix = "each is a total: 1,5%,25%,all"
            raise UsageError(f"wave {part.strip()[:40]} is no larger than the one before", "--waves", fix)
        last[unit] = int(number)
        count = min(boards, -(-boards * int(number) // 100) if unit else int(number))
        if not found or count > found[-1]:
            found.append(count)
    return found


def split(members: Sequence[Member], totals: Sequence[int]) -> list[list[Member]]:
    """The boards of each wave: high priority first, then in turns over kinds and sites: the first see all."""
    queues: dict[tuple[int, str, str], list[Member]] = defaultdict(list)
    for one in sorted(members, key=lambda each: each.name):
        queues[-one.priority, one.target.like, one.site].append(one)
    order: list[Member] = []
    for _, group in itertools.groupby(sorted(queues), key=lambda key: key[0]):
        rows = itertools.zip_longest(*(queues[key] for key in group))
        order += [one for row in rows for one in row if one is not None]
    return [order[start:end] for start, end in zip([0, *totals], totals, strict=False)]


def refusal(gates: Gates, result: Measurement, latency: Bound, energy: Bound) -> str:
    """Why a board that measured this does not pass; empty where it does. What could not be measured refuses nobody."""
    if result.status in {"failed", "timeout", "unreachable"}:
        return f"could not be measured: {result.reason or result.status}"
    for noun, ratio, limit in (("time", latency, gates.max_slowdown), ("energy", energy, gates.max_energy)):
        if limit is not None and ratio.value is not None and ratio.low is not None and ratio.low > 1 + limit:
            span = f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high or math.inf:.3f}]"
            return f"takes {span} of the {noun} of the release before, over the {1 + limit:g} allowed"
    return ""


def broken(found: Iterable[Standing], gates: Gates) -> str:
    """Why a wave must stop; empty where it may go on."""
    bad = [each for each in found if each.state == FAILED]
    if len(bad) <= gates.tolerate:
        return ""
    told = "; ".join(f"{each.board}: {each.reason}" for each in bad[:3])
    return f"{len(bad)} boards failed ({told}{'; ...' if len(bad) > 3 else ''}), {gates.tolerate} may"  # noqa: PLR2004


def too_few(found: Iterable[Standing], size: int, gates: Gates) -> str:
    """Why the next wave must wait: too few boards of this one could be asked."""
    passed = sum(each.state == PASSED for each in found)
    if passed >= gates.quorum * size:
        return ""
    return f"only {passed} of {size} boards of this wave have passed, {gates.quorum:.0%} must"
