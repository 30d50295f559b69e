"""Measure what is there already: files, or releases a board holds, once for each combination of options."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe import bench, board, codec, convert, leftovers, measurement, model, targets, versus
from edgepipe.deploy import Candidate, Outcome, Request, measure, prepare
from edgepipe.errors import DeadlineError, EdgepipeError, LinkError, UsageError
from edgepipe.journal import Journal, new_id
from edgepipe.record import Comparison, Report
from edgepipe.schema import Plan, Power, RawRun

if TYPE_CHECKING:
    from edgepipe.board import BoardClient
    from edgepipe.progress import Progress
    from edgepipe.schema import RunOptions

ROUNDS = {"quick": 8, "standard": 12, "mlperf": 12}
_LONGEST_WARM_UP = 10.0


def run(request: Request, runs: list[RunOptions], progress: Progress) -> Outcome:
    """Measure ``request.model``, a file or release, with each of these options in one session; activate nothing.

    One combination that fails stays in the outcome with its reason, and the others are measured all the same.

    Raises:
        UsageError, LinkError, BoardError: nothing was measured.
    """
    target = targets.load(request.target, request.host or None)
    with board.connect(target, bench.owner(), progress, wait=request.wait) as client:
        leftovers.collect(client, progress)
        one = candidate(request, client, progress)
        found = [replace(one, report=replace(one.report, id=new_id())) for _ in runs]
        first: EdgepipeError | None = None
        for number, (each, options) in enumerate(zip(found, runs, strict=True), 1):
            try:
                if number == 1:
                    send(each, client)
                measure(each, replace(request, options=options), client, progress)
                if request.profile_ops:
                    ops = bench.profile_ops(client, each.manifest, options, each.inputs, progress)
                    each.report = Journal().append_report(replace(each.report, ops=ops))
            except EdgepipeError as error:
                first = first or error
                if isinstance(error, LinkError) or each.report.measurement is None:
                    return Outcome([done.report for done in found[:number]], first)
                if number < len(runs):
                    progress.note(f"{options.threads} threads, batch {options.batch}: {error.what}")
    return Outcome([each.report for each in found], first)


def candidate(request: Request, client: BoardClient, progress: Progress) -> Candidate:
    """The file, release or MODEL@RECIPE to be measured on this board, with its blank report.

    Raises:
        UsageError: none of these. BoardError: the board has no runtime for it.
    """
    facts, subject, target_name = client.hello().board, request.model, request.target
    name, at, recipe = subject.partition("@")
    if at and not Path(subject).exists():
        bench.check_runtimes(facts, list(request.formats), target_name)
        made = replace(request, model=name, recipe=recipe)
        return prepare(made, model.load(name), None, request.formats[0], facts, client.target, progress)
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


def in_turns(
    request: Request, other: str, max_slowdown: float, progress: Progress
) -> tuple[Outcome, Comparison | None]:
    """Measure ``request.model`` (A) and ``other`` (B) in turns, A B A B ..., in one session on one board; compare.

    ``other`` may be ``@RECIPE``, for the model of A. The comparison is null where the turns did not all succeed.

    Raises:
        UsageError, LinkError, BoardError: nothing was measured.
    """
    if other.startswith("@"):
        other = request.model.partition("@")[0] + other
    if request.plan.profile not in ROUNDS:
        raise UsageError("a comparison in turns has no rest of that kind", "--sustain", "leave it out")
    if request.plan.scenario:
        raise UsageError("a comparison in turns is made call by call", "--scenario", "leave it out")
    rounds = ROUNDS[request.plan.profile]
    plan = _turn(request.plan, rounds)
    with board.connect(targets.load(request.target, request.host or None), bench.owner(), progress) as client:
        leftovers.collect(client, progress)
        both = [candidate(replace(request, model=subject), client, progress) for subject in (request.model, other)]
        for each in both:
            send(each, client)
        turns: list[tuple[RawRun, RawRun]] = []
        names = " and ".join(each.manifest.name for each in both)
        try:
            with progress.task(f"{names}, in turns", "turns") as task:
                for number in range(rounds):
                    first, second = (client.bench(it.manifest, plan, request.options, meter="null") for it in both)
                    turns.append((first, second))
                    task.update(number + 1, rounds)
        except EdgepipeError as error:
            if isinstance(error, LinkError) and not turns:
                raise
            return Outcome([_failed(each, error, request) for each in both], error), None
    for side, each in enumerate(both):
        raw = _joined([turn[side] for turn in turns])
        result = bench.concluded(raw, replace(request.plan, processes=rounds), request.options)
        each.report = Journal().append_report(replace(each.report, measurement=result))
    found = versus.interleaved(both[0].report, both[1].report, turns, max_slowdown)
    Journal().append("comparison", dict(codec.to_dict(found)))
    return Outcome([each.report for each in both], versus.gate([found])), found


def _turn(plan: Plan, rounds: int) -> Plan:
    """One side of one turn: a process, for its share of the profile."""
    return replace(
        plan,
        processes=1,
        min_seconds=plan.min_seconds / rounds,
        min_samples=math.ceil(plan.min_samples / rounds),
        warmup_cap_seconds=min(plan.warmup_cap_seconds, _LONGEST_WARM_UP),
        idle_seconds=0.0,
    )


def _failed(each: Candidate, error: EdgepipeError, request: Request) -> Report:
    """The report of a side whose turns were not finished, kept."""
    status = "timeout" if isinstance(error, DeadlineError) else "failed"
    result = measurement.failed(status, error.what, request.plan, request.options)
    return Journal().append_report(replace(each.report, measurement=result))


def _joined(raws: list[RawRun]) -> RawRun:
    """Several runs of one artifact as one, on the clock of the first."""
    zero = raws[0].began or 0.0
    shifts = [(raw.began or 0.0) - zero for raw in raws]
    states = [
        replace(state, at=round(state.at + shift, 3))
        for raw, shift in zip(raws, shifts, strict=True)
        for state in raw.states
    ]
    processes = itertools.chain.from_iterable(raw.processes for raw in raws)
    failures = itertools.chain.from_iterable(raw.failures for raw in raws)
    cautions = {caution.code: caution for raw in raws for caution in raw.cautions}
    return replace(
        raws[0],
        processes=list(processes),
        states=states,
        failures=list(failures),
        cautions=list(cautions.values()),
        power=Power(reason="not read while two artifacts run in turns"),
    )
