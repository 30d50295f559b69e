"""A recording in place of a meter: a CSV file with a line of seconds and watts for each reading, played from its start.

For tests with a known truth, and to see what a record would have said about readings taken before.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from edgepipe.agent.meters import Meter
from edgepipe.meters import Settings

OPTIONS: dict[str, str] = {}
_RATE_HZ = 20.0
_MOST_BYTES = 64 << 20
COLUMNS = ["seconds", "watts"]


def find(settings: Settings, clock: Callable[[], float] = time.monotonic) -> Meter:
    """The file at ``address``; its first line is ``seconds,watts``. It begins to play at once.

    Raises:
        OSError: it can't be read. ValueError: a line that is none, or seconds that run backwards.
    """
    player = _Player(_rows(Path(settings.place("recording.csv")).expanduser()), clock)
    return Meter("replay", "recording", "board", player.read, _RATE_HZ, mean=True)


def _rows(path: Path) -> list[tuple[float, float]]:
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"a recording of more than {_MOST_BYTES >> 20} MB")
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        if next(lines, None) != COLUMNS:
            raise ValueError(f"{path.name} does not begin with the line {','.join(COLUMNS)}")
        rows = [(float(seconds), float(watts)) for seconds, watts in lines]
    if not rows or any(after[0] <= before[0] for before, after in pairwise(rows)):
        raise ValueError(f"{path.name} is empty, or its seconds do not rise")
    return rows


class _Player:
    """Gives the mean of the lines that have come due since the last look."""

    def __init__(self, rows: list[tuple[float, float]], clock: Callable[[], float]) -> None:
        self._rows, self._clock = rows, clock
        self._began, self._next = clock(), 0

    def read(self) -> float | None:
        """Return W, or None while no new line is due.

        Raises:
            OSError: the recording is over.
        """
        elapsed, first = self._clock() - self._began, self._next
        if first >= len(self._rows):
            raise OSError(f"the recording ended after {self._rows[-1][0]:g} s")
        while self._next < len(self._rows) and self._rows[self._next][0] <= elapsed:
            self._next += 1
        due = [watts for _, watts in self._rows[first : self._next]]
        return sum(due) / len(due) if due else None
