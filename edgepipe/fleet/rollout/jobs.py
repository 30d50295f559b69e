"""What a roll-out does on one board: prove a release against the one before, activate, look after it, go back.

Like `edgepipe.fleet.work` these write nothing on the host, and may be asked again: each finds what was done before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgepipe import bench, measurement, ratios
from edgepipe.errors import BoardError, DeadlineError, IntegrityError
from edgepipe.fleet import work
from edgepipe.progress import Silent
from edgepipe.record import Bound
from edgepipe.schema import Manifest, Plan, RawRun, Release, RunOptions

if TYPE_CHECKING:
    from edgepipe.board import BoardClient
    from edgepipe.fleet.work import Package, Where
    from edgepipe.record import Accuracy, Measurement, Rung

ROUNDS = 6  # turns of old and new: the fewest whose bootstrap interval says anything at 95 %
NOTHING_BEFORE = "no release was active before"


@dataclass(frozen=True)
class Active:
    """Which releases a board's links name."""

    current: str | None
    previous: str | None


@dataclass(frozen=True)
class Proof:
    """What a release did on a board, and its time and energy as shares of those of the release before."""

    measurement: Measurement
    latency: Bound
    energy: Bound
    accuracy: Accuracy | None = None
    parity: tuple[Rung, ...] = ()
    fault: str = ""


def active(where: Where) -> Active:
    """Ask the board which releases its links name."""
    with work.connected(where) as client:
        facts = client.refresh()
        return Active(facts.current, facts.previous)


def prove(where: Where, package: Package, before: str | None, plan: Plan, options: RunOptions, energy: bool) -> Proof:
    """Hold the new release against the host's answers, measure it, and time it in turns with the one before.

    Nothing is activated. A fault of the model or its runtime is a result.

    Raises:
        LinkError, BusyError, IntegrityError: nothing is known; ask again.
    """
    with work.connected(where) as client:
        accuracy, parity, fault = work.verified(client, package, options)
        unknown = Bound(None, reason=NOTHING_BEFORE if before is None else "the new release was not measured")
        if fault:
            status = "timeout" if isinstance(fault, DeadlineError) else "failed"
            failed = measurement.failed(status, f"{fault.what} ({fault.where})", plan, options)
            return Proof(failed, unknown, unknown, accuracy, parity, fault.what)
        inputs = package.samples[1] if package.samples else None
        result = bench.measure(client, package.manifest, plan, options, inputs, Silent())
        if before is None or result.latency_ms is None:
            return Proof(result, unknown, unknown, accuracy, parity)
        latency = _in_turns(client, package.manifest, before, plan, options)
        more = _energy(client, before, result, plan, options) if energy else Bound(None, reason="nobody asked")
        return Proof(result, latency, more, accuracy, parity)


def _in_turns(client: BoardClient, new: Manifest, before: str, plan: Plan, options: RunOptions) -> Bound:
    """The time of ``new`` over that of ``before``, medians of short runs in turns on made-up inputs."""
    turn = replace(
        plan, processes=1, idle_seconds=0.0, min_seconds=plan.min_seconds / ROUNDS,
        min_samples=math.ceil(plan.min_samples / ROUNDS), warmup_cap_seconds=min(plan.warmup_cap_seconds, 5.0),
    )  # fmt: skip
    old_times, new_times = [], []
    try:
        for _ in range(ROUNDS):
            old_times.append(_samples(client.bench(before, turn, options, meter="null")))
            new_times.append(_samples(client.bench(new, turn, options, meter="null")))
    except (BoardError, DeadlineError) as error:
        return Bound(None, reason=f"not in turns with the release before: {error.what}")
    return ratios.ratio_of_turns(old_times, new_times, 0.5)


def _samples(run: RawRun) -> list[int]:
    return [ns for process in run.processes for ns in process.samples_ns]


def _energy(client: BoardClient, before: str, new: Measurement, plan: Plan, options: RunOptions) -> Bound:
    """The energy of an inference over that of the release before, where the board is metered."""
    if new.energy_mj.gross is None:
        return Bound(None, reason=new.energy_mj.reason or "no meter")
    meter = client.target.meter
    if meter.on_host:
        return Bound(None, reason="the release before is measured by meters of the board alone")
    try:
        old = bench.concluded(client.bench(before, plan, options, meter=meter.name, rail=meter.rail), plan, options)
    except (BoardError, DeadlineError) as error:
        return Bound(None, reason=f"the release before was not measured: {error.what}")
    sides = [Bound(e.gross, e.low, e.high, e.reason) for e in (new.energy_mj, old.energy_mj)]
    return ratios.quotient(*sides)


def activate(where: Where, manifest: Manifest) -> Release:
    """Make a pushed release the active one; the board tests it first, and keeps the old one if it fails."""
    with work.connected(where) as client:
        return client.activate(manifest)


def look(where: Where, release: str) -> None:
    """Connect anew, and see that the release is the one that is active.

    Raises:
        BoardError: another one is. LinkError: the board does not answer.
    """
    work.close(*where.key)
    found = active(where)
    if found.current != release:
        what = f"release {release} was activated, and {found.current or 'none'} is active now"
        raise BoardError(what, where.target.name, f"edgepipe status --target {where.target.name}")


def roll_back(where: Where, release: str, previous: str | None) -> None:
    """Go back from ``release`` to the one before, unless that is active already.

    Raises:
        BoardError: there is none, or somebody has deployed since; the board is left as it is.
    """
    with work.connected(where) as client:
        facts = client.refresh()
        if facts.current == previous:
            return
        if facts.current != release:
            raise BoardError(f"{facts.current or 'no release'} is active, which is not of this roll-out", client.where)
        if previous is None:
            raise BoardError(NOTHING_BEFORE, client.where, "deploy another release")
        if facts.previous != previous:
            raise BoardError(f"release {previous} is not the one before any more", client.where)
        back = client.rollback()
        if back.id != previous:
            raise IntegrityError(f"{back.id} is active after going back to {previous}", client.where)
