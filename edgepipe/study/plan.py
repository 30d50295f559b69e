"""A study file -> the cells it asks for: every model x recipe x format x target, each once, each with a key of its own.

Nothing here makes or measures anything. The key is a hash of all that a cell's figures depend on, so that a study that
was killed goes on where it was, and one whose file says something new measures only that.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgepipe import bench, codec, export, given, plugins, recipe, targets
from edgepipe.artifact import ExportOptions
from edgepipe.errors import EdgepipeError, UsageError
from edgepipe.given import Said
from edgepipe.llm import chain
from edgepipe.model import Model
from edgepipe.record import ModelFacts
from edgepipe.schema import NAME, Plan, RunOptions, digest

KEYS: dict[str, Any] = {
    "name": "", "title": "", "targets": ["local"], "threads": 1, "batch": 1, "profile": "quick", "seconds": 0.0,
    "eval": "shipped", "max_drop": 0.01, "grid": [],
}  # fmt: skip
GRID: dict[str, list[str]] = {"models": [], "recipes": [], "formats": [], "targets": []}
_BRACES = re.compile(r"\{([^{}]*)\}")
_MOST_CELLS = 10_000


@dataclass(frozen=True)
class Cell:
    """One thing to measure; ``ref`` is how the study names the model.

    ``problem`` says why it can't be measured, where that is known before anything is made.
    """

    model: str
    family: str
    recipe: str
    format: str
    target: str
    ref: str = ""
    key: str = ""
    problem: str = ""

    @property
    def name(self) -> str:
        """The cell in words."""
        return f"{self.model} {self.recipe} {self.format} on {self.target}"


@dataclass(frozen=True)
class Study:
    """A study as its file says it. ``max_drop`` is a share of 1 that losses are held against in the report: no gate."""

    name: str
    title: str
    sha256: str
    plan: Plan
    options: RunOptions
    evaluation: str
    max_drop: float
    cells: list[Cell] = field(default_factory=list)


def read(path: Path, target: str = "") -> Study:
    """Read a study file; ``target`` (several: comma separated) takes the place of those it names.

    Raises:
        UsageError: no such file, not TOML, a key or value nobody knows, an unknown model, recipe, format or target.
    """
    try:
        content = path.read_bytes()
        table = tomllib.loads(content.decode())
    except OSError as error:
        fix = "edgepipe study studies/quick.toml"
        raise UsageError(f"the study can't be read: {error.strerror}", str(path), fix) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"not a TOML file: {error}", str(path), "mend the line it names") from None
    said = _typed(table, KEYS, str(path), "key of a study")
    name = said["name"] or path.stem
    if not NAME.match(name):
        raise UsageError(f"not a name: {name[:64]!r}", f"{path}, name", "letters, digits, dot, dash and underscore")
    if not said["grid"]:
        raise UsageError("nothing to study", str(path), "add a [[grid]] with models, recipes and formats")
    if not 0 <= said["max_drop"] <= 1:
        raise UsageError(f"not a share: {said['max_drop']}", f"{path}, max_drop", "write 1 % as 0.01")
    if said["threads"] < 1 or said["batch"] < 1 or said["seconds"] < 0:
        raise UsageError("threads and batch are at least 1, seconds at least 0", str(path))
    study = Study(
        name,
        said["title"] or name,
        hashlib.sha256(content).hexdigest(),
        _plan(said["profile"], said["seconds"]),
        RunOptions(threads=said["threads"], batch=said["batch"]),
        said["eval"],
        said["max_drop"],
    )
    chosen = [part.strip() for part in target.split(",") if part.strip()]
    return replace(study, cells=_cells(study, said, chosen, str(path)))


def _plan(profile: str, seconds: float) -> Plan:
    """The plan of a profile, or a shorter or longer one under a name that says so."""
    plan = bench.plan(profile)
    return replace(plan, profile=f"{profile}-{seconds:g}s", min_seconds=seconds) if seconds else plan


def _typed(table: dict[str, Any], known: dict[str, Any], where: str, noun: str) -> dict[str, Any]:
    """The table over its defaults, each value of its default's type; a list may be given as one text."""
    found = dict(known)
    for key, value in table.items():
        if key not in known:
            error = plugins.unknown(noun, key, list(known))
            raise UsageError(error.what, where, error.fix)
        wanted = type(known[key])
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)  # noqa: PLW2901
        if wanted is list and isinstance(value, str):
            value = [value]  # noqa: PLW2901
        if type(value) is not wanted:
            raise UsageError(f"{key} must be a {_WORDS[wanted]}", where, f"{key} = {known[key]!r} is the default")
        found[key] = value
    return found


