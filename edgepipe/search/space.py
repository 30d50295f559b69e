"""What a search can try: every recipe that the installed steps, the formats asked for and the model's data allow.

A recipe is drawn by one question after the other: which format, what changes the network, what is done to the file,
and with which parameters. The same questions serve a sampler that learns and a walk through everything there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgepipe import export, recipe
from edgepipe.errors import UsageError

if TYPE_CHECKING:
    from edgepipe.model import Model

Choose = Callable[[str, Sequence[Any]], Any]
"""Answers a question: its name and its choices, the default first, to one of the choices."""

NOTHING, NO, YES = "-", "no", "yes"
NETWORK = "network"  # the question whether it is changed
_SKIPPED = ("null",)
_USUAL = "int8"  # the step on the file that most would add to a changed network
# Not tried out: how long a step works and what it may lose (that is the user's to say), and what only ever loses
# against its default (a scale per tensor, no bias correction).
_FIXED = ("epochs", "samples", "drop", "weights", "bias")
# Parameters of a file step that change the numbers in the file and not the arithmetic a runtime does with them.
_NUMBERS_ONLY = ("method", "samples", "percentile", "bias")


@dataclass(frozen=True)
class Candidate:
    """One recipe in one format."""

    recipe: str
    format: str

    def __str__(self) -> str:
        return f"{self.recipe} {self.format}"


class Space:
    """Everything that can be tried for a model. ``drop`` is the loss allowed to steps that ask how much it may be."""

    def __init__(
        self, model: Model, formats: Sequence[str], *, drop: float | None = None, synthetic: bool = False
    ) -> None:
        self._model, self._formats, self._drop, self._synthetic = model, tuple(formats), drop, synthetic
        steps = {name: step for name, step in recipe.network_steps().items() if name not in _SKIPPED}
        self._changes = {name: step for name, step in steps.items() if not _repairs(step)}
        self._repairs = [name for name, step in steps.items() if _repairs(step)]
        # Training twice doubles the cost of a trial for little; what needs none may precede what does.
        self._cheap = [name for name, step in self._changes.items() if step.needs(step.DEFAULTS) != "training"]
        self._files = {name: _file_steps(name) for name in self._formats}

    def draw(self, choose: Choose) -> Candidate | None:
        """Ask the questions of one recipe; None where the answers don't go together, or the model lacks the data."""
        form = choose("format", self._formats)
        parts, completed = self._network(choose)
        if not completed:
            file = choose(f"{form} file", (NOTHING, *self._files[form]))
            if file != NOTHING:
                parts.append(self._part(f"{form} {file}", file, self._files[form][file], choose))
        return self._candidate("+".join(parts) or recipe.BASELINE, form)

    def _network(self, choose: Choose) -> tuple[list[str], bool]:
        """The steps on the network, and whether they bring their own step on the file.

        Each further step has its own yes or no, so that drawn by chance short recipes are as frequent as long ones.
        """
        if not self._changes or choose(NETWORK, (NO, YES)) == NO:
            return [], False
        change = choose("change", tuple(self._changes))
        names = [change]
        before = [name for name in self._cheap if name != change]
        if before and choose("prepare", (NO, YES)) == YES:
            names.insert(0, choose(f"before {change}", tuple(before)))
        steps = [self._part(name, name, self._changes[name], choose) for name in names]
        if getattr(self._changes[change], "THEN", ""):
            return steps, True
        if self._repairs and choose("repair", (NO, YES)) == YES:
            steps.append(choose("repair by", tuple(self._repairs)))
        return steps, False

    def _part(self, question: str, name: str, tables: Any, choose: Choose) -> str:
        """A step as a recipe writes it: a leading number, and what differs from the defaults."""
        words, leading = [], next(iter(tables.DEFAULTS), "")
        if self._drop is not None and "drop" in tables.DEFAULTS:
            words.append(f"drop={self._drop!r}")
        for key, values in knobs(tables).items():
            value = choose(f"{question} {key}", values)
            if key == leading and isinstance(value, float):
                words.insert(0, repr(value))
            elif value != values[0]:
                words.append(f"{key}={value}")
        return f"{name}:{','.join(words)}" if words else name

    def _candidate(self, text: str, form: str) -> Candidate | None:
        try:
            export.check(self._model, text, [form], export.ExportOptions(synthetic=self._synthetic))
            return Candidate(str(recipe.parse(text)), form)
        except UsageError:
            return None

    def first(self) -> list[dict[str, Any]]:
        """Answers worth beginning with: the plain export, each step on the file, then each on the network, as it is.

        Formats take turns, so that a short search sees all of them. What changes the network is then quantised, as one
        would do by hand, where the data allow.
        """
        longest = max(len(steps) for steps in self._files.values())
        wanted: list[dict[str, Any]] = [{"format": form} for form in self._formats]
        for at in range(longest):
            for form in self._formats:
                steps = list(self._files[form])
                wanted += [{"format": form, f"{form} file": steps[at]}] if at < len(steps) else []
        found = [answers for given in wanted if (answers := self._answers(given))]
        for change in self._changes:
            given = {NETWORK: YES, "change": change}
            answers = self._answers({**given, f"{self._formats[0]} file": _USUAL}) or self._answers(given)
            found += [answers] if answers else []
        return found

    def _answers(self, given: dict[str, Any]) -> dict[str, Any]:
        """All answers of the recipe in which what is not ``given`` stays at its default; empty where there is none."""
        found: dict[str, Any] = {}

        def choose(name: str, choices: Sequence[Any]) -> Any:
            wanted = given.get(name, choices[0])
            return found.setdefault(name, wanted if wanted in choices else choices[0])

        return found if self.draw(choose) else {}

    def every(self) -> Iterator[tuple[Candidate, dict[str, Any]]]:
        """Walk through all there is, defaults first: each candidate with the answers that lead to it."""
        path: list[int] = []
        while True:
            sizes: list[int] = []
            answers: dict[str, Any] = {}

            def choose(
                name: str, choices: Sequence[Any], sizes: list[int] = sizes, answers: dict[str, Any] = answers
            ) -> Any:
                at = len(sizes)
                if at == len(path):
                    path.append(0)
                sizes.append(len(choices))
                answers[name] = choices[path[at]]
                return answers[name]

            candidate = self.draw(choose)
            if candidate:
                yield candidate, answers
            del path[len(sizes) :]
            while path and path[-1] + 1 == sizes[len(path) - 1]:
                path.pop()
            if not path:
                return
            path[-1] += 1


