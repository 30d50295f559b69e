"""What a fleet run is to do, as data: boards x candidates x rounds. Pure: no board, disk or clock is asked."""

# ruff: noqa: UP045 - the codec reads Optional

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from edgepipe import plugins
from edgepipe.codec import to_dict
from edgepipe.errors import UsageError
from edgepipe.inventory import Host
from edgepipe.schema import Plan, RunOptions, digest
from edgepipe.targets import Target, of_host

_MATRIX = ("models", "recipes", "formats", "rounds", "limit", "profile", "priority", "exclude")
DEFAULT_SITE = "default"


@dataclass(frozen=True)
class Member:
    """A board of the fleet: where it is, the uplink it shares (``site``), and its priority (higher goes first)."""

    target: Target
    site: str = DEFAULT_SITE
    priority: int = 0

    @property
    def name(self) -> str:
        """The board's name in the inventory."""
        return self.target.name


@dataclass(frozen=True)
class Cell:
    """One candidate: a model by a recipe in a format."""

    model: str
    recipe: str
    format: str

    def __str__(self) -> str:
        """Render for people."""
        return f"{self.model} {self.recipe} {self.format}"


@dataclass(frozen=True)
class Trial:
    """One candidate on one board in one round.

    ``key`` is the hash of what is measured: the same in every run, so that runs can be compared. ``id`` is this
    trial's in this run: the id of its report, and of the run that waits on the board.
    """

    id: str
    key: str
    board: str
    cell: Cell
    round: int = 1


@dataclass(frozen=True)
class Matrix:
    """What is asked for. ``priority`` maps a model to a number; cells of higher ones go first on each board."""

    models: list[str]
    recipes: list[str] = field(default_factory=lambda: ["none"])
    formats: list[str] = field(default_factory=lambda: ["onnx"])
    rounds: int = 1
    limit: str = "all"
    profile: str = "quick"
    priority: dict[str, int] = field(default_factory=dict)
    exclude: list[dict[str, str]] = field(default_factory=list)

    def cells(self) -> list[Cell]:
        """The candidates, those of high priority first."""
        found = [Cell(m, r, f) for m in self.models for r in self.recipes for f in self.formats]
        found = [cell for cell in found if not any(_excluded(cell, rule) for rule in self.exclude)]
        if not found:
            raise UsageError("nothing to measure", "the matrix", "name a model, and leave some cell in")
        return sorted(dict.fromkeys(found), key=lambda cell: -self.priority.get(cell.model, 0))


@dataclass(frozen=True)
class Request:
    """A whole run, as it is kept in the journal: who, what and how. ``identities`` are the models' hashes."""

    members: list[Member]
    cells: list[Cell]
    plan: Plan = field(default_factory=Plan)
    options: RunOptions = field(default_factory=RunOptions)
    rounds: int = 1
    evaluation: str = "auto"
    max_drop: Optional[float] = None
    synthetic: bool = False
    identities: dict[str, str] = field(default_factory=dict)
    schema: str = "edgepipe.fleet/1"


