"""One board on its way through a run, and the limits of the whole."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from edgepipe.fleet.breaker import Breaker, Patience
from edgepipe.fleet.plan import Member, Trial
from edgepipe.schema import Board


@dataclass
class Lane:
    """A board with its trials still to do; ``state``: waiting, greet, deliver, measure, leave, done or gone."""

    member: Member
    trials: deque[Trial]
    breaker: Breaker
    total: int
    state: str = "waiting"
    reason: str = ""
    facts: Board | None = None
    waiting: frozenset[str] = frozenset()
    delivered: set[int] = field(default_factory=set)
    kept: list[str] = field(default_factory=list)
    token: int = 0
    since: float = 0.0
    busy_since: float = 0.0

    @property
    def name(self) -> str:
        """The board's name."""
        return self.member.name

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be done here."""
        return self.state in {"done", "gone"}

    @property
    def doing(self) -> str:
        """The trial at hand."""
        return str(self.trials[0].cell) if self.trials and not self.ended else ""


@dataclass(frozen=True)
class Limits:
    """Boards at a time, transfers at a time on each site's uplink, and how long to bear with whom."""

    parallel: int = 32
    transfers: int = 4
    patience: Patience = field(default_factory=Patience)
