"""The work of one trial: make the file and score it on the host, run and time it on the board, and the last word."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from edgepipe import bench, board, cache, codec, data, deploy, export, plugins, scores, targets, verify
from edgepipe.budget import PERCENTILES, Budget
from edgepipe.cache import NoRoomError
from edgepipe.errors import BusyError, EdgepipeError, HostKeyError, LinkError
from edgepipe.schema import Board, Plan
from edgepipe.search import trials
from edgepipe.search.space import Candidate
from edgepipe.search.trials import Final, Trial
from edgepipe.stats import minimum_samples

if TYPE_CHECKING:
    from edgepipe.board import BoardClient
    from edgepipe.data import Dataset
    from edgepipe.export import Made
    from edgepipe.model import Model
    from edgepipe.progress import Progress
    from edgepipe.targets import Target
    from edgepipe.verify import Ladder

# Long enough to tell candidates apart; the finalists are measured by the profile asked for.
SHORT = Plan("search", 1, min_seconds=2.0, min_samples=64, warmup_seconds=0.5, warmup_cap_seconds=10.0)
_ON_BOARD = 256  # samples that show whether the board computes what the host does; all of them count in the last word
_WAITS = (2.0, 10.0)  # seconds before a board that could not be reached is asked again

T = TypeVar("T")


@dataclass(frozen=True)
class _Ready:
    """A made file, with its ladder where there is data."""

    made: Made
    ladder: Ladder | None


def enough(plan: Plan, budget: Budget) -> Plan:
    """The plan, long enough to state every percentile that the budget names."""
    wanted = [minimum_samples(PERCENTILES[name]) for name in budget.names if name in PERCENTILES]
    return replace(plan, min_samples=max(plan.min_samples, *wanted) if wanted else plan.min_samples)


@dataclass
class Work:
    """What all trials of a search share. ``request`` says where and how; its recipe and formats are set here."""

    request: deploy.Request
    budget: Budget
    progress: Progress
    source: Model
    target: Target
    facts: Board
    _last: dict[Candidate, _Ready] = field(default_factory=dict)

    @staticmethod
    def open(request: deploy.Request, budget: Budget, source: Model, progress: Progress) -> Work:
        """Greet the board, and make sure it can run every format of the request.

        Raises:
            LinkError, BoardError: it can't.
        """
        target = targets.load(request.target, request.host or None)
        with board.connect(target, bench.owner(), progress) as client:
            facts = client.hello().board
        bench.check_runtimes(facts, list(request.formats), request.target)
        return Work(request, budget, progress, source, target, facts)

    @cached_property
    def dataset(self) -> Dataset | None:
        """What candidates are chosen by: the validation set, else the calibration set; never the evaluation set."""
        judge = verify.judge_of(self.source)
        return judge.dataset if judge else None

    @cached_property
    def metric(self) -> str:
        """What the accuracy of a trial is: the task's metric, or without labels the share of answers that stayed."""
        if self.dataset is not None and self.dataset.labels is None:
            return "agreement"
        return str(plugins.task(self.source.task).METRIC)

    @cached_property
    def short(self) -> Plan:
        """How a trial is timed."""
        return enough(SHORT, self.budget)

    @cached_property
    def full(self) -> Plan:
        """How a finalist is timed."""
        return enough(self.request.plan, self.budget)

    @cached_property
    def _options(self) -> Any:
        return deploy.options_for(self.request, self.target, self.facts)

    @cached_property
    def _circumstances(self) -> dict[str, Any]:
        """All that the figures of a trial depend on, besides its recipe and format."""
        runtimes = {runtime.name: runtime.version for runtime in self.facts.runtimes}
        seen = self.facts
        return {
            "model": self.source.identity,
            "target": [self.target.name, self.target.host],
            "board": [seen.hostname, seen.model, seen.cpu, seen.arch, seen.isa, seen.os, runtimes],
            "plan": codec.to_dict(self.short),
            "run": codec.to_dict(self.request.options),
            "export": codec.to_dict(self._options),
            "data": [self.dataset.sha256 if self.dataset else "", data.fingerprint(self.source, "training")],
            "versions": bench.versions(),
            "code": trials.sources(),
        }

    @cached_property
    def final_key(self) -> str:
        """The hash of how the last word is spoken."""
        dataset = data.evaluation(self.source, self.request.evaluation)
        plan = codec.to_dict(self.full)
        return cache.key("final", plan=plan, data=dataset.sha256 if dataset else "")

    def key(self, candidate: Candidate) -> str:
        """The id of a candidate's trial: equal circumstances have equal ids."""
        return trials.key_of(recipe=candidate.recipe, format=candidate.format, **self._circumstances)

    def on_host(self, candidate: Candidate) -> Trial:
        """Make the file and take the figures that need no board. What is wrong with the candidate is its error.

        Raises:
            NoRoomError: the disk is full, which is not the candidate's fault.
        """
        started = time.monotonic()
        trial = Trial(self.key(candidate), candidate.recipe, candidate.format, self.source.name, self.request.target)
        try:
            ready = self._ready(candidate)
            trial = self._scored(trial, ready)
            if ready.ladder:
                verify.judge(ready.ladder, None, f"{self.source.name} {candidate}, on the host")
        except NoRoomError:
            raise
        except EdgepipeError as error:
            trial = trials.failed(trial, error)
        return replace(trial, seconds=round(time.monotonic() - started, 3))

    def _ready(self, candidate: Candidate) -> _Ready:
        if candidate not in self._last:
            evaluate, judge = verify.scorer(self.source, self.dataset), verify.judge_of(self.source)
            made = export.make(
                self.source, candidate.recipe, candidate.format, self._options, self.progress, evaluate, judge=judge
            )
            ladder = verify.climb(self.source, made, self.dataset) if self.dataset else None
            self._last = {candidate: _Ready(made, ladder)}
        return self._last[candidate]

    def made(self, trial: Trial) -> Made:
        """The file of a trial, from the work cache or made again."""
        return self._ready(Candidate(trial.recipe, trial.format)).made

    def _scored(self, trial: Trial, ready: _Ready) -> Trial:
        figures = trials.of_step(ready.made.steps[-1])
        facts = self.source.facts
        reasons = {name: facts.reason or "not counted" for name in ("macs", "parameters") if figures[name] is None}
        accuracy, baseline = self._accuracy(ready)
        if accuracy is None or baseline is None:
            reasons |= dict.fromkeys(("accuracy", "drop"), "the model has no validation or calibration data")
        drop = (
            None
            if accuracy is None or baseline is None
            else scores.lost(baseline, accuracy, plugins.task(self.source.task))
        )
        figures |= {"accuracy": accuracy, "drop": drop}
        artifact = ready.made.artifact
        return replace(trial, figures=figures, reasons=reasons, steps=ready.made.steps, sha256=artifact.sha256)

    def _accuracy(self, ready: _Ready) -> tuple[float | None, float | None]:
        """The task's metric and that of the float model; without labels the share of answers that stayed, and 1."""
        if ready.ladder is None or self.dataset is None:
            return None, None
        if self.dataset.labels is None:
            task = plugins.task(self.source.task)
            whole = (
                verify.framework(self.source, self.dataset)
                if self.source.network is not None
                else verify.outputs_of(ready.made.stages[0], self.dataset)
            )
            return 1.0 - float(task.disagreement(whole, ready.ladder.outputs)), 1.0
        reached = ready.ladder.accuracy
        return reached.exported, reached.baseline if reached.baseline is not None else ready.made.steps[0].accuracy

    def on_board(self, trial: Trial) -> Trial:
        """Run and time the candidate on the board by the short profile; nothing is activated there.

        Raises:
            LinkError, BusyError, BoardError: the board can't be had at all.
        """
        started = time.monotonic()
        candidate = Candidate(trial.recipe, trial.format)
        ready = self._ready(candidate)

        def measure(client: BoardClient) -> Trial:
            files = bench.files_of(ready.made.artifact)
            few = self.dataset and self.dataset.first(_ON_BOARD)
            samples = bench.samples_blob(few) if few else None
            client.push([*files, *([samples] if samples else [])])
            try:
                return self._measured(trial, ready, client, few, samples[1] if samples else None)
            except LinkError:
                raise
            except EdgepipeError as error:
                return trials.failed(trial, error)

        found = self._patiently(measure)
        return replace(found, seconds=round(trial.seconds + time.monotonic() - started, 3))

    def _measured(
        self, trial: Trial, ready: _Ready, client: BoardClient, few: Dataset | None, inputs: str | None
    ) -> Trial:
        manifest = bench.manifest_of(ready.made.artifact)
        if few and inputs and ready.ladder:
            with self.progress.task(f"verify {trial.name} on the board, {len(few.inputs)} samples", "s") as task:
                answer = client.verify(manifest, inputs, self.request.options, task.update)
            count = len(few.inputs)
            shorter = replace(ready.ladder, outputs=[output[:count] for output in ready.ladder.outputs])
            ladder = verify.on_device(shorter, client.arrays(answer.outputs), few, self.source.task)
            verify.judge(ladder, None, f"{self.source.name} {trial.name} on {self.request.target}")
        result = bench.measure(client, manifest, self.short, self.request.options, inputs, self.progress)
        return trials.with_measurement(trial, result)

    def _patiently(self, act: Callable[[BoardClient], T]) -> T:
        """Act over a fresh connection; a link that breaks or a board in use is given some time and two more tries."""
        for wait in (*_WAITS, None):
            try:
                with board.connect(self.target, bench.owner(), self.progress) as client:
                    return act(client)
            except HostKeyError:
                raise
            except (LinkError, BusyError) as error:
                if wait is None:
                    raise
                self.progress.note(f"{error.what}; trying again in {wait:g} s")
                time.sleep(wait)
        raise AssertionError("unreachable")

    def final(self, trial: Trial) -> Trial:
        """Speak the last word on a candidate: evaluation set, profile asked for, a report in the journal.

        Raises:
            LinkError, BusyError: the board can't be had.
        """
        request = replace(self.request, recipe=trial.recipe, formats=(trial.format,), plan=self.full, activate=False)
        outcome = deploy.deploy(request, self.progress)
        if isinstance(outcome.error, (LinkError, BusyError, NoRoomError)):
            raise outcome.error
        if outcome.error:
            return replace(trial, final=Final(self.final_key, error=outcome.error.to_wire()))
        (report,) = outcome.reports
        return replace(trial, final=trials.of_report(report, trial, self.final_key))
