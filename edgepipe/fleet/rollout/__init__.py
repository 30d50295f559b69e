"""Staged roll-outs: a release on one board, then a few, then all, with gates at each board and each wave.

A roll-out is in the journal as its request, one standing for each board (the latest counts) and one state of the whole.
See docs/fleet.md.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgepipe import codec, fleet, journal
from edgepipe.errors import EdgepipeError, UsageError
from edgepipe.fleet import plan
from edgepipe.fleet.builds import Builds
from edgepipe.fleet.engines import Choice
from edgepipe.fleet.plan import Cell, Member
from edgepipe.fleet.rollout import waves
from edgepipe.fleet.rollout.waves import Gates, Standing
from edgepipe.journal import Journal
from edgepipe.schema import Plan, RunOptions

if TYPE_CHECKING:
    from edgepipe.fleet.lane import Limits
    from edgepipe.progress import Progress

KIND, BOARD, STATE, ORDER = "rollout", "rollout-board", "rollout-state", "rollout-order"
PREFIX = "rollout"
RUNNING, PAUSED, STOPPING, STOPPED, ABORTING, ABORTED, DONE = (
    "running", "paused", "stopping", "stopped", "aborting", "aborted", "done"
)  # fmt: skip
GO, PAUSE, ABORT = "go", "pause", "abort"


@dataclass(frozen=True)
class Request:
    """A whole roll-out, as it is kept. ``waves`` are the boards that have the release after each; ``soak`` in s."""

    members: list[Member]
    cell: Cell
    waves: list[int]
    gates: Gates = field(default_factory=Gates)
    roll_back: str = "wave"
    soak: float = 0.0
    plan: Plan = field(default_factory=Plan)
    options: RunOptions = field(default_factory=RunOptions)
    evaluation: str = "auto"
    synthetic: bool = False
    identity: str = ""
    schema: str = "edgepipe.rollout/1"

    @property
    def cells(self) -> list[Cell]:
        """The one candidate, as `Builds` asks for it."""
        return [self.cell]

    @property
    def max_drop(self) -> float | None:
        """What accuracy may be lost."""
        return self.gates.max_drop

    def split(self) -> list[list[Member]]:
        """The boards of each wave."""
        return waves.split(self.members, self.waves)


@dataclass(frozen=True)
class State:
    """Where a roll-out is. ``roll_back`` says which boards an end of it brings back."""

    state: str
    wave: int = 1
    reason: str = ""
    roll_back: str = "wave"


def begin(request: Request, progress: Progress, limits: Limits, engine: Choice = fleet.THREADS) -> fleet.Outcome:
    """Write a roll-out down, then work on it.

    Raises:
        UsageError: something in it can't be had; no board was asked.
    """
    from edgepipe.fleet.rollout import drive

    plan.check(request.members)
    files = Builds.open(request, progress)
    request = replace(request, identity=files.models[request.cell.model].identity)
    name = f"{PREFIX}-{journal.new_id()}"
    Journal().append(KIND, codec.to_dict(request), name)
    progress.note(f"{name}: {len(request.members)} boards in {len(request.split())} waves; edgepipe fleet pause {name}")
    return drive.work(name, request, files, progress, limits, engine)


def resume(name: str, progress: Progress, limits: Limits, engine: Choice = fleet.THREADS) -> fleet.Outcome:
    """Go on with a roll-out after a pause, Ctrl-C or a killed host; boards that were missed are asked again.

    Raises:
        UsageError: no such roll-out, its model is another one now, or it has ended. BusyError: it still goes on.
    """
    from edgepipe.fleet.rollout import drive

    name, request = find(name)
    now = state(name)
    if now.state in {STOPPED, ABORTED}:
        fix = "begin a new one: edgepipe fleet rollout"
        raise UsageError(f"this roll-out was {now.state}: {now.reason}", f"fleet {name}", fix)
    files = Builds.open(request, progress)
    if files.models[request.cell.model].identity != request.identity:
        fix = "begin a new one: edgepipe fleet rollout"
        raise UsageError(f"model {request.cell.model} is not the one this began with", f"fleet {name}", fix)
    _order(name, GO)
    return drive.work(name, request, files, progress, limits, engine)


def pause(name: str) -> str:
    """Ask for a pause: boards that were begun are finished, no other is begun. Returns the roll-out's id."""
    name, _ = find(name)
    _order(name, PAUSE)
    return name


def abort(
    name: str, roll_back: str, progress: Progress, limits: Limits, engine: Choice = fleet.THREADS
) -> fleet.Outcome | None:
    """End a roll-out and bring boards back: of the wave at hand, all of them or none.

    None where another process works on it: that one has been told, and does it.

    Raises:
        UsageError: no such roll-out, or no such choice of boards.
    """
    from edgepipe.errors import BusyError
    from edgepipe.fleet.rollout import drive

    waves.checked(roll_back)
    name, request = find(name)
    _order(name, ABORT, roll_back)
    try:
        return drive.work(name, request, Builds.open(request, progress), progress, limits, engine)
    except BusyError:
        return None


def find(prefix: str = "") -> tuple[str, Request]:
    """A roll-out by the beginning of its id; the latest one if that is empty or ``rollout``.

    Raises:
        UsageError: there is none, there are several, or another version wrote it.
    """
    found = {record.id: record for record in Journal().records(KIND) if record.id.startswith(prefix)}
    latest = prefix in ("", PREFIX)
    if not found or (not latest and len(found) > 1 and prefix not in found):
        what = f"{prefix} begins {len(found)} roll-outs" if found else f"no such roll-out: {prefix}"
        raise UsageError(what, str(Journal().path), "edgepipe fleet rollout --help")
    record = found.get(prefix) or list(found.values())[-1]
    try:
        return record.id, codec.from_dict(Request, record.value)
    except EdgepipeError as error:
        raise UsageError(f"{record.id} was written by another version ({error.what})", "journal") from None


def state(name: str) -> State:
    """Where a roll-out is."""
    record = Journal().get(f"{name}-state")
    return codec.from_dict(State, record.value) if record else State(RUNNING)


def standings(name: str, request: Request) -> dict[str, Standing]:
    """How each board stands that was ever asked."""
    kept = Journal()
    found = {one.name: kept.get(f"{name}-{one.name}") for one in request.members}
    return {board: codec.from_dict(Standing, record.value) for board, record in found.items() if record}


def ordered(name: str) -> tuple[str, str]:
    """What somebody asked of a roll-out last, and which boards to bring back."""
    record = Journal().get(f"{name}-order")
    return (record.value["order"], record.value["roll_back"]) if record else (GO, "")


def _order(name: str, order: str, roll_back: str = "") -> None:
    Journal().append(ORDER, {"order": order, "roll_back": roll_back}, f"{name}-order")


def document(name: str, request: Request) -> dict[str, Any]:
    """What is known of a roll-out, board by board."""
    known, now = standings(name, request), state(name)
    boards = []
    for number, group in enumerate(request.split(), 1):
        for one in group:
            at = known.get(one.name) or Standing(one.name, number, "not asked")
            boards.append({"site": one.site, **codec.to_dict(at), "wave": number})
    return {
        "schema": "edgepipe.fleet-rollout/1",
        "rollout": name,
        "state": now.state,
        "wave": now.wave,
        "waves": request.waves,
        "reason": now.reason,
        "candidate": str(request.cell),
        "counts": dict(Counter(board["state"] for board in boards)),
        "boards": boards,
    }
