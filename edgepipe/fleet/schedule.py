"""The planner at work: which job runs on which board now, and what its end means. It knows of engines only `Executor`.

One thread. A board's jobs follow each other (greet, then deliver and measure for each trial, then leave); boards go
side by side. What came to an end is kept in the journal before the next job of that board is begun, and that job tells
the board that it may forget the run.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from edgepipe import bench, measurement
from edgepipe.errors import BoardError, BusyError, EdgepipeError, HostKeyError, IntegrityError
from edgepipe.fleet import builds, work
from edgepipe.fleet.breaker import Breaker
from edgepipe.fleet.builds import Built
from edgepipe.fleet.engines import Engine
from edgepipe.fleet.lane import Lane, Limits
from edgepipe.fleet.leases import Leases
from edgepipe.fleet.plan import Request, Trial
from edgepipe.link import Refused
from edgepipe.record import Report

_TICK = 0.25
_ENOUGH = 3  # boards that must have done a step before another one counts as slow at it
_SLOWER = 3


class Schedule:
    """One run over all boards. ``keep`` puts reports on the disk; ``watch`` is told of each change of a lane.

    ``trials`` are those to do; ``known`` all of the run, for boards may still keep some that are in the journal.
    """

    def __init__(
        self,
        request: Request,
        trials: dict[str, list[Trial]],
        engine: Engine,
        files: builds.Builds,
        keep: Callable[[list[Report]], None],
        watch: Callable[[Lane], None],
        limits: Limits,
        known: dict[str, list[Trial]] | None = None,
    ) -> None:
        self.request, self.limits = request, limits
        self._engine, self._files, self._keep, self._watch = engine, files, keep, watch
        self._owner = bench.owner()
        self._leases = Leases(limits.parallel, limits.transfers)
        self.lanes = {
            one.name: Lane(one, deque(trials[one.name]), Breaker(limits.patience), len(trials[one.name]))
            for one in request.members
        }
        self._ids = {name: frozenset(trial.id for trial in found) for name, found in (known or trials).items()}
        self._events: queue.SimpleQueue[tuple[Lane, str, int, Future[Any]]] = queue.SimpleQueue()
        self._ready: list[tuple[int, int, Lane]] = []
        self._delayed: list[tuple[float, int, Lane]] = []
        self._for_uplink: defaultdict[str, deque[Lane]] = defaultdict(deque)
        self._pending: list[Report] = []
        self._shared: dict[int, Any] = {}
        self._times: defaultdict[tuple[str, str], tuple[int, float]] = defaultdict(lambda: (0, 0.0))
        self._known: dict[str, str] = {}
        self._unreached: defaultdict[str, set[str]] = defaultdict(set)
        self._running: set[str] = set()
        self._began = self._last_good = self._looked = time.monotonic()
        self._open = 0
        self._count = itertools.count()
        for lane in self.lanes.values():
            if lane.trials:
                self._open += 1
                heapq.heappush(self._ready, (-lane.member.priority, next(self._count), lane))
            else:
                lane.state = "done"

    def run(self) -> None:
        """Work until every trial is measured or its board is given up.

        Raises:
            EdgepipeError: results can't be kept; what was measured waits on the boards.
        """
        try:
            while self._open:
                self._admit()
                self._drain()
                self._look_round()
        finally:
            self._flush()

    # What to begin

    def _admit(self) -> None:
        now = time.monotonic()
        while self._delayed and self._delayed[0][0] <= now:
            _, at, lane = heapq.heappop(self._delayed)
            if not lane.ended:
                heapq.heappush(self._ready, (-lane.member.priority, at, lane))
        while self._ready and self._leases.free:
            _, _, lane = heapq.heappop(self._ready)
            if not lane.ended and self._leases.take(lane.name):
                self._next(lane)

    def _next(self, lane: Lane) -> None:
        """Begin the next job of a leased board."""
        if lane.facts is None:
            self._submit(lane, "greet", work.greet, self._ids[lane.name])
            return
        while lane.trials:
            future = self._files.get(lane.trials[0].cell, lane.member, lane.facts)
            if not future.done():
                self._change(lane, "build")
                self._follow(lane, "build", future)
                return
            built = self._built(lane, future)
            if built is None:
                continue
            self._begin(lane, built)
            return
        self._submit(lane, "leave", work.leave)

    def _built(self, lane: Lane, future: Future[Built]) -> Built | None:
        """The file of the trial at hand; where there can't be one, that is the trial's result."""
        trial, facts = lane.trials[0], lane.facts
        assert facts is not None
        try:
            bench.check_runtimes(facts, [trial.cell.format], lane.name)
            return future.result()
        except EdgepipeError as error:
            self._record(lane, trial, "failed", f"{error.what} ({error.where})")
            lane.trials.popleft()
            return None

    def _begin(self, lane: Lane, built: Built) -> None:
        trial, key = lane.trials[0], id(built)
        if key not in self._shared:
            self._shared[key] = self._engine.share(built.package)
        package = self._shared[key]
        if trial.id in lane.waiting or key in lane.delivered:
            self._submit(lane, "measure", work.measure, package, trial.id, self.request.plan, self.request.options)
        elif self._leases.send(lane.member.site):
            self._submit(lane, "deliver", work.deliver, package)
        else:
            self._change(lane, "queued")
            self._for_uplink[lane.member.site].append(lane)

    def _submit(self, lane: Lane, step: str, job: Callable[..., Any], *args: Any) -> None:
        where = work.Where(lane.member.target, self._owner, kept=tuple(lane.kept))
        lane.since = time.monotonic()
        self._running.add(lane.name)
        self._change(lane, step)
        self._follow(lane, step, self._engine.executor(lane.name, lane.member.site).submit(job, where, *args))

    def _follow(self, lane: Lane, step: str, future: Future[Any]) -> None:
        token = lane.token = lane.token + 1
        future.add_done_callback(lambda done: self._events.put((lane, step, token, done)))

    # What came to an end

    def _drain(self) -> None:
        """Wait for ends, keep what they brought with one flush, then let those boards go on."""
        wait = min(_TICK, self._delayed[0][0] - time.monotonic()) if self._delayed else _TICK
        going: list[Lane] = []
        try:
            event = self._events.get(timeout=max(wait, 0.001))
            while True:
                lane, step, token, future = event
                if token == lane.token and not lane.ended and self._end(lane, step, future):
                    going.append(lane)
                event = self._events.get_nowait()
        except queue.Empty:
            pass
        self._flush()
        for lane in going:
            self._next(lane)

    def _end(self, lane: Lane, step: str, future: Future[Any]) -> bool:
        """Take in the end of a job; true where the board goes on at once."""
        self._running.discard(lane.name)
        if step == "build":
            return True
        if step == "deliver":
            self._sent(lane)
        error = future.exception()
        if error is not None:
            return self._failed(lane, step, error)
        count, longest = self._times[step, lane.doing]
        self._times[step, lane.doing] = count + 1, max(longest, time.monotonic() - lane.since)
        lane.kept, lane.busy_since = [], 0.0
        if step == "leave":
            self._close(lane, "done")
            return False
        if step == "greet":
            return self._greeted(lane, future.result())
        if step == "deliver":
            built = self._files.get(lane.trials[0].cell, lane.member, lane.facts or builds.UNKNOWN).result()
            lane.delivered.add(id(built))
            return True
        return self._measured(lane, future.result())

    def _greeted(self, lane: Lane, greeting: work.Greeting) -> bool:
        self._unreached[lane.member.site].clear()
        other = self._known.setdefault(greeting.fingerprint, lane.name) if greeting.fingerprint else lane.name
        if other != lane.name:
            why = f"it shows the host key of {other}: two names for one board, or one answers for another"
            self._give_up(lane, why)
            return False
        lane.facts, lane.waiting = greeting.facts, frozenset(greeting.waiting)
        lane.kept = sorted(lane.waiting - {trial.id for trial in lane.trials})
        return True

    def _measured(self, lane: Lane, found: work.Found) -> bool:
        trial = lane.trials.popleft()
        self._record(lane, trial, found=found)
        lane.kept.append(trial.id)
        if found.broken:
            lane.facts = None
            return self._fault(lane, f"its agent ended: {found.measurement.reason or 'no reason given'}")
        lane.breaker.success()
        self._last_good = time.monotonic()
        return True

    def _failed(self, lane: Lane, step: str, error: BaseException) -> bool:
        if isinstance(error, HostKeyError):
            other = next((name for key, name in self._known.items() if key and key in str(error.args[0])), "")
            self._give_up(lane, f"{error.what}" + (f"; that is the key of {other}" if other else ""))
            return False
        if isinstance(error, BusyError):
            return self._busy(lane, error)
        if isinstance(error, BoardError) and step == "deliver":  # e.g. its disk is full: this file's misfortune
            self._record(lane, lane.trials.popleft(), "failed", f"{error.what} ({error.where})")
            return True
        if isinstance(error, (IntegrityError, Refused)) or (isinstance(error, BoardError) and step == "greet"):
            self._give_up(lane, f"{error.what}")
            return False
        if step == "greet":
            self._unreached[lane.member.site].add(lane.name)
        lane.facts = None
        what = error.what if isinstance(error, EdgepipeError) else f"{type(error).__name__}: {error}"
        self._fault(lane, what)
        if len(self._unreached[lane.member.site]) >= max(self.limits.patience.site_limit, 2 * self.limits.parallel):
            self._cut_off(lane.member.site)
        return False

    def _busy(self, lane: Lane, error: BusyError) -> bool:
        """Somebody else works on the board. That is no fault of the board's: wait for a while."""
        now = time.monotonic()
        lane.busy_since = lane.busy_since or now
        if now - lane.busy_since > self.limits.patience.wait:
            self._give_up(lane, error.what)
            return False
        self._delay(lane, self.limits.patience.backoff * (1 + lane.token % 3), error.what)
        return False

    def _fault(self, lane: Lane, reason: str) -> bool:
        pause = lane.breaker.fault(reason)
        if lane.breaker.gone and lane.trials:
            self._give_up(lane, reason)
        elif lane.trials:
            self._delay(lane, pause, reason)
        else:
            return True
        return False

    def _delay(self, lane: Lane, seconds: float, reason: str) -> None:
        self._leases.give_back(lane.name)
        lane.reason = reason
        heapq.heappush(self._delayed, (time.monotonic() + seconds, next(self._count), lane))
        self._change(lane, "waiting")

    def _cut_off(self, site: str) -> None:
        """Give up on all boards of a site that were not reached: its uplink is down."""
        why = f"not asked: of {len(self._unreached[site])} boards of site {site} in a row none could be reached"
        for lane in self.lanes.values():
            if lane.member.site == site and not lane.ended and lane.facts is None and lane.name not in self._running:
                self._give_up(lane, lane.reason or why)
        self._unreached[site].clear()

    def _sent(self, lane: Lane) -> None:
        self._leases.sent(lane.member.site)
        queued = self._for_uplink[lane.member.site]
        while queued:
            other = queued.popleft()
            if not other.ended:
                self._next(other)
                return

    # Boards that hold everybody up

    def _look_round(self) -> None:
        """Give up on steps that hang, and at the end on boards that keep failing; not after each event, but by time."""
        now, patience = time.monotonic(), self.limits.patience
        if now < self._looked + _TICK / 4:
            return
        self._looked = now
        for name in list(self._running):
            lane = self.lanes[name]
            others, longest = self._times[lane.state, lane.doing]
            limit = max(patience.stall, _SLOWER * longest) if others >= _ENOUGH else None
            if limit is not None and now - lane.since > limit:
                self._abandon(lane)
                took = f"{now - lane.since:.1f} s to {lane.state}; others took {longest:.1f} s at most"
                self._fault(lane, f"no answer for {took}")
        if self._open < len(self.lanes) and all(lane.ended or lane.breaker.total for lane in self.lanes.values()):
            left = [lane for lane in self.lanes.values() if not lane.ended]
            until = self._last_good + max(patience.grace, 0.1 * (self._last_good - self._began))
            for lane in left if now > until else []:
                if lane.name in self._running:
                    self._abandon(lane)
                self._give_up(lane, lane.breaker.reason or lane.reason)

    def _abandon(self, lane: Lane) -> None:
        if lane.state == "deliver":
            self._sent(lane)
        lane.token += 1
        lane.facts = None
        self._running.discard(lane.name)
        self._engine.abandon(lane.name)

    def _give_up(self, lane: Lane, reason: str) -> None:
        lane.reason = reason
        while lane.trials:
            self._record(lane, lane.trials.popleft(), "unreachable", reason)
        self._close(lane, "gone")

    def _close(self, lane: Lane, state: str) -> None:
        self._leases.give_back(lane.name)
        self._open -= 1
        self._change(lane, state)

    # Results

    def _record(self, lane: Lane, trial: Trial, status: str = "", reason: str = "", found: Any = None) -> None:
        """Put the report of a trial among those to be kept at the next flush."""
        result = found or work.Found(measurement.failed(status, reason, self.request.plan, self.request.options))
        self._pending.append(self._files.measured(trial.cell, lane.member, lane.facts, result, trial.id))

    def _flush(self) -> None:
        if self._pending:
            self._keep(self._pending)
            self._pending = []

    def _change(self, lane: Lane, state: str) -> None:
        lane.state = state
        self._watch(lane)
