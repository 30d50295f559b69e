"""One board's way through a roll-out: greet, deliver, prove, activate, look after it; and the way back.

Each stage is in the journal before the next one begins, so that whoever goes on knows what may have happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgepipe import bench
from edgepipe.errors import BusyError, DeadlineError, EdgepipeError, HostKeyError, LinkError
from edgepipe.fleet import work
from edgepipe.fleet.builds import Builds
from edgepipe.fleet.crew import Job, Steps
from edgepipe.fleet.plan import Cell, Member
from edgepipe.fleet.rollout import jobs, waves
from edgepipe.fleet.rollout.waves import Gates, Standing
from edgepipe.link import Refused
from edgepipe.schema import Board, Plan, RunOptions

if TYPE_CHECKING:
    from edgepipe.fleet.work import Package
    from edgepipe.record import Report


@dataclass
class Run:
    """What all boards of a roll-out share. ``keep`` puts standings on the disk, ``report`` a report, for its id."""

    cell: Cell
    gates: Gates
    plan: Plan
    options: RunOptions
    files: Builds
    keep: Callable[[Standing], None]
    report: Callable[[Report], str]
    keys: dict[str, str] = field(default_factory=dict)


class Walk:
    """The steps of one board; ``at`` is how it stands, as the journal has it."""

    def __init__(self, run: Run, member: Member, at: Standing) -> None:
        self.run, self.member, self.at = run, member, at

    def forward(self) -> Steps:
        """Bring the release to a board that is not known to have it."""
        with self._failing():
            greeting = yield Job(work.greet, (frozenset(),))
            self._alone(greeting.fingerprint)
            bench.check_runtimes(greeting.facts, [self.run.cell.format], self.member.name)
            built = yield Job(future=self.run.files.get(self.run.cell, self.member, greeting.facts))
            package = built.package
            release = package.manifest.id
            links = yield Job(jobs.active)
            begun = self.at.state == waves.ACTIVATING and self.at.release == release
            if links.current == release and not begun:
                self._keep(waves.PASSED, release=release, previous=links.previous, reason="it was active already")
                return
            if links.current != release:
                yield from self._prove(package, greeting.facts, links.current)
                if self.at.state == waves.FAILED:
                    return
                self._keep(waves.ACTIVATING, reason="the order to activate it was given")
                yield Job(jobs.activate, (package.manifest,))
            yield Job(jobs.look, (release,))
            self._keep(waves.PASSED, changed=True)

    def _prove(self, package: Package, facts: Board, before: str | None) -> Steps:
        """Deliver and measure; the board has failed after this, or may be activated."""
        run, member = self.run, self.member
        self.at = Standing(member.name, self.at.wave, waves.MISSED, package.manifest.id, before)
        yield Job(work.deliver, (package,), uplink=True)
        energy = run.gates.max_energy is not None
        proof = yield Job(jobs.prove, (package, before, run.plan, run.options, energy))
        found = work.Found(proof.measurement, proof.accuracy, proof.parity)
        report = run.report(run.files.measured(run.cell, member, facts, found))
        self.at = replace(self.at, report=report, latency=proof.latency, energy=proof.energy)
        reason = proof.fault or waves.refusal(run.gates, proof.measurement, proof.latency, proof.energy)
        if reason:
            self._keep(waves.FAILED, reason=reason)

    def again(self) -> Steps:
        """Look whether a board that has passed is still well."""
        with self._failing():
            yield Job(jobs.look, (self.at.release,))

    def back(self) -> Steps:
        """Bring a board back to the release before."""
        self._keep(waves.RETURNING, reason=self.at.reason)
        try:
            yield Job(jobs.roll_back, (self.at.release, self.at.previous))
        except EdgepipeError as error:
            self._keep(waves.STAYS, reason=error.what)
        else:
            self._keep(waves.RETURNED, reason=self.at.reason)

    def _alone(self, fingerprint: str) -> None:
        """No other board of this roll-out has shown this host key.

        Raises:
            HostKeyError: another one has.
        """
        other = self.run.keys.setdefault(fingerprint, self.member.name) if fingerprint else self.member.name
        if other != self.member.name:
            why = f"it shows the host key of {other}: two names for one board, or one answers for another"
            raise HostKeyError(why, self.member.name)

    def _keep(self, state: str, **more: Any) -> None:
        self.at = replace(self.at, state=state, **{"reason": "", **more})
        self.run.keep(self.at)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """What an error says of the board: it was missed, or it has failed.

        From the order to activate on, a board that does not answer has failed: nobody knows what runs there.
        """
        try:
            yield
        except EdgepipeError as error:
            away = isinstance(error, (LinkError, BusyError, DeadlineError))
            away = away and not isinstance(error, (HostKeyError, Refused))
            ordered = self.at.state in {waves.ACTIVATING, waves.PASSED}
            self._keep(
                waves.MISSED if away and not ordered else waves.FAILED,
                reason=error.what,
                changed=self.at.changed or self.at.state == waves.ACTIVATING,
            )
        except Exception as error:  # a fault of ours stops this board alone
            changed = self.at.changed or self.at.state == waves.ACTIVATING
            self._keep(waves.FAILED, reason=f"{type(error).__name__}: {error}", changed=changed)
