"""Find a good recipe with the board in the loop: propose, make and score on the host, time the promising on the board.

Each candidate goes through a sieve. The host makes the file and takes what is cheap to know: bytes, multiply-
accumulates, the metric on the validation set. One that breaks the budget there, or is nowhere better than a measured
one of the same arithmetic, never sees the board. The rest is run and timed there, shortly. Of those that keep the
budget the best are measured by the profile asked for and scored on the evaluation set; one of them is recommended.
Everything is in the journal the moment it is known.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe import export, given
from edgepipe.budget import HOST, Budget
from edgepipe.errors import EdgepipeError, GateError, UsageError, from_wire
from edgepipe.journal import Journal
from edgepipe.recipe import BASELINE
from edgepipe.search import front, output, trials
from edgepipe.search.output import Verdict
from edgepipe.search.sampler import Sampler
from edgepipe.search.space import Candidate, Space, arithmetic
from edgepipe.search.work import Work

if TYPE_CHECKING:
    from edgepipe.deploy import Request as Deploy
    from edgepipe.progress import Progress
    from edgepipe.search.trials import Trial

FINALISTS = 5


@dataclass(frozen=True)
class Request:
    """What to search and where. ``how`` says model, target, formats, the profile of the last word, threads, batch.

    ``trials`` is how many candidates are looked at in all, those known from before included, those refused at no cost
    not; ``minutes`` after which no new one is begun, None for no such limit. ``folder`` is where the result goes.
    """

    how: Deploy
    budget: Budget
    folder: Path
    trials: int = 30
    minutes: float | None = None


@dataclass(frozen=True)
class Outcome:
    """The document ``edgepipe.search/1``, the error that ended the search, if one did, and whether Ctrl-C did."""

    document: dict[str, Any]
    error: EdgepipeError | None = None
    interrupted: bool = False


def run(request: Request, progress: Progress) -> Outcome:
    """Search. Errors before the first trial are raised; later ones come with what is known.

    Raises:
        UsageError: the model, a format, the target or the budget can't be had together.
        LinkError, BoardError: the board can't be reached, or lacks a runtime.
    """
    how = request.how
    source = given.load(how.model, how.said)
    export.check(source, BASELINE, how.formats)
    output.check_folder(request.folder)
    work = Work.open(how, request.budget, source, progress)
    if "drop" in request.budget.names and work.dataset is None:
        fix = "name data in model.toml, [data] validation, or leave the drop out of the budget"
        raise UsageError(
            f"the drop can't be seen: {source.name} has no validation or calibration data", "--budget", fix
        )
    drop = next((limit.most for limit in request.budget.limits if limit.name == "drop"), None)
    space = Space(source, how.formats, drop=drop, synthetic=how.synthetic)
    search = _Search(request, work, Sampler(space, request.budget), progress)
    error: EdgepipeError | None = None
    interrupted = False
    try:
        search.explore()
        search.finish()
    except KeyboardInterrupt:
        interrupted = True
    except EdgepipeError as ended:
        if not search.trials:
            raise
        error = ended
    if interrupted or error:
        why = error.what if error else "interrupted"
        search.verdict = Verdict(reason=f"{why}; all trials are kept, and the same command goes on from here")
    elif search.verdict.best is None:
        error = search.failure()
        search.verdict = replace(search.verdict, reason=error.what)
    return Outcome(output.write(request, work, search.trials, search.verdict), error, interrupted)


@dataclass
class _Search:
    """One run of a search: ``trials`` in the order they were proposed, and the verdict at its end."""

    request: Request
    work: Work
    sampler: Sampler
    progress: Progress
    trials: list[Trial] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    journal: Journal = field(default_factory=Journal)
    hopeless: EdgepipeError | None = None

    def explore(self) -> None:
        """Look at candidates until there are enough, time is up, or there are no more."""
        budget, count = self.request.budget, self.request.trials
        until = None if self.request.minutes is None else time.monotonic() + 60 * self.request.minutes
        title = f"search {self.work.source.name} on {self.request.how.target}"
        with self.progress.task(title, "trials") as task:
            while self._counted() < count and (until is None or time.monotonic() < until):
                task.update(self._counted(), count)
                candidate = self.sampler.ask()
                if candidate is None:
                    self.progress.note("every recipe there is has been tried")
                    break
                trial = self._try(candidate)
                self.trials.append(trial)
                self.sampler.tell(trial)
                self.progress.note(f"{self._counted()}/{count}  {output.line(trial, budget)}")
                if self._is_hopeless(trial):
                    break
            task.update(self._counted(), count)

    def _counted(self) -> int:
        """How many candidates were looked at; of those a step refused, only what is beyond twice as many."""
        refused = sum(trial.error.get("kind") == UsageError.__name__ for trial in self.trials)
        return len(self.trials) - min(refused, 2 * self.request.trials)

    def _try(self, candidate: Candidate) -> Trial:
        """Take a candidate as far as it deserves, and no step that is known already."""
        trial = trials.known(self.journal, self.work.key(candidate))
        if trial is None:
            trial = trials.keep(self.journal, self.work.on_host(candidate))
        if trial.final and trial.final.key != self.work.final_key:
            trial = replace(trial, final=None)  # that word was spoken under other circumstances
        if trial.error or trial.measurement:
            return trial
        skipped = self._skip(candidate, trial)
        if skipped:
            return trials.keep(self.journal, trials.skipped(trial, skipped))
        return trials.keep(self.journal, self.work.on_board(trial))

    def _skip(self, candidate: Candidate, trial: Trial) -> str:
        """Why the board is spared this candidate; empty where it is not."""
        broken = self.request.budget.broken(trial.figures, HOST, trial.reasons)
        if broken:
            return front.told(broken)
        timed = [other for other in self.trials if other.measurement and not other.error]
        same = next((other for other in timed if other.sha256 == trial.sha256), None)
        if same:
            return f"the same file as {same.name}"
        alike = arithmetic(candidate)
        rivals = {
            other.name: other.figures for other in timed if arithmetic(Candidate(other.recipe, other.format)) == alike
        }
        rival = front.beaten(trial.figures, rivals)
        return f"nowhere better than {rival}, which computes alike" if rival else ""

    def _is_hopeless(self, trial: Trial) -> bool:
        """Whether going on can't help: no plain export works, or the board does not measure what the budget limits."""
        plain = [other for other in self.trials if other.recipe == BASELINE and other.error]
        unknown = [excess for excess in self._broken(trial) if excess.value is None] if trial.measurement else []
        if len(plain) == len(self.request.how.formats):
            self.hopeless = from_wire(plain[0].error)
        elif unknown:
            fix = "leave that limit out, or choose a target that measures it"
            what = f"the budget can't be judged: {front.told(unknown)}"
            self.hopeless = GateError(what, f"{trial.name} on {trial.target}", fix)
        return self.hopeless is not None

    def _broken(self, trial: Trial) -> list[Any]:
        return self.request.budget.broken(trial.judged, reasons=trial.why)

    def finish(self) -> None:
        """Speak the last word on the best candidates, and choose one of those that keep the budget."""
        sound = [trial for trial in self.trials if not trial.error]
        fit = [trial for trial in sound if trial.measurement and not self.request.budget.broken(trial.figures)]
        best, others = self._ranked(fit)
        finals: list[Trial] = []
        for at, trial in enumerate([*best, *others]):
            if (at >= min(FINALISTS, len(best)) and self._fit(finals)) or at >= 2 * FINALISTS:
                break
            finals.append(self._final(trial))
        kept = self._fit(finals)
        if kept:
            steps = [len(trial.steps) for trial in kept]
            at, why = front.choose([trial.last for trial in kept], self.request.budget, steps)
            self.verdict = Verdict(kept[at], reason=self._praise(kept, kept[at], why))
        elif sound and not self.hopeless:
            spoken = [trial for trial in finals if trial.status == "final"]
            self.verdict = Verdict(nearest=self._nearest(spoken or finals or sound))

    def _fit(self, finals: Sequence[Trial]) -> list[Trial]:
        return [trial for trial in finals if trial.status == "final" and not self._broken(trial)]

    def _ranked(self, fit: list[Trial]) -> tuple[list[Trial], list[Trial]]:
        """The front and the others, each by how much they would be recommended."""
        figures = [trial.figures for trial in fit]
        best = set(front.front(figures, front.known(figures, front.objectives(self.request.budget))))
        groups = (
            [trial for at, trial in enumerate(fit) if at in best],
            [trial for at, trial in enumerate(fit) if at not in best],
        )
        return self._ordered(groups[0]), self._ordered(groups[1])

    def _ordered(self, group: list[Trial]) -> list[Trial]:
        found: list[Trial] = []
        while group:
            at, _ = front.choose([trial.figures for trial in group], self.request.budget)
            found.append(group.pop(at))
        return found

    def _nearest(self, pool: list[Trial]) -> Trial:
        """The candidate that breaks the budget least, with the last word on it."""
        nearest = pool[front.nearest([trial.judged for trial in pool], self.request.budget)]
        return nearest if nearest.final else self._final(nearest)

    def _final(self, trial: Trial) -> Trial:
        """The trial with the last word on it, from the journal where it has been spoken."""
        if trial.final is None or trial.final.error:
            spoken = self.work.final(trial)
            self.trials[self.trials.index(trial)] = trial = trials.keep(self.journal, spoken)
        return trial

    def _praise(self, kept: list[Trial], best: Trial, why: str) -> str:
        limits = f"keeps {self.request.budget}" if self.request.budget.limits else "no limits were set"
        others = f"of the {len(kept)} finalists that do, {why}" if len(kept) > 1 else "the only finalist that does"
        others = others if self.request.budget.limits else f"of {len(kept)} finalists {why}"
        return f"{best.name}: {limits}; {others}"

    def failure(self) -> EdgepipeError:
        """The error of a search that found nothing to recommend."""
        sound, nearest = [trial for trial in self.trials if not trial.error], self.verdict.nearest
        if self.hopeless or nearest is None:
            return self.hopeless or from_wire(self.trials[0].error)
        broken = self._broken(nearest)
        if not broken and nearest.final:  # all was well until the last word
            return from_wire(nearest.final.error)
        names = front.blame([trial.judged for trial in sound], self.request.budget)
        limits = ", ".join(str(limit) for limit in self.request.budget.limits if limit.name in names)
        what = f"no candidate keeps {limits}{' together' if len(names) > 1 else ''}"
        return GateError(
            f"{what}; the nearest is {nearest.name}: {front.told(broken)}",
            f"{self.work.source.name} on {self.request.how.target}, {len(self.trials)} trials",
            f"loosen {' or '.join(names)}, or allow more --trials or formats (--to)",
        )
