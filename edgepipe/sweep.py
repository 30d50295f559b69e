"""Measure what is there already: files, or releases a board holds, once for each combination of options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe import bench, board, convert, leftovers, targets
from edgepipe.deploy import Candidate, Outcome, Request, measure
from edgepipe.errors import EdgepipeError, LinkError

if TYPE_CHECKING:
    from edgepipe.board import BoardClient
    from edgepipe.progress import Progress
    from edgepipe.schema import RunOptions


def run(request: Request, runs: list[RunOptions], progress: Progress) -> Outcome:
    """Measure ``request.model``, a file or release, with each of these options in one session; activate nothing.

    One combination that fails stays in the outcome with its reason, and the others are measured all the same.

    Raises:
        UsageError, LinkError, BoardError: nothing was measured.
    """
    target = targets.load(request.target, request.host or None)
    with board.connect(target, bench.owner(), progress, wait=request.wait) as client:
        leftovers.collect(client, progress)
        found = [candidate(request.model, request.target, client) for _ in runs]
        first: EdgepipeError | None = None
        for number, (each, options) in enumerate(zip(found, runs, strict=True), 1):
            try:
                if number == 1:
                    send(each, client)
                measure(each, replace(request, options=options), client, progress)
            except EdgepipeError as error:
                first = first or error
                if isinstance(error, LinkError) or each.report.measurement is None:
                    return Outcome([done.report for done in found[:number]], first)
                if number < len(runs):
                    progress.note(f"{options.threads} threads, batch {options.batch}: {error.what}")
    return Outcome([each.report for each in found], first)


def candidate(subject: str, target_name: str, client: BoardClient) -> Candidate:
    """The file or release to be measured on this board, with its blank report.

    Raises:
        UsageError: neither. BoardError: the board has no runtime for it.
    """
    facts = client.hello().board
    if Path(subject).exists():
        artifact = convert.artifact_of(subject)
        manifest = bench.manifest_of(artifact)
    else:
        manifest = client.manifest(None if subject == "current" else subject)
        artifact = manifest.artifact
    bench.check_runtimes(facts, [artifact.format], target_name)
    report = bench.blank_report(bench.facts_of(artifact), artifact, facts, target_name, manifest)
    return Candidate(artifact, manifest, report)


def send(found: Candidate, client: BoardClient) -> None:
    """Send a file to be measured, where it is one; a release is on the board."""
    if Path(found.artifact.path).is_absolute() and Path(found.artifact.path).is_file():
        found.bytes_sent = client.push(bench.files_of(found.artifact))