def arithmetic(candidate: Candidate) -> str:
    """What a runtime computes with, as far as the recipe says it: of two files alike in this, only sizes differ.

    `mixed` is alike with nothing: which layers it leaves in float depends on everything.
    """
    plan = recipe.plan(recipe.parse(candidate.recipe), candidate.format)
    if not plan.file:
        return candidate.format
    action = plan.file[-1]
    if action.name == "mixed":
        return str(candidate)
    kept = {key: value for key, value in sorted(action.params.items()) if key not in _NUMBERS_ONLY}
    return f"{candidate.format} {action.name} {kept}"


def knobs(tables: Any) -> dict[str, tuple[Any, ...]]:
    """The parameters of a step that are worth trying, each with its values, the default first.

    These are the parameters that are words with a choice, and the first one where it is a number: from its default
    halfway to either limit, or half and twice a count.
    """
    found: dict[str, tuple[Any, ...]] = {}
    choices: dict[str, tuple[str, ...]] = getattr(tables, "CHOICES", {})
    limits: dict[str, tuple[float, float]] = getattr(tables, "LIMITS", {})
    for at, (name, default) in enumerate(tables.DEFAULTS.items()):
        if name in _FIXED:
            continue
        values: Sequence[Any] = choices.get(name, ())
        if at == 0 and not isinstance(default, str):
            values = _numbers(default, limits.get(name))
        if not values:
            continue
        found[name] = tuple(dict.fromkeys((default, *values)))
    return found


def _numbers(default: float, limits: tuple[float, float] | None) -> list[float]:
    if isinstance(default, int):
        around: list[float] = [max(default // 2, 1), default * 2] if default else []
        return [value for value in around if not limits or limits[0] <= value <= limits[1]]
    low, high = limits or (0.0, 1.0)
    if not low <= default <= high:
        return []
    return [float(f"{(default + end) / 2:.3g}") for end in (low, high)]


def _repairs(step: ModuleType) -> bool:
    return bool(getattr(step, "REPAIRS", False))


def _file_steps(form: str) -> dict[str, Any]:
    """The steps on a file that a format has, in the order its plug-in lists them, with their tables."""
    if form not in export.formats():
        return {}
    return {
        name: recipe.StepOf(makers[form], name)
        for name, makers in recipe.file_steps().items()
        if form in makers and name not in _SKIPPED
    }
