"""Many models x recipes x boards: planned here, worked on by an engine, kept in the journal trial by trial.

See docs/fleet.md for the data flow.
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgepipe import codec, journal, paths
from edgepipe.errors import BoardError, BusyError, EdgepipeError, UsageError
from edgepipe.fleet import plan
from edgepipe.fleet.builds import Builds
from edgepipe.fleet.engines import Choice, Engine
from edgepipe.fleet.kept import Kept, unswept
from edgepipe.fleet.lane import Lane, Limits
from edgepipe.fleet.plan import Request
from edgepipe.fleet.schedule import Schedule
from edgepipe.journal import Journal

if TYPE_CHECKING:
    from edgepipe.progress import Progress
    from edgepipe.record import Report

KIND = "fleet"
Watch = Callable[[Lane], None]
THREADS = Choice()


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its document (``edgepipe.fleet-run/1``), and the error that says what is not done."""

    document: dict[str, Any]
    error: EdgepipeError | None = None


def run(request: Request, progress: Progress, watch: Watch, limits: Limits, engine: Choice = THREADS) -> Outcome:
    """Begin a run: write it down, then work on it.

    Raises:
        UsageError: something in it can't be had; no board was asked.
    """
    plan.check(request.members)
    files = Builds.open(request, progress)
    request = replace(request, identities={name: model.identity for name, model in files.models.items()})
    request = codec.from_dict(Request, codec.to_dict(request))  # as a resume reads it: 0 and 0.0 hash differently
    with closing(engine.open(limits.parallel)) as runner:
        name = journal.new_id()
        Journal().append(KIND, codec.to_dict(request), name)
        progress.note(f"fleet run {name}: {len(request.members)} boards; edgepipe fleet resume {name} goes on with it")
        return _work(name, request, files, progress, watch, limits, runner)


def resume(name: str, progress: Progress, watch: Watch, limits: Limits, engine: Choice = THREADS) -> Outcome:
    """Go on with a run: what the journal has is not measured again, what waits on a board is fetched.

    Raises:
        UsageError: no such run, or a model is not the one it began with. BusyError: the run is still going on.
    """
    name, request = find(name)
    files = Builds.open(request, progress)
    for model, identity in request.identities.items():
        if files.models[model].identity != identity:
            fix = "begin a new run: edgepipe fleet run"
            raise UsageError(f"model {model} is not the one this run began with", f"fleet run {name}", fix)
    with closing(engine.open(limits.parallel)) as runner:
        return _work(name, request, files, progress, watch, limits, runner)


def _work(
    name: str, request: Request, files: Builds, progress: Progress, watch: Watch, limits: Limits, runner: Engine
) -> Outcome:
    def keep(found: list[Report]) -> None:
        Journal().append_all(("report", codec.to_dict(report), report.id) for report in found)

    with alone(name), closing(files):
        with unswept():
            trials = plan.trials(name, request)
            kept = Kept(trials)
            there = kept.done()
            left = {board: [trial for trial in found if trial.id not in there] for board, found in trials.items()}
            schedule = Schedule(request, left, runner, files, keep, watch, limits, trials)
        if there:
            progress.note(f"{len(there)} trials are in the journal already")
        schedule.run()
    kept.refresh()
    return _outcome(document(name, request, kept))


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Nobody else on this host works on the run."""
    folder = paths.data_home() / "fleet"
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fix = "wait for it, or stop it (Ctrl-C keeps all)"
            raise BusyError("this run is still going on", f"fleet run {name}", fix) from None
        yield
    finally:
        os.close(handle)


@unswept()
def find(prefix: str = "") -> tuple[str, Request]:
    """A run by the beginning of its id; the latest one if that is empty.

    Raises:
        UsageError: there is none, there are several, or another version wrote it.
    """
    found = {record.id: record for record in Journal().records(KIND) if record.id.startswith(prefix)}
    if not found or (prefix and len(found) > 1 and prefix not in found):
        what = f"{prefix} begins {len(found)} runs" if found else f"no such fleet run: {prefix or 'there is none yet'}"
        raise UsageError(what, str(Journal().path), "edgepipe fleet status, or edgepipe fleet run")
    record = found.get(prefix) or list(found.values())[-1]
    try:
        return record.id, codec.from_dict(Request, record.value)
    except EdgepipeError as error:
        raise UsageError(f"run {record.id} was written by another version ({error.what})", "journal") from None


def reports(name: str, request: Request) -> list[Report]:
    """The reports of a run, as each was kept last, in the order of the plan."""
    return list(Kept(plan.trials(name, request)))


@unswept()
def document(name: str, request: Request, kept: Kept | None = None) -> dict[str, Any]:
    """What is known of a run, board by board; its reports are read when somebody looks at them."""
    kept = kept or Kept(plan.trials(name, request))
    each = len(request.cells) * request.rounds
    boards = []
    for member in request.members:
        own = kept.of(member.name)
        statuses = Counter(ended.status for ended in own if ended.status)
        reason = next((ended.reason for ended in own if not ended.done), "")
        done = sum(ended.done for ended in own)
        state = "done" if done == each else "given up" if reason else "not done"
        boards.append(
            {"name": member.name, "site": member.site, "state": state, "done": done, "trials": each,
             "statuses": dict(statuses), "reason": reason}
        )  # fmt: skip
    return {
        "schema": "edgepipe.fleet-run/1",
        "run": name,
        "trials": each * len(request.members),
        "done": sum(board["done"] for board in boards),
        "boards": boards,
        "reports": kept,
    }


def _outcome(found: dict[str, Any]) -> Outcome:
    sick, name = [board for board in found["boards"] if board["state"] != "done"], found["run"]
    if not sick:
        return Outcome(found)
    what = f"{len(sick)} of {len(found['boards'])} boards were given up: {', '.join(b['name'] for b in sick[:5])}"
    fix = f"see why: edgepipe fleet status {name}; then edgepipe fleet resume {name}"
    return Outcome(found, BoardError(what + (", ..." if len(sick) > 5 else ""), f"fleet run {name}", fix))  # noqa: PLR2004
