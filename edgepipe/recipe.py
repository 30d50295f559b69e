"""Recipes: ``prune:0.5+int8`` -> steps, split between what changes the network and what changes the exported file.

A step is ``name``, ``name:value`` or ``name:value,key=value``: a bare word goes to the parameter one of whose choices
it is, any other bare value to the step's first parameter. A TOML file says the same as ``[[step]]`` tables with
``name`` and the parameters by name.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from edgepipe import plugins
from edgepipe.errors import UsageError

BASELINE = "none"
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}\Z")
_WORD = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")


@dataclass(frozen=True)
class Part:
    """One step as the user wrote it: ``values`` came bare, ``params`` by name."""

    name: str
    values: tuple[Any, ...] = ()
    params: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        given = [_text(value) for value in self.values]
        given += [f"{key}={_text(value)}" for key, value in sorted(self.params.items())]
        return f"{self.name}:{','.join(given)}" if given else self.name


@dataclass(frozen=True)
class Recipe:
    """Steps in order; the baseline has none."""

    parts: tuple[Part, ...] = ()

    def __str__(self) -> str:
        return "+".join(str(part) for part in self.parts) or BASELINE


@dataclass(frozen=True)
class Action:
    """A step with all its parameters (``given`` are those the user named), and the plug-in that does it."""

    name: str
    params: dict[str, Any]
    module: ModuleType
    text: str
    given: frozenset[str] = frozenset()

    @property
    def needs(self) -> str:
        """The data the step reads: "" (none), "calibration" or "training"."""
        if hasattr(self.module, "needs"):
            return str(self.module.needs(self.params))
        return "calibration" if self.name in self.module.NEEDS_DATA else ""


@dataclass(frozen=True)
class Plan:
    """A recipe for one format: first ``network``, then export, then ``file``."""

    recipe: Recipe
    network: tuple[Action, ...]
    file: tuple[Action, ...]


@cache
def network_steps() -> dict[str, ModuleType]:
    """Steps that change the network, by name: one for each file of ``compress/``."""
    modules = [plugins.load("compress", name) for name in plugins.names("compress")]
    return {module.STEP: module for module in modules}


@cache
def file_steps() -> dict[str, dict[str, ModuleType]]:
    """Steps that change the exported file: name -> format -> plug-in."""
    found: dict[str, dict[str, ModuleType]] = {}
    for name in plugins.names("formats"):
        try:
            module = plugins.load("formats", name, "quantize")
        except UsageError:
            continue  # a format without quantisation
        for step in module.STEPS:
            found.setdefault(step, {})[name] = module
    return found


def known() -> dict[str, str]:
    """All steps with one line of help each, for the command line."""
    lines = {BASELINE: "the baseline: exported as it is"}
    lines |= {name: module.HELP for name, module in network_steps().items()}
    for name, makers in file_steps().items():
        lines[name] = next((module.STEPS[name] for fmt, module in makers.items() if fmt != "null"), "changes nothing")
    return lines


def catalogue() -> list[dict[str, Any]]:
    """All steps for the command line: name, help, what it ``changes`` (network or file), formats, parameters."""
    entries = []
    all_formats = sorted({fmt for makers in file_steps().values() for fmt in makers} - {"null"})
    for name, line in known().items():
        makers = {fmt: module for fmt, module in file_steps().get(name, {}).items() if fmt != "null"}
        module = network_steps().get(name)
        tables = [module] if module else [StepOf(maker, name) for maker in makers.values()]
        params: dict[str, dict[str, Any]] = {}
        for table in tables:
            for key, default in getattr(table, "DEFAULTS", {}).items():
                choices = list(getattr(table, "CHOICES", {}).get(key, ()))
                params.setdefault(key, {"name": key, "default": default, "choices": choices})
        changes = "network" if module else "file" if makers else ""
        formats = sorted(makers) or all_formats
        entry = {"name": name, "help": line, "changes": changes, "formats": formats, "params": list(params.values())}
        entries.append(entry)
    return entries


def parse(text: str) -> Recipe:
    """Read a recipe, or the TOML file that ``text`` is the path of, and check its names and their order.

    Raises:
        UsageError: an unknown step (near names are listed) or an order that can't be, with the reason.
    """
    recipe = _from_toml(Path(text)) if text.endswith(".toml") else _from_text(text)
    for part in recipe.parts:
        if part.name not in known():
            raise plugins.unknown("recipe step", part.name, sorted(known()))
    recipe = _completed(recipe)
    _check_order(recipe)
    return Recipe(tuple(part for part in recipe.parts if part.name != BASELINE))


def plan(recipe: Recipe, format_name: str) -> Plan:
    """Split a recipe for one format and fill in the parameters.

    Raises:
        UsageError: the format can't do a step, or a parameter is not known.
    """
    network, file = [], []
    for part in recipe.parts:
        if part.name in network_steps():
            module = network_steps()[part.name]
            network.append(_action(part, module, module))
            continue
        makers = file_steps()[part.name]
        if format_name not in makers:
            others = ", ".join(sorted(set(makers) - {"null"}))
            raise UsageError(f"{format_name} can't {part.name}", f"recipe {recipe}", f"formats that can: {others}")
        module = makers[format_name]
        file.append(_action(part, module, StepOf(module, part.name)))
    return Plan(recipe, tuple(network), tuple(file))


def plain(text: str) -> str:
    """The recipe as text: what the TOML file says where ``text`` is the path of one."""
    return str(parse(text)) if text.endswith(".toml") else text


def without_network(text: str) -> str | None:
    """The recipe less its steps on the network; None where it has none."""
    parsed = parse(text)
    left = tuple(part for part in parsed.parts if part.name not in network_steps())
    return str(Recipe(left)) if len(left) < len(parsed.parts) else None


def without_data(format_name: str) -> list[str]:
    """Recipes of a format that need no calibration data."""
    steps = [name for name, makers in file_steps().items() if format_name in makers]
    return [BASELINE, *(name for name in steps if name not in file_steps()[name][format_name].NEEDS_DATA)]


class StepOf:
    """The tables of one step of a format's plug-in, which keeps them by step."""

    def __init__(self, module: ModuleType, step: str) -> None:
        self.DEFAULTS = module.DEFAULTS[step]
        self.CHOICES = getattr(module, "CHOICES", {}).get(step, {})
        self.LIMITS = getattr(module, "LIMITS", {}).get(step, {})


