"""Which candidate to try next: optuna's tree-structured Parzen estimator over the answers of `space`.

The same seed and the same figures give the same candidates in the same order. So a search that was cut short is taken
up by asking again from the start: what is known already costs nothing.
"""

from __future__ import annotations

import itertools
import math
import random
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgepipe.budget import Budget
from edgepipe.errors import UsageError
from edgepipe.search.space import NETWORK, NO, Candidate, Space

if TYPE_CHECKING:
    from edgepipe.search.trials import Trial

SEED = 0
_TRIES = 20  # a sampler that learns repeats itself (optuna#2021); then chance is tried, then all there is in order


class Sampler:
    """Proposes candidates, none of them twice, and learns from their figures.

    Raises:
        UsageError: optuna is not installed.
    """

    def __init__(self, space: Space, budget: Budget) -> None:
        try:
            import optuna
        except ImportError:
            fix = "pip install 'edgepipe[search]'"
            raise UsageError("a search needs optuna, which is not installed", "--search", fix) from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what optuna calls experimental
            sampler = optuna.samplers.TPESampler(seed=SEED)
        self._failed = optuna.trial.TrialState.FAIL
        self._study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler)
        self._space, self._budget = space, budget
        self._seen: set[Candidate] = set()
        self._first = space.first()
        self._quick = sum(answers.get(NETWORK, NO) == NO for answers in self._first)
        self._rest: Iterator[tuple[Candidate, dict[str, Any]]] = space.every()
        self._chance = random.Random(SEED)  # noqa: S311  nothing to keep secret
        self._open: Any = None
        self._worst = [0.0, 0.0, 0.0]

    def ask(self) -> Candidate | None:
        """The next candidate; None when all there is has been tried. `tell` must follow.

        What trains nothing comes first: the plain exports and the steps on the file, as they are. Then each step on the
        network takes its turn with what the sampler proposes.
        """
        mine = len(self._seen) < self._quick or (len(self._seen) - self._quick) % 2 == 0
        if mine and self._first:
            self._study.enqueue_trial(self._first.pop(0))
        for _ in range(_TRIES):
            trial = self._study.ask()
            candidate = self._space.draw(trial.suggest_categorical)
            if candidate and candidate not in self._seen:
                return self._opened(trial, candidate)
            self._study.tell(trial, state=self._failed)
        for candidate, answers in itertools.chain(self._drawn(), self._rest):
            if candidate not in self._seen:
                self._study.enqueue_trial(answers)
                trial = self._study.ask()
                self._space.draw(trial.suggest_categorical)
                return self._opened(trial, candidate)
        return None

    def _drawn(self) -> Iterator[tuple[Candidate, dict[str, Any]]]:
        """Some candidates by chance alone."""
        for _ in range(_TRIES):
            answers: dict[str, Any] = {}

            def choose(name: str, choices: Sequence[Any], answers: dict[str, Any] = answers) -> Any:
                return answers.setdefault(name, self._chance.choice(choices))

            candidate = self._space.draw(choose)
            if candidate:
                yield candidate, answers

    def _opened(self, trial: Any, candidate: Candidate) -> Candidate:
        self._seen.add(candidate)
        self._open = trial
        return candidate

    def tell(self, trial: Trial) -> None:
        """Learn from a trial. A figure that is not known counts as the worst so far.

        One that failed, or was not worth the board, is not feasible: the sampler keeps away from what is like it.
        """
        figures, latency = trial.figures, trial.figures.get(self._budget.percentile)
        size = figures.get("bytes")
        values = [
            None if size is None else math.log(max(size, 1.0)),
            figures.get("drop"),
            None if latency is None else math.log(max(latency, 1e-6)),
        ]
        pairs = zip(self._worst, values, strict=True)
        told = [worst if value is None else value for worst, value in pairs]
        self._worst = [max(worst, value) for worst, value in zip(self._worst, told, strict=True)]
        broken = {excess.limit.name: excess for excess in self._budget.broken(figures)}
        for name in self._budget.names:
            known = name in broken and broken[name].value is not None
            self._open.set_constraint(name, broken[name].share if known else -1.0)
        self._open.set_constraint("run", 1.0 if trial.error or trial.skipped else -1.0)
        self._study.tell(self._open, told)
