"""The journal as a page needs it: read once, then only what was added. Numbers alone; nothing here is HTML.

One lock guards all; whoever asks gets plain values of his own.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from edgepipe import codec, fleet
from edgepipe.errors import EdgepipeError
from edgepipe.fleet import plan, rollout
from edgepipe.fleet.plan import Request
from edgepipe.journal import Journal
from edgepipe.lines import Record

_HISTORY = 200  # points of one candidate on one board
_LISTED = 200  # boards in trouble


@dataclass
class Run:
    """A fleet run as it stands: of each board how many trials ended how, and why the last one could not be measured."""

    name: str
    at: str
    sites: dict[str, tuple[str, str]]
    each: int
    ended: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    reasons: dict[str, str] = field(default_factory=dict)
    last: str = ""

    def board(self, name: str) -> dict[str, Any]:
        """One board of it."""
        site, kind = self.sites[name]
        ended = self.ended.get(name, Counter())
        done = sum(ended.values()) - ended["unreachable"]
        lost = ended["unreachable"]
        state = "given up" if lost else "failed" if ended["failed"] + ended["timeout"] else "measuring"
        if state == "measuring":
            state = "done" if done >= self.each else "measuring" if done else "waiting"
        if state == "done" and ended["throttled"]:
            state = "throttled"
        reason = self.reasons.get(name, "") if state in {"given up", "failed"} else ""
        return {"name": name, "site": site, "kind": kind, "state": state, "done": done, "reason": reason}


@dataclass(frozen=True)
class Point:
    """One result; times in ms."""

    at: str
    status: str
    p50: float | None
    low: float | None
    high: float | None
    accuracy: float | None
    size: int | None
    kind: str
    emulated: bool


Key = tuple[str, str, str, str]  # board, model, recipe, format


class State:
    """What is known. ``refresh`` reads what the journal has got since; all else answers from memory."""

    def __init__(self, journal: Journal | None = None) -> None:
        self._journal = journal or Journal()
        self._lock = threading.Lock()
        self._offset = 0
        self._runs: dict[str, Run] = {}
        self._trials: dict[str, tuple[str, str]] = {}
        self._status: dict[str, str] = {}
        self._points: dict[Key, dict[str, Point]] = defaultdict(dict)
        self._rollouts: dict[str, dict[str, Any]] = {}
        self.records = 0

    def refresh(self) -> set[str]:
        """Take in what was added; names of the boards whose state may have changed."""
        with self._lock:
            records, self._offset, anew = self._journal.tail(self._offset)
            if anew:
                for held in (self._runs, self._trials, self._status, self._points, self._rollouts):
                    held.clear()
            changed: set[str] = set()
            for _, record in records:
                self.records += 1
                changed |= self._take(record)
            return changed

    def _take(self, record: Record) -> set[str]:
        value = record.value
        if record.kind == "report":
            return self._report(record)
        if record.kind == fleet.KIND:
            try:
                request = codec.from_dict(Request, value)
            except EdgepipeError:  # of another version
                return set()
            members = {one.name: (one.site, one.target.like) for one in request.members}
            self._runs[record.id] = Run(record.id, record.at, members, len(request.cells) * request.rounds)
            for board, trials in plan.trials(record.id, request).items():
                self._trials.update(dict.fromkeys((trial.id for trial in trials), (record.id, board)))
            return set(members)
        if record.kind == rollout.KIND:
            cell = value.get("cell") or {}
            told = f"{cell.get('model')} {cell.get('recipe')} {cell.get('format')}"
            boards = {str((one.get("target") or {}).get("name")): "not asked" for one in value.get("members") or []}
            self._rollouts[record.id] = {"name": record.id, "candidate": told, "state": "begun", "boards": boards}
        elif record.kind in {rollout.BOARD, rollout.STATE}:
            return self._rolled(record)
        return set()

    def _rolled(self, record: Record) -> set[str]:
        """A change of a roll-out: of a board or of the whole. Its id begins with the roll-out's."""
        name = record.id.removesuffix("-state") if record.kind == rollout.STATE else record.id
        board = str(record.value.get("board", ""))
        found = self._rollouts.get(name.removesuffix(f"-{board}") if board else name)
        if found is not None and board:
            found["boards"][board] = str(record.value.get("state"))
        elif found is not None:
            found["state"] = str(record.value.get("state"))
        return set()

    def _report(self, record: Record) -> set[str]:
        value = record.value
        measured, board = value.get("measurement") or {}, value.get("board") or {}
        status = str(measured.get("status", "not measured"))
        name = str(board.get("target", ""))
        trial = self._trials.get(record.id)
        if trial:
            run, name = self._runs[trial[0]], trial[1]
            before = self._status.get(record.id)
            if before:
                run.ended[name][before] -= 1
            run.ended[name][status] += 1
            run.last = record.at
            self._status[record.id] = status
            if measured.get("reason"):
                run.reasons[name] = str(measured["reason"])
        artifact, model = value.get("artifact") or {}, value.get("model") or {}
        key = (name, str(model.get("name")), str(value.get("recipe")), str(artifact.get("format")))
        held = self._points[key]
        held[record.id] = _point(record, measured, board, trial, self._runs)
        while len(held) > _HISTORY:
            del held[next(iter(held))]
        return {name}

    # What is asked for

    def runs(self) -> list[dict[str, Any]]:
        """Every run, latest first."""
        with self._lock:
            return [_told(run) for run in reversed(self._runs.values())]

    def boards(self, run: str = "", only: set[str] | None = None) -> list[dict[str, Any]]:
        """The boards of a run (the latest one without it), or some of them."""
        with self._lock:
            found = self._runs.get(run) or (list(self._runs.values())[-1] if self._runs else None)
            if found is None:
                return []
            names = found.sites if only is None else [name for name in found.sites if name in only]
            return [found.board(name) for name in names]

    def rollouts(self) -> list[dict[str, Any]]:
        """Every roll-out, latest first, with how many boards stand how."""
        with self._lock:
            return [
                {
                    **{name: each[name] for name in ("name", "candidate", "state")},
                    "counts": Counter(each["boards"].values()),
                }
                for each in reversed(self._rollouts.values())
            ]  # fmt: skip

    def tradeoffs(self) -> list[dict[str, Any]]:
        """Each candidate on each kind of board: the median over boards of the last good time, accuracy and size."""
        groups: dict[tuple[str, ...], list[Point]] = defaultdict(list)
        with self._lock:
            for (_, *candidate), points in self._points.items():
                good = [point for point in points.values() if point.p50 is not None and point.status != "failed"]
                if good:
                    groups[(good[-1].kind, *candidate)].append(good[-1])
        found = []
        for (kind, model, recipe, form), own in groups.items():
            times = [point.p50 for point in own if point.p50 is not None]
            accuracies = [point.accuracy for point in own if point.accuracy is not None]
            found.append(
                {"kind": kind, "model": model, "recipe": recipe, "format": form, "boards": len(own),
                 "p50": statistics.median(times), "accuracy": statistics.median(accuracies) if accuracies else None,
                 "size": own[-1].size, "emulated": any(point.emulated for point in own)}
            )  # fmt: skip
        return found

    def history(self, board: str, model: str) -> list[dict[str, Any]]:
        """Results of a model on a board over time, by recipe and format."""
        with self._lock:
            found = {key: list(points.values()) for key, points in self._points.items() if key[:2] == (board, model)}
        return [
            {
                "recipe": key[2],
                "format": key[3],
                "points": [
                    {"at": p.at, "status": p.status, "p50": p.p50, "low": p.low, "high": p.high} for p in points
                ],
            }
            for key, points in found.items()
        ]

    def models(self) -> list[str]:
        """Models that have results."""
        with self._lock:
            return sorted({key[1] for key in self._points})

    def regressions(self) -> list[dict[str, Any]]:
        """Candidates whose last time on a board lies above the one before for sure: their 95 % intervals are apart.

        Largest first. Without a correction for how many are looked at: `edgepipe fleet compare` has one.
        """
        found = []
        with self._lock:
            for (board, model, recipe, form), points in self._points.items():
                good = [point for point in points.values() if point.status == "ok" and point.p50]
                if len(good) < 2:  # noqa: PLR2004
                    continue
                before, last = good[-2:]
                if last.low and before.high and last.low > before.high and last.p50 and before.p50:
                    found.append(
                        {"board": board, "model": model, "recipe": recipe, "format": form, "at": last.at,
                         "ratio": last.p50 / before.p50}
                    )  # fmt: skip
        return sorted(found, key=lambda each: -float(str(each["ratio"])))[:_LISTED]

    def latest(self) -> list[tuple[Key, Point]]:
        """The last result of each candidate on each board."""
        with self._lock:
            return [(key, next(reversed(points.values()))) for key, points in self._points.items() if points]