def _completed(recipe: Recipe) -> Recipe:
    """Add the file step that a network step is made for (``qat`` without ``int8`` is a float file), if none follows."""
    names = [part.name for part in recipe.parts]
    for name in names:
        then = getattr(network_steps().get(name), "THEN", "")
        if then and not any(other in file_steps() for other in names):
            return Recipe((*recipe.parts, Part(then)))
    return recipe


def _from_text(text: str) -> Recipe:
    parts = []
    for piece in text.split("+"):
        name, colon, rest = piece.strip().partition(":")
        if not _NAME.match(name):
            raise UsageError(
                f"{piece.strip()[:40]!r} is not a step", f"recipe {text[:80]!r}", "write steps as in prune:0.5+int8"
            )
        values: list[Any] = []
        params: dict[str, Any] = {}
        for item in rest.split(",") if colon else ():
            key, equals, given = item.partition("=")
            word = given if equals else key
            if not _WORD.match(word) or (equals and not _NAME.match(key)) or key in params:
                raise UsageError(
                    f"{item[:40]!r} can't be read", f"step {piece[:60]!r}", "write name:value or name:key=value"
                )
            if equals:
                params[key] = _scalar(given)
            else:
                values.append(_scalar(key))
        parts.append(Part(name, tuple(values), params))
    return Recipe(tuple(parts))


def _from_toml(path: Path) -> Recipe:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError("no such recipe file", str(path), "check the path") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the recipe file can't be read: {error}", str(path), "correct it there") from None
    steps = table.get("step")
    if set(table) != {"step"} or not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise UsageError(
            "a recipe file holds [[step]] tables and nothing else", str(path), 'e.g. [[step]] name = "int8"'
        )
    parts = []
    for step in steps:
        name, params = step.get("name"), {key: value for key, value in step.items() if key != "name"}
        if not isinstance(name, str) or not _NAME.match(name):
            raise UsageError("a [[step]] has no name", str(path), 'add name = "..."')
        for key, value in params.items():
            if not _NAME.match(key) or not isinstance(value, int | float | str) or not _WORD.match(_text(value)):
                raise UsageError(f"the parameter {key[:40]} must be a number or a word", str(path), "correct it there")
        parts.append(Part(name, (), params))
    return Recipe(tuple(parts))


