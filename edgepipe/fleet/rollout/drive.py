"""The planner of a roll-out: wave after wave, until all have the release or something says stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgepipe import bench, codec, fleet
from edgepipe.errors import BoardError, EdgepipeError, GateError
from edgepipe.fleet import rollout
from edgepipe.fleet.crew import Crew
from edgepipe.fleet.engines import Choice, Engine
from edgepipe.fleet.plan import Member
from edgepipe.fleet.rollout import waves
from edgepipe.fleet.rollout.steps import Run, Walk
from edgepipe.fleet.rollout.waves import Standing
from edgepipe.journal import Journal

if TYPE_CHECKING:
    from edgepipe.fleet.builds import Builds
    from edgepipe.fleet.lane import Limits
    from edgepipe.progress import Progress
    from edgepipe.record import Report

_LISTEN = 1.0  # s between looks at what somebody ordered


def work(
    name: str, request: rollout.Request, files: Builds, progress: Progress, limits: Limits, engine: Choice
) -> fleet.Outcome:
    """Go on with a roll-out from where the journal says it is, alone.

    Raises:
        BusyError: another process of this host works on it.
    """
    with fleet.alone(name), closing(files), closing(engine.open(limits.parallel)) as runner:
        _Drive(name, request, files, progress, limits, runner).run()
    return _outcome(name, request)


@dataclass
class _Drive:
    """One process's work on a roll-out."""

    name: str
    request: rollout.Request
    files: Builds
    progress: Progress
    limits: Limits
    engine: Engine
    _order: tuple[str, str] = (rollout.GO, "")
    _heard: float = 0.0
    _known: dict[str, Standing] = field(default_factory=dict)

    def run(self) -> None:
        """From the state that was kept last, to the end or to a pause."""
        self._known = rollout.standings(self.name, self.request)
        request = self.request
        shared = Run(request.cell, request.gates, request.plan, request.options, self.files, self._keep, self._report)
        now = rollout.state(self.name)
        if now.state in {rollout.STOPPING, rollout.ABORTING}:
            self._end(shared, now)
            return
        groups = request.split()
        for number, group in enumerate(groups, 1):
            if number < now.wave and all(self._settled(one) for one in group):
                continue
            if self._listened() == rollout.GO:
                self._say(rollout.RUNNING, number)
                self._forward(shared, number, group)
            if not self._may_go_on(shared, number, group, last=number == len(groups)):
                return
        self._say(rollout.DONE, len(groups))

    def _forward(self, shared: Run, number: int, group: list[Member]) -> None:
        """Ask every board of a wave that has not been settled."""
        todo = [one for one in group if not self._settled(one)]
        self.progress.note(f"wave {number} of {len(self.request.waves)}: {len(todo)} boards")
        blank = {one.name: Standing(one.name, number, waves.MISSED) for one in todo}
        walks = [Walk(shared, one, self._known.get(one.name, blank[one.name])) for one in todo]
        self._crew(lambda: self._listened() != rollout.GO or bool(self._broken(group))).run(
            [(walk.member, walk.forward()) for walk in walks]
        )

    def _may_go_on(self, shared: Run, number: int, group: list[Member], *, last: bool) -> bool:
        """Whether the next wave may begin; else the state that says why not is kept."""
        order, roll_back = self._order[0] if self._order[0] == rollout.ABORT else self._listened(), self._order[1]
        if order == rollout.ABORT:
            self._end(shared, self._say(rollout.ABORTING, number, "somebody aborted it", roll_back))
            return False
        if not self._broken(group) and order == rollout.GO and not last:
            self._soak(shared, group)
        reason = self._broken(group)
        if reason:
            self._end(shared, self._say(rollout.STOPPING, number, f"wave {number}: {reason}", self.request.roll_back))
            return False
        if self._listened() == rollout.ABORT:
            return self._may_go_on(shared, number, group, last=last)
        few = waves.too_few(self._of(group), len(group), self.request.gates)
        if self._order[0] == rollout.PAUSE or few:
            self._say(rollout.PAUSED, number, few or "somebody paused it")
            return False
        return True

    def _soak(self, shared: Run, group: list[Member]) -> None:
        """Wait, then see whether the boards of a wave are still well."""
        if not self.request.soak:
            return
        until = time.monotonic() + self.request.soak
        while time.monotonic() < until and self._listened() == rollout.GO:
            time.sleep(min(_LISTEN, max(0.0, until - time.monotonic())))
        passed = [one for one in group if self._known[one.name].state == waves.PASSED]
        self._crew().run([(one, Walk(shared, one, self._known[one.name]).again()) for one in passed])

    def _end(self, shared: Run, now: rollout.State) -> None:
        """Bring back the boards that are to be brought back, and say that it is over."""
        groups = self.request.split()
        chosen = {"all": groups, "wave": groups[now.wave - 1 : now.wave], "none": []}[now.roll_back]
        boards = [one for group in chosen for one in group if self._returns(one)]
        self.progress.note(f"{now.reason}; {len(boards)} boards go back to the release before")
        self._crew().run([(one, Walk(shared, one, self._known[one.name]).back()) for one in boards])
        ended = rollout.STOPPED if now.state == rollout.STOPPING else rollout.ABORTED
        self._say(ended, now.wave, now.reason, now.roll_back)

    def _returns(self, one: Member) -> bool:
        at = self._known.get(one.name)
        if at is None or at.state == waves.RETURNED:
            return False
        return at.changed or at.state in {waves.ACTIVATING, waves.RETURNING}

    def _settled(self, one: Member) -> bool:
        at = self._known.get(one.name)
        return at is not None and at.settled

    def _of(self, group: list[Member]) -> list[Standing]:
        return [self._known[one.name] for one in group if one.name in self._known]

    def _broken(self, group: list[Member]) -> str:
        return waves.broken(self._of(group), self.request.gates)

    def _crew(self, stop: Callable[[], bool] = lambda: False) -> Crew:
        return Crew(self.engine, bench.owner(), self.limits, stop)

    def _listened(self) -> str:
        """What somebody ordered, asked of the journal once in a while."""
        if time.monotonic() > self._heard + _LISTEN:
            self._order = rollout.ordered(self.name)
            self._heard = time.monotonic()
        return self._order[0]

    # Keeping

    def _keep(self, at: Standing) -> None:
        Journal().append(rollout.BOARD, codec.to_dict(at), f"{self.name}-{at.board}")
        self._known[at.board] = at
        self.progress.note(f"wave {at.wave}, {at.board}: {at.state}{': ' + at.reason if at.reason else ''}")

    def _report(self, report: Report) -> str:
        return Journal().append_report(report).id

    def _say(self, state: str, wave: int, reason: str = "", roll_back: str = "") -> rollout.State:
        now = rollout.State(state, wave, reason, roll_back or self.request.roll_back)
        Journal().append(rollout.STATE, codec.to_dict(now), f"{self.name}-state")
        return now


def _outcome(name: str, request: rollout.Request) -> fleet.Outcome:
    found = rollout.document(name, request)
    error: EdgepipeError | None = None
    where, resume = f"fleet {name}", f"edgepipe fleet resume {name}"
    if found["state"] == rollout.STOPPED:
        error = GateError(f"stopped: {found['reason']}", where, f"see why: edgepipe fleet status {name}")
    elif found["state"] == rollout.PAUSED and rollout.ordered(name)[0] != rollout.PAUSE:
        error = BoardError(f"paused: {found['reason']}", where, f"see to them, then {resume}")
    elif found["state"] == rollout.DONE and (
        left := [b["board"] for b in found["boards"] if b["state"] != waves.PASSED]
    ):
        error = BoardError(
            f"{len(left)} boards do not have it: {', '.join(left[:5])}", where, f"see to them, then {resume}"
        )
    return fleet.Outcome(found, error)
