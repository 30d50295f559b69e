"""Runs that a board measured for this host and whose end this host never saw: fetched, kept, then forgotten there."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edgepipe import bench, codec
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.journal import Journal
from edgepipe.record import Report
from edgepipe.schema import NAME

if TYPE_CHECKING:
    from edgepipe.agent.spool import Run
    from edgepipe.board import BoardClient
    from edgepipe.progress import Progress


def collect(client: BoardClient, progress: Progress) -> list[str]:
    """Keep each run that waits on the board under the id it had, then tell the board; returns the ids kept anew.

    A run that is in the journal already is only acknowledged. A damaged one stays where it is, with a note.
    """
    kept = []
    for name in client.hello().runs:
        if not NAME.match(name):
            raise IntegrityError(f"not the name of a run: {name[:64]!r}", client.where)
        try:
            run = client.run(name)
            if run.id != name:
                raise IntegrityError("the run is another one", name)
        except (IntegrityError, UsageError) as error:
            progress.note(f"run {name}, left on {client.target.name}, can't be read: {error.what}")
            continue
        if _keep(run, client):
            kept.append(name)
            progress.note(f"run {name}, measured earlier on {client.target.name} and not fetched then, is kept now")
        client.forget([name])
    return kept


def _keep(run: Run, client: BoardClient) -> bool:
    """Put a run into the journal; False if it is there with its figures."""
    journal = Journal()
    known = journal.get(run.id)
    report = codec.from_dict(Report, known.value) if known and known.kind == "report" else None
    if report and report.measurement and report.measurement.status not in ("failed", "unreachable"):
        return False
    result = bench.concluded(run.raw, run.plan, run.options)
    if report is None:
        artifact = run.manifest.artifact
        facts, seen = bench.facts_of(artifact), client.hello().board
        report = bench.blank_report(facts, artifact, seen, client.target.name, run.manifest)
    journal.append_report(dataclasses.replace(report, id=run.id, measurement=result))
    return True
