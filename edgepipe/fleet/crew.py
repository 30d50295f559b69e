"""Work on many boards at once, each as a generator that yields its next job and is sent what came of it.

One thread runs all the generators, so what they keep needs no lock. A job that fails for want of the board (link, busy,
deadline) is asked again after a growing, random pause; what goes on failing is thrown into the generator.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from edgepipe.errors import BusyError, DeadlineError, HostKeyError, LinkError
from edgepipe.fleet.breaker import Breaker
from edgepipe.fleet.engines import Engine
from edgepipe.fleet.lane import Limits
from edgepipe.fleet.leases import Leases
from edgepipe.fleet.plan import Member
from edgepipe.fleet.work import Where
from edgepipe.link import Refused

_TICK = 0.25


@dataclass(frozen=True)
class Job:
    """``act(where, *args)`` on a board, over the uplink of its site if ``uplink``; or a ``future`` to wait for."""

    act: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    uplink: bool = False
    future: Future[Any] | None = None


Steps = Generator[Job, Any, None]


@dataclass
class _Hand:
    """A board at work: its generator, the job at hand, and its patience."""

    member: Member
    steps: Steps
    breaker: Breaker
    job: Job | None = None
    busy_since: float = 0.0
    sending: bool = False


@dataclass
class Crew:
    """``parallel`` boards at a time, ``transfers`` at a time on an uplink; ``stop`` says whether to begin no more."""

    engine: Engine
    owner: str
    limits: Limits
    stop: Callable[[], bool] = lambda: False
    _events: queue.SimpleQueue[tuple[_Hand, Future[Any]]] = field(default_factory=queue.SimpleQueue)
    _delayed: list[tuple[float, int, _Hand]] = field(default_factory=list)
    _uplinks: defaultdict[str, deque[_Hand]] = field(default_factory=lambda: defaultdict(deque))
    _count: itertools.count[int] = field(default_factory=itertools.count)

    def run(self, work: list[tuple[Member, Steps]]) -> None:
        """Work until all that was begun has ended; what was not begun is closed."""
        self._leases = Leases(self.limits.parallel, self.limits.transfers)
        waiting = deque(_Hand(member, steps, Breaker(self.limits.patience)) for member, steps in work)
        self._open = 0
        while waiting or self._open:
            while waiting and self._leases.free and not self.stop():
                hand = waiting.popleft()
                self._leases.take(hand.member.name)
                self._open += 1
                self._go_on(hand, partial(next, hand.steps))
            if not self._open:
                break
            self._take_in()
        for hand in waiting:
            hand.steps.close()

    def _go_on(self, hand: _Hand, advance: Callable[[], Job]) -> None:
        """Let a generator say what comes next."""
        try:
            hand.job = advance()
        except StopIteration:
            self._open -= 1
            self._leases.give_back(hand.member.name)
            return
        self._begin(hand)

    def _begin(self, hand: _Hand) -> None:
        job, member = hand.job, hand.member
        assert job is not None
        if job.uplink and not hand.sending:
            if not self._leases.send(member.site):
                self._uplinks[member.site].append(hand)
                return
            hand.sending = True
        if job.future is not None:
            future = job.future
        else:
            assert job.act is not None
            where = Where(member.target, self.owner)
            future = self.engine.executor(member.name, member.site).submit(job.act, where, *job.args)
        future.add_done_callback(lambda done: self._events.put((hand, done)))

    def _take_in(self) -> None:
        """Wait for an end, or for a pause to be over."""
        now = time.monotonic()
        while self._delayed and self._delayed[0][0] <= now:
            self._begin(heapq.heappop(self._delayed)[2])
        wait = min(_TICK, self._delayed[0][0] - now) if self._delayed else _TICK
        try:
            hand, future = self._events.get(timeout=max(wait, 0.001))
        except queue.Empty:
            return
        error = future.exception()
        pause = self._pause(hand, error) if error else None
        if pause is not None:
            heapq.heappush(self._delayed, (time.monotonic() + pause, next(self._count), hand))
            return
        if hand.sending:
            self._sent(hand)
        if error:
            self._go_on(hand, lambda: hand.steps.throw(error))
        else:
            hand.breaker.success()
            hand.busy_since = 0.0
            self._go_on(hand, lambda: hand.steps.send(future.result()))

    def _pause(self, hand: _Hand, error: BaseException) -> float | None:
        """How long to wait before the job is asked again; null where it is of no use."""
        patience = self.limits.patience
        if isinstance(error, BusyError):
            hand.busy_since = hand.busy_since or time.monotonic()
            waited = time.monotonic() - hand.busy_since
            return None if waited > patience.wait else patience.backoff
        again = isinstance(error, (LinkError, DeadlineError)) and not isinstance(error, (HostKeyError, Refused))
        if not again or (hand.job and hand.job.future):
            return None
        pause = hand.breaker.fault(str(error))
        return None if hand.breaker.gone else pause

    def _sent(self, hand: _Hand) -> None:
        hand.sending = False
        self._leases.sent(hand.member.site)
        queued = self._uplinks[hand.member.site]
        if queued:
            self._begin(queued.popleft())