_WORDS = {str: "text", int: "whole number", float: "number", list: "list"}


def _cells(study: Study, said: dict[str, Any], chosen: list[str], where: str) -> list[Cell]:
    """Every cell of every grid, in the order of the file, none twice."""
    combined: dict[tuple[str, ...], None] = {}
    for at, table in enumerate(said["grid"], 1):
        place = f"{where}, grid {at}"
        if not isinstance(table, dict):
            raise UsageError("a grid is a table", place, "write it as [[grid]]")
        grid = _typed(table, GRID, place, "key of a grid")
        for key in ("models", "recipes", "formats"):
            if not grid[key] or not all(isinstance(each, str) and each for each in grid[key]):
                raise UsageError(f"{key} must name at least one, as texts", place, f'{key} = ["..."]')
        recipes = [each for text in grid["recipes"] for each in expand(text)]
        places = chosen or grid["targets"] or said["targets"]
        combined |= dict.fromkeys(itertools.product(places, grid["models"], recipes, grid["formats"]))
    if len(combined) > _MOST_CELLS:
        raise UsageError(f"{len(combined):,} cells, at most {_MOST_CELLS:,}", where, "split the study")
    for place in dict.fromkeys(key[0] for key in combined):
        targets.load(place)
    return list(_checked(study, list(combined), where))


def expand(text: str) -> Iterator[str]:
    """``sparse:{0.3,0.5}+{none,int8}`` as its recipes; ``none`` beside another step says nothing and goes.

    Raises:
        UsageError: a brace without its partner.
    """
    found = _BRACES.search(text)
    if found:
        for part in found.group(1).split(","):
            yield from expand(text[: found.start()] + part.strip() + text[found.end() :])
        return
    if "{" in text or "}" in text:
        raise UsageError(f"a brace without its partner: {text}", "recipes", "write sparse:{0.3,0.5}")
    steps = [step for step in text.split("+") if step != recipe.BASELINE]
    yield recipe.plain("+".join(steps) or recipe.BASELINE)


def _checked(study: Study, combined: list[tuple[str, ...]], where: str) -> Iterator[Cell]:
    """Cells with their keys, those that can't be with their problem."""
    models: dict[str, Model | ModelFacts | EdgepipeError] = {}
    for target, name, text, form in combined:
        if form not in export.formats():
            error = plugins.unknown("format", form, list(export.formats()))
            raise UsageError(error.what, where, error.fix)
        recipe.parse(text)
        if name not in models:
            models[name] = _loaded(name)
        source = models[name]
        if isinstance(source, EdgepipeError):
            yield Cell(name, "unknown", text, form, target, ref=name, problem=source.what)
            continue
        problem, options = "", ExportOptions(study.options.batch)
        try:
            if isinstance(source, ModelFacts):
                chain.check(text, (form,), options)
            else:
                export.check(source, text, (form,), options)
        except EdgepipeError as error:
            problem = error.what
        facts, identity = (source, source.sha256) if isinstance(source, ModelFacts) else (source.facts, source.identity)
        cell = Cell(source.name, facts.task, text, form, target, ref=name, problem=problem)
        yield replace(cell, key=_key(study, cell, identity))


def _loaded(name: str) -> Model | ModelFacts | EdgepipeError:
    """The model (of a language model what is known before it is fetched), or why it can't be loaded.

    A name nobody knows is the study's own mistake.

    Raises:
        UsageError: no such model.
    """
    if chain.knows(name):
        return chain.facts(name)
    try:
        return given.load(name, Said())
    except UsageError:
        raise
    except EdgepipeError as error:
        return error


def _key(study: Study, cell: Cell, identity: str) -> str:
    what = {
        "study": study.name,
        "model": identity,
        "cell": codec.to_dict(replace(cell, ref="", problem="")),
        "plan": codec.to_dict(study.plan),
        "options": codec.to_dict(study.options),
        "eval": study.evaluation,
    }
    return digest(what)[:32]