def matrix(text: str, where: str) -> Matrix:
    """Read a matrix file.

    Raises:
        UsageError: no TOML, a key nobody knows, or a value of the wrong sort.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"not a TOML file: {error}", where, "correct the line") from None
    for key in data:
        if key not in _MATRIX:
            raise plugins.unknown("key of a matrix", key, _MATRIX)
    _check_texts(data, where)
    if "models" not in data:
        raise UsageError("no models", where, 'write models = ["fashion-resnet8"]')
    rounds, priority, exclude = data.get("rounds", 1), data.get("priority", {}), data.get("exclude", [])
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 1:
        raise UsageError("rounds must be a whole number from 1 on", where, "write rounds = 3")
    if not isinstance(priority, dict) or not all(type(value) is int for value in priority.values()):
        raise UsageError("priority must map models to whole numbers", where, "write [priority] and model = 10")
    if not isinstance(exclude, list) or not all(isinstance(rule, dict) for rule in exclude):
        raise UsageError("exclude must be tables", where, 'write [[exclude]] and recipe = "int4"')
    for key in (key for rule in exclude for key in rule if key not in ("model", "recipe", "format")):
        raise plugins.unknown("key of [[exclude]]", key, ("model", "recipe", "format"))
    return Matrix(**data)


def _check_texts(data: dict[str, Any], where: str) -> None:
    for key in ("models", "recipes", "formats"):
        value = data.get(key, ["x"])
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            raise UsageError(f"{key} must be a list of texts", where, f'write {key} = ["..."]')
    for key in ("limit", "profile"):
        if not isinstance(data.get(key, ""), str):
            raise UsageError(f"{key} must be a text", where, f'write {key} = "..."')


def _excluded(cell: Cell, rule: dict[str, str]) -> bool:
    return bool(rule) and all(getattr(cell, key) == value for key, value in rule.items())


def member(host: Host) -> Member:
    """A host of the inventory as a board of the fleet.

    Raises:
        UsageError: it can't be a target, or its priority is no number.
    """
    priority = host.text("edgepipe_priority", "0")
    if not priority.lstrip("-").isdecimal():
        where = f"host {host.name}, variable edgepipe_priority"
        raise UsageError(f"not a whole number: {priority[:40]}", where, "write edgepipe_priority: 10")
    return Member(of_host(host), host.text("edgepipe_site", DEFAULT_SITE), int(priority))


def check(members: Sequence[Member]) -> None:
    """Refuse two names for one address before anything is asked; one address for two names shows by host key later.

    Raises:
        UsageError: two members are at the same address.
    """
    seen: dict[str, str] = {}
    for one in members:
        if one.target.link != "ssh":
            continue
        other = seen.setdefault(one.target.host, one.name)
        if other != one.name:
            fix = "keep one of the two names; a bench on one would disturb the other"
            raise UsageError(f"{other} and {one.name} are one board: both are at {one.target.host}", "inventory", fix)


def trials(run: str, request: Request) -> dict[str, list[Trial]]:
    """The trials of each board, in the order it runs them.

    Candidates are interleaved: each round has all of them before any comes again, and each board begins at another one
    (a Latin square over boards and rounds), so that a drift of the board's or of the room favours none.
    """
    found: dict[str, list[Trial]] = {}
    same = {
        cell: {
            "cell": [request.identities.get(cell.model, cell.model), cell.recipe, cell.format],
            "plan": to_dict(request.plan),
            "options": to_dict(request.options),
        }
        for cell in request.cells
    }
    hashed = {cell: digest(value) for cell, value in same.items()}
    for at, one in enumerate(sorted(request.members, key=lambda each: each.name)):
        order: list[Trial] = []
        for turn in range(request.rounds):
            shift = (at + turn) % len(request.cells)
            for cell in _by_priority(request.cells, shift):
                key = digest([hashed[cell], one.name, turn])
                order.append(Trial(f"trial-{digest([run, key])[:32]}", key, one.name, cell, turn + 1))
        found[one.name] = order
    return found


def _by_priority(cells: list[Cell], shift: int) -> list[Cell]:
    return cells[shift:] + cells[:shift]


def seconds_each(plan: Plan) -> float:
    """The least a trial measures on its board, in s: rest, warm-up and the timed part."""
    return plan.idle_seconds + plan.processes * plan.warmup_seconds + plan.min_seconds


def dry_run(request: Request, sizes: dict[Cell, int | None], parallel: int) -> dict[str, Any]:
    """What a run would do: counts, bytes to send and the least time, from what is known without asking a board.

    ``sizes`` are the files' bytes where a cell has been made before; the bytes of others are null.
    """
    boards, cells = len(request.members), len(request.cells)
    known = [size for size in sizes.values() if size is not None]
    per_board = sum(known) if len(known) == cells else None
    board_seconds = seconds_each(request.plan) * cells * request.rounds
    sites: dict[str, int] = {}
    for one in request.members:
        sites[one.site] = sites.get(one.site, 0) + 1
    turns = -(-boards // parallel)
    in_all = None if per_board is None else per_board * boards
    reason = "" if per_board is not None else f"{cells - len(known)} of {cells} files were never made here"
    return {
        "schema": "edgepipe.fleet-plan/1",
        "boards": [
            {"name": one.name, "host": one.target.host, "kind": one.target.like, "site": one.site,
             "priority": one.priority} for one in request.members
        ],
        "cells": [
            {"model": c.model, "recipe": c.recipe, "format": c.format, "bytes": sizes.get(c)} for c in request.cells
        ],
        "rounds": request.rounds,
        "trials": boards * cells * request.rounds,
        "bytes": {"per_board": per_board, "in_all": in_all, "reason": reason},
        "sites": sites,
        "seconds": {"per_board": board_seconds, "in_all": board_seconds * turns},
        "profile": request.plan.profile,
        "parallel": parallel,
    }  # fmt: skip