def _check_order(recipe: Recipe) -> None:
    """Refuse what can't be done in that order, and say why."""
    where = f"recipe {recipe}"
    names = [part.name for part in recipe.parts]
    if not names:
        raise UsageError("the recipe is empty", where, "use none for the baseline")
    if BASELINE in names and (len(names) > 1 or recipe.parts[0] != Part(BASELINE)):
        raise UsageError("none is the baseline and stands alone", where, "leave it out, or use it alone")
    quantised = ""
    for index, name in enumerate(names):
        if quantised and name in network_steps():
            what = f"{name} changes the network, but {quantised} has already turned it into a quantised file"
            raise UsageError(what, where, f"put {name} before {quantised}")
        if quantised and name in file_steps():
            what = (
                f"{name} can't follow {quantised}: both start from the float file, and {quantised} has rounded it off"
            )
            raise UsageError(what, where, f"keep one of them: {quantised} or {name}")
        if name in network_steps():
            _check_after(name, names[:index], where)
        quantised = name if name in file_steps() else quantised


def _check_after(name: str, before: list[str], where: str) -> None:
    """Hold a network step against the steps before it."""
    module = network_steps()[name]
    if getattr(module, "REPAIRS", False) and not before:
        raise UsageError(
            f"{name} repairs what a step before it lost", where, f"put it after one, e.g. prune:0.5+{name}"
        )
    for undone in sorted(set(getattr(module, "UNDOES", ())) & set(before)):
        raise UsageError(f"{name} would undo {undone}: {module.UNDOES[undone]}", where, f"put {name} before {undone}")


def _action(part: Part, module: ModuleType, tables: Any) -> Action:
    params, given = _params(part, tables)
    return Action(part.name, params, module, str(part), given)


def _params(part: Part, tables: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """The defaults with what the user gave in their place, each value of its default's type; and the names given."""
    defaults: dict[str, Any] = tables.DEFAULTS
    choices: dict[str, tuple[str, ...]] = getattr(tables, "CHOICES", {})
    given = _named(part, defaults, choices)
    for key, value in given.items():
        if key not in defaults:
            if defaults:
                raise plugins.unknown(f"parameter of {part.name}", key, sorted(defaults))
            raise UsageError(f"{part.name} takes no parameters", f"step {part}", f"write {part.name}")
        if key in choices and value not in choices[key]:
            raise plugins.unknown(f"{key} of {part.name}", str(value), choices[key])
        given[key] = _typed(part, key, value, defaults[key])
        _check_limits(part, key, given[key], defaults[key], getattr(tables, "LIMITS", {}).get(key))
    return {**defaults, **given}, frozenset(given)


def _named(part: Part, defaults: dict[str, Any], choices: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """Give each bare value its parameter: the one that has it among its choices, else the first."""
    given = dict(part.params)
    for value in part.values:
        if not defaults:
            raise UsageError(f"{part.name} takes no value", f"step {part}", f"write {part.name}")
        key = next((key for key, words in choices.items() if value in words), next(iter(defaults)))
        if key in given:
            raise UsageError(f"{key} is given twice", f"step {part}", "give it once")
        given[key] = value
    return given


def _typed(part: Part, key: str, value: Any, default: Any) -> Any:
    kind = type(default)
    if kind is float and isinstance(value, int):
        return float(value)
    if type(value) is not kind:
        what = f"{key} must be a {'word' if kind is str else 'number' if kind is float else 'whole number'}"
        raise UsageError(what, f"step {part}", f"e.g. {part.name}:{key}={_text(default)}")
    return value


def _check_limits(part: Part, key: str, value: Any, default: Any, limits: tuple[float, float] | None) -> None:
    """Hold a number against its limits; a count without any must be 1 or more, or 0 where that is its default."""
    fix = f"e.g. {part.name}:{key}={_text(default)}"
    if limits and not limits[0] <= value <= limits[1]:
        raise UsageError(f"{key} must lie between {limits[0]:g} and {limits[1]:g}", f"step {part}", fix)
    if not limits and isinstance(value, int) and value < min(1, default):
        raise UsageError(f"{key} must be {min(1, default)} or more", f"step {part}", fix)


def _scalar(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)
