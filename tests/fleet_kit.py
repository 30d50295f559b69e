"""Fleets of boards that are not there, some of them sick, behind the null link; and a model of the null format."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from edgepipe import data, fleet
from edgepipe.errors import BoardError, DeadlineError, HostKeyError, LinkError
from edgepipe.fleet.breaker import Patience
from edgepipe.fleet.lane import Limits
from edgepipe.fleet.plan import Cell, Member, Request
from edgepipe.link import null
from edgepipe.progress import Silent
from edgepipe.schema import Plan
from edgepipe.targets import Target

HASTY = Patience(backoff=0.02, cooldown=0.05, stall=1.0, grace=0.2, wait=0.5)
SHORT = Plan("short", processes=1, min_seconds=0.01, min_samples=16, warmup_seconds=0.0)
MODEL = "fashion-mbv2"


def short(seconds: float) -> Plan:
    return Plan("short", processes=1, min_seconds=seconds, min_samples=16, warmup_seconds=0.0)


def members(count: int, root: str = "~", site: str = "lab") -> list[Member]:
    return [Member(Target(f"b{at:05}", link="null", root=root), site) for at in range(count)]


def request(boards: list[Member], recipes=("none",), rounds: int = 1, plan: Plan = SHORT) -> Request:
    return Request(boards, [Cell(MODEL, recipe, "null") for recipe in recipes], plan, rounds=rounds)


def _no_data():
    """Nothing computes there, so there is nothing to hold against the host."""
    return mock.patch.object(data, "evaluation", lambda *_: None)


def run(wanted: Request, parallel: int = 200, patience: Patience = HASTY, watch=lambda _: None) -> fleet.Outcome:
    with _no_data():
        return fleet.run(wanted, Silent(), watch, Limits(parallel, 16, patience))


def resume(name: str, patience: Patience = HASTY) -> fleet.Outcome:
    with _no_data():
        return fleet.resume(name, Silent(), lambda _: None, Limits(200, 16, patience))


class Sick(null.NullChannel):
    """An agent that misbehaves as its name in ILL says."""

    def answer(self, verb, args, payload):
        how = ILL.get(self.name, "")
        if verb == "bench":
            BENCHED.append((self.name, args["run"]))
            if how == "crash":
                super().answer(verb, args, payload)
                raise LinkError("the agent was killed", self.name)
            if how == "hang":
                _hang(self.name)
            if how == "flap" and random.random() < 0.5:
                raise LinkError("cut off", self.name)
            if how == "lie":
                return {"runtime": 7, "processes": "many"}, b""
            if how == "slow" and "manifest" in args:
                return _slower(*super().answer(verb, args, payload))
        if verb == "activate" and how == "selftest":
            raise BoardError("the golden samples came out otherwise", self.name)
        result = super().answer(verb, args, payload)
        if verb == "activate" and how == "forgets":
            self.memory.active.reverse()
        if verb == "activate" and how == "mute":
            ILL[self.name] = "cut"
        return result

    def send(self, data, until):
        try:
            super().send(data, until)
        except LinkError:
            self._out.clear()
            raise


def _slower(result, payload):
    for process in result["processes"]:
        process["samples_ns"] = [10 * ns for ns in process["samples_ns"]]
    return result, payload


ILL: dict[str, str] = {}
BENCHED: list[tuple[str, str]] = []
CLOSED: set[str] = set()


def _hang(name: str) -> None:
    CLOSED.discard(name)
    until = time.monotonic() + 30
    while name not in CLOSED and time.monotonic() < until:
        time.sleep(0.02)
    raise DeadlineError("hung", name)


class Link(null.NullLink):
    channel = Sick

    def open(self, argv):
        how = ILL.get(self.name, "")
        if how == "down":
            raise LinkError("connection refused", self.name)
        if how == "cut":
            raise LinkError("cut off", self.name)
        if how == "changed":
            raise HostKeyError("THE HOST KEY HAS CHANGED", self.name)
        if how == "bare":
            raise BoardError("the board has no python3", self.name)
        return super().open(argv)

    def close(self):
        CLOSED.add(self.name)


def infect(monkeypatch, ill: dict[str, str], *, keep: bool = False) -> None:
    """Make these boards sick, for one test; ``keep`` what boards hold."""
    ILL.clear()
    ILL.update(ill)
    BENCHED.clear()
    if not keep:
        null._boards.clear()
    monkeypatch.setattr(null, "open_link", Link)


def home(monkeypatch, folder: Path) -> None:
    monkeypatch.setenv("EDGEPIPE_HOME", str(folder))


@dataclass(frozen=True)
class Beside:
    """Runs with sick boards beside runs without: the fewest others that were done, and the ratio of the best times."""

    sick: int
    others: int
    done: int
    reasons: int
    ratio: float


def beside_the_healthy(monkeypatch, how: tuple[str, ...], rounds: int, turns: int) -> Beside:
    """A hundred boards, every fifth of them sick in one of these ways; of several turns the best times count."""
    seconds = 1.0  # how long a measurement takes on each of these boards
    wanted = request(members(100), recipes=("none", "fp16"), rounds=rounds, plan=short(seconds / 2))
    patience = Patience(backoff=0.05, cooldown=0.1, stall=seconds, grace=0.0)
    run(request(members(1), recipes=("none", "fp16")))  # the files are made, so that neither run pays
    ill = {f"b{at * 5:05}": how[at % len(how)] for at in range(20)}
    times: dict[bool, list[float]] = {False: [], True: []}
    done, reasons = [], []
    for _ in range(turns):
        for sick in (False, True):
            infect(monkeypatch, ill if sick else {})
            began = time.monotonic()
            outcome = run(wanted, patience=patience)
            times[sick].append(time.monotonic() - began)
            boards = outcome.document["boards"]
            done.append(sum(board["state"] == "done" for board in boards if board["name"] not in ill))
            if sick:
                reasons.append(sum(bool(board["reason"]) for board in boards if board["state"] != "done"))
                assert reasons[-1] == sum(board["state"] != "done" for board in boards)
            else:
                assert outcome.error is None
    return Beside(len(ill), 100 - len(ill), min(done), min(reasons), min(times[True]) / min(times[False]))
