"""What the journal has of a run. It is read once, then only what was added; a report is read when somebody looks at it.

A run of ten thousand boards is gone on with in seconds: what is not looked at is neither built nor held.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import overload

from edgepipe import codec
from edgepipe.errors import IntegrityError
from edgepipe.fleet.plan import Trial
from edgepipe.journal import Journal
from edgepipe.lines import Place
from edgepipe.record import Report

UNREACHABLE = "unreachable"  # a board that could not be asked: no result, so a resume asks again
_AT_ONCE = 256  # reports


@contextmanager
def unswept() -> Iterator[None]:
    """Read much that is all kept: the collector of cycles would look through all of it again and again."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@dataclass(frozen=True)
class Ended:
    """How a trial ended, as it was kept last. ``reason`` says why it could not be measured."""

    place: Place
    status: str
    reason: str

    @property
    def done(self) -> bool:
        """Whether it has its result: the runtime's failure is one, a board that could not be asked is none."""
        return self.status not in {"", UNREACHABLE}


class Kept(Sequence[Report]):
    """The reports of a run in the order of the plan, each as it was kept last."""

    def __init__(self, trials: dict[str, list[Trial]]) -> None:
        self.trials = trials
        self.ended: dict[str, Ended] = {trial.id: _NOT_YET for found in trials.values() for trial in found}
        self._journal, self._offset = Journal(), 0
        self._order: list[Place] = []
        self.refresh()

    @unswept()
    def refresh(self) -> None:
        """Take in what the journal got since."""
        found, self._offset, anew = self._journal.tail(self._offset, "report")
        if anew:
            self.ended = dict.fromkeys(self.ended, _NOT_YET)
        for place, record in found:
            if record.id in self.ended:
                told = record.value.get("measurement") or {}
                self.ended[record.id] = Ended(place, str(told.get("status", "")), str(told.get("reason", "")))
        self._order = [each.place for each in self.ended.values() if each is not _NOT_YET]

    def of(self, board: str) -> list[Ended]:
        """What became of a board's trials, as far as they have ended, in the order of the plan."""
        found = (self.ended[trial.id] for trial in self.trials[board])
        return [each for each in found if each is not _NOT_YET]

    def done(self) -> set[str]:
        """Ids of the trials that have their result."""
        return {name for name, each in self.ended.items() if each.done}

    def __len__(self) -> int:
        """How many trials have ended."""
        return len(self._order)

    @overload
    def __getitem__(self, at: int) -> Report: ...

    @overload
    def __getitem__(self, at: slice) -> list[Report]: ...

    def __getitem__(self, at: int | slice) -> Report | list[Report]:
        """Read some of the reports.

        Raises:
            IntegrityError: the journal is not what it was, or another version wrote the report.
        """
        return list(self._read(self._order[at])) if isinstance(at, slice) else next(self._read([self._order[at]]))

    def __iter__(self) -> Iterator[Report]:
        """Read them all."""
        return self._read(self._order)

    def _read(self, places: list[Place]) -> Iterator[Report]:
        for start in range(0, len(places), _AT_ONCE):
            for record in self._journal.at(places[start : start + _AT_ONCE]):
                if record is None:
                    raise IntegrityError("the journal was changed by somebody else", str(self._journal.path))
                yield codec.from_dict(Report, record.value)


_NOT_YET = Ended((0, 0), "", "")
