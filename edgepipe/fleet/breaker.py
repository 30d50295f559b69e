"""When to stop asking a board that does not answer. Pure: the caller says what time it is.

Closed, a board is asked. After ``limit`` faults in a row it is open: left alone for ``cooldown`` seconds, then asked
once more (half open). If that fails too, ``openings`` times in all, the board is given up with the last reason.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

_CHANCE = random.Random()  # noqa: S311 - jitter, not secrecy; one for all, as thousands of boards have a breaker each


@dataclass(frozen=True)
class Patience:
    """How long a fleet bears with a board; all times in s.

    ``backoff`` doubles with each retry, with jitter. A step is given up on after ``stall``, or after three times the
    slowest other board's time where that is longer. What still fails when all the others are done gets ``grace``, or
    a tenth of the run so far. ``wait`` is for boards that somebody else holds. A site where so many boards in
    a row can't be reached (``site_limit``, and twice as many as are asked at a time) is taken to be cut off.
    """

    limit: int = 3
    openings: int = 2
    backoff: float = 1.0
    cooldown: float = 20.0
    stall: float = 60.0
    grace: float = 30.0
    wait: float = 600.0
    site_limit: int = 16


class Breaker:
    """The breaker of one board."""

    def __init__(self, patience: Patience, chance: random.Random | None = None) -> None:
        self._patience = patience
        self._chance = chance or _CHANCE
        self.faults = 0
        self.opened = 0
        self.reason = ""
        self.total = 0

    @property
    def gone(self) -> bool:
        """Whether the board is given up."""
        return self.opened >= self._patience.openings

    @property
    def state(self) -> str:
        """closed, open or gone."""
        return "gone" if self.gone else "open" if self.opened and self.faults else "closed"

    def success(self) -> None:
        """It answered: all is forgotten but the count."""
        self.faults = self.opened = 0
        self.reason = ""

    def fault(self, reason: str) -> float:
        """It failed; returns how many seconds to leave it alone. Random, so that not all come back at once."""
        self.faults += 1
        self.total += 1
        self.reason = reason
        jitter = self._chance.uniform(0.5, 1.5)
        if self.opened or self.faults >= self._patience.limit:  # half open: one fault is enough
            self.opened += 1
            return self._patience.cooldown * jitter
        return self._patience.backoff * float(2 ** (self.faults - 1)) * jitter
