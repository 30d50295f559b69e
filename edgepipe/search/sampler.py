"""Which candidate to try next: optuna's tree-structured Parzen estimator over the answers of `space`.

The same seed and the same figures give the same candidates in the same order. So a search that was cut short is taken
up by asking again from the start: what is known already costs nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edgepipe.budget import Budget
from edgepipe.errors import UsageError
from edgepipe.search.space import Candidate, Space

if TYPE_CHECKING:
    from edgepipe.search.trials import Trial

SEED = 0
_TRIES = 20  # a sampler repeats itself in a small space (optuna#2021); then the next untried candidate is taken


class Sampler:
    """Proposes candidates, none of them twice, and learns from their figures.

    Raises:
        UsageError: optuna is not installed.
    """

    def __init__(self, space: Space, budget: Budget, *, trials: int) -> None:
        try:
            import optuna
        except ImportError:
            fix = "pip install 'edgepipe[search]'"
            raise UsageError("a search needs optuna, which is not installed", "--search", fix) from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        first = space.first()
        # At least half of a search is left to the sampler; one plain export for each format always comes first.
        first = first[: max(trials // 2, len({answers["format"] for answers in first}))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what optuna calls experimental
            sampler = optuna.samplers.TPESampler(seed=SEED, n_startup_trials=max(len(first), 5))
        self._failed = optuna.trial.TrialState.FAIL
        self._study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler)
        for answers in first:
            self._study.enqueue_trial(answers)
        self._space, self._budget = space, budget
        self._seen: set[Candidate] = set()
        self._rest: Iterator[tuple[Candidate, dict[str, Any]]] = space.every()
        self._open: Any = None
        self._slowest = 0.0

    def ask(self) -> Candidate | None:
        """The next candidate; None when all there is has been tried. `tell` must follow."""
        for _ in range(_TRIES):
            trial = self._study.ask()
            candidate = self._space.draw(trial.suggest_categorical)
            if candidate and candidate not in self._seen:
                return self._opened(trial, candidate)
            self._study.tell(trial, state=self._failed)
        for candidate, answers in self._rest:
            if candidate not in self._seen:
                self._study.enqueue_trial(answers)
                trial = self._study.ask()
                self._space.draw(trial.suggest_categorical)
                return self._opened(trial, candidate)
        return None

    def _opened(self, trial: Any, candidate: Candidate) -> Candidate:
        self._seen.add(candidate)
        self._open = trial
        return candidate

    def tell(self, trial: Trial) -> None:
        """Learn from a trial. One that the board never saw counts as the slowest so far, and as not feasible."""
        if trial.error:
            self._study.tell(self._open, state=self._failed)
            return
        latency = trial.figures.get(self._budget.percentile)
        if latency is not None:
            latency = math.log(max(latency, 1e-6))
            self._slowest = max(self._slowest, latency)
        broken = {excess.limit.name: excess for excess in self._budget.broken(trial.figures)}
        for name in self._budget.names:
            known = name in broken and broken[name].value is not None
            self._open.set_constraint(name, broken[name].share if known else -1.0)
        self._open.set_constraint("skipped", 1.0 if trial.skipped else -1.0)
        size = math.log(max(trial.figures.get("bytes") or 1.0, 1.0))
        loss = trial.figures.get("drop") or 0.0
        self._study.tell(self._open, [size, loss, self._slowest if latency is None else latency])
