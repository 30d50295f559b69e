"""Measure the cells of a study that are not known yet. Each is in the journal before the next begins.

A cell that fails is a result and stays with its reason; the rest goes on. A target that can't be reached takes its
cells with it: they are to be done by the next run, and hold up no other target.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edgepipe import deploy
from edgepipe.errors import BusyError, DeadlineError, EdgepipeError, LinkError
from edgepipe.journal import Journal
from edgepipe.study import results
from edgepipe.study.results import BUSY, TO_DO, UNFIT, UNREACHABLE, Row

if TYPE_CHECKING:
    from edgepipe.progress import Progress
    from edgepipe.record import Report
    from edgepipe.study.plan import Cell, Study


@dataclass(frozen=True)
class Outcome:
    """The rows of all cells, in the order of the study, and whether Ctrl-C ended it."""

    rows: list[Row]
    interrupted: bool = False


@dataclass
class _Pace:
    """How long cells took, for an estimate of what is left."""

    left: int
    seconds: list[float] = field(default_factory=list)

    def told(self) -> str:
        """The time left in words; empty before the first cell is done."""
        if not self.seconds:
            return ""
        rest = self.left * sum(self.seconds) / len(self.seconds)
        return f", about {rest / 60:.0f} min left" if rest >= 60 else f", about {rest:.0f} s left"  # noqa: PLR2004


def run(study: Study, progress: Progress, *, again: bool = False, retry: bool = False) -> Outcome:
    """Measure what is to be done. With ``again`` everything is, with ``retry`` the cells that failed as well.

    Ctrl-C ends it after what was measured is kept.
    """
    journal = Journal()
    rows = {id(cell): results.row(journal, cell) for cell in study.cells}
    todo = [cell for cell in study.cells if _is_due(rows[id(cell)], again=again, retry=retry)]
    known = sum(bool(row.report) for row in rows.values())
    progress.note(f"study {study.name}: {len(study.cells)} cells, {len(todo)} to measure, {known} known from before")
    pace, gone = _Pace(len(todo)), dict[str, str]()
    for at, cell in enumerate(todo, 1):
        if cell.target in gone:
            rows[id(cell)] = Row(cell, UNREACHABLE, gone[cell.target])
            continue
        progress.note(f"[{at}/{len(todo)}] {cell.name}{pace.told()}")
        began = time.monotonic()
        try:
            rows[id(cell)] = found = _measured(study, cell, progress)
        except KeyboardInterrupt:
            return Outcome([rows[id(each)] for each in study.cells], interrupted=True)
        pace.left -= 1
        if found.status == UNREACHABLE:
            gone[cell.target] = found.reason
        elif found.status != BUSY:
            pace.seconds.append(time.monotonic() - began)
            rows[id(cell)] = results.keep(journal, study, replace(found, seconds=round(time.monotonic() - began, 2)))
        progress.note(f"    {rows[id(cell)].told()}")
    return Outcome([rows[id(cell)] for cell in study.cells])


def _is_due(row: Row, *, again: bool, retry: bool) -> bool:
    if row.status == UNFIT:
        return False
    return again or row.status == TO_DO or (retry and row.status in {"failed", "timeout"})


def _measured(study: Study, cell: Cell, progress: Progress) -> Row:
    """The whole chain for one cell, activating nothing. Whatever goes wrong is the cell's result."""
    request = deploy.Request(
        model=cell.ref,
        target=cell.target,
        recipe=cell.recipe,
        formats=(cell.format,),
        plan=study.plan,
        options=study.options,
        evaluation=study.evaluation,
        activate=False,
        allow_fallback=True,
        any_loss=True,
    )
    try:
        outcome = deploy.deploy(request, progress)
    except EdgepipeError as error:
        return _failed(cell, error, None)
    except MemoryError:
        return Row(cell, "failed", "this machine has too little memory for the cell")
    report = outcome.reports[0] if outcome.reports else None
    if outcome.error:
        return _failed(cell, outcome.error, report)
    assert report is not None and report.measurement is not None
    return Row(cell, report.measurement.status, report.measurement.reason, report)


def _failed(cell: Cell, error: EdgepipeError, report: Report | None) -> Row:
    status = "timeout" if isinstance(error, DeadlineError) else "failed"
    if isinstance(error, LinkError):
        status = UNREACHABLE
    elif isinstance(error, BusyError):
        status = BUSY
    return Row(cell, status, f"{error.what} ({error.where})" if error.where else error.what, report)