def _told(run: Run) -> dict[str, Any]:
    ended = sum((Counter(each) for each in run.ended.values()), Counter())
    total = run.each * len(run.sites)
    done = sum(ended.values()) - ended["unreachable"]
    return {
        "name": run.name, "at": run.at, "boards": len(run.sites), "trials": total, "done": done,
        "statuses": {name: count for name, count in ended.items() if count}, "last": run.last,
    }  # fmt: skip


def _point(record: Record, measured: Any, board: Any, trial: tuple[str, str] | None, runs: dict[str, Run]) -> Point:
    p50 = ((measured.get("latency_ms") or {}).get("p50")) or {}
    accuracy = record.value.get("accuracy") or {}
    furthest = next((accuracy[name] for name in ("on_device", "exported", "compressed", "baseline")
                     if accuracy.get(name) is not None), None)  # fmt: skip
    kind = runs[trial[0]].sites[trial[1]][1] if trial else ""
    value, low, high, known = (_number(each) for each in (p50.get("value"), p50.get("low"), p50.get("high"), furthest))
    size = (record.value.get("artifact") or {}).get("bytes")
    return Point(
        record.at, str(measured.get("status")), value, low, high, known, (isinstance(size, int) and size) or None,
        kind or str(board.get("model") or board.get("cpu") or ""), bool(board.get("emulated")),
    )  # fmt: skip


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
