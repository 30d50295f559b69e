"""What was measured, for people: tables for a terminal (`tables`) and one self-contained page (`html`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from edgepipe.errors import UsageError
from edgepipe.record import Report


def latest(reports: Iterable[Report]) -> list[Report]:
    """Keep the latest report of each model, recipe, format, target and options, latest first.

    Options are threads, batch and profile: a figure at 4 threads does not replace one at 1.
    """
    kept: dict[tuple[object, ...], Report] = {}
    for report in sorted(reports, key=lambda report: (report.created, report.id), reverse=True):
        run = report.measurement
        options = (run.threads, run.batch, run.profile) if run else ()
        kept.setdefault(
            (report.model.name, report.recipe, report.artifact.format, report.board.target, options), report
        )
    return list(kept.values())


def write_html(reports: list[Report], path: Path, first: str = "") -> None:
    """Write one page with tables and plots, after the sections of ``first`` (HTML). It asks nothing of any network.

    Raises:
        UsageError: the file can't be written.
    """
    from edgepipe.report.html import page

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(reports, first), encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"the page can't be written: {error.strerror}", str(path), "choose another --html FILE"
        ) from error
