"""Trials: what is known of each candidate, kept in the journal as soon as it is known."""

# ruff: noqa: UP045 - the codec reads Optional

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from edgepipe import cache, codec, plugins, scores
from edgepipe.budget import PERCENTILES
from edgepipe.errors import BoardError, DeadlineError, EdgepipeError
from edgepipe.record import Measurement, Step

if TYPE_CHECKING:
    from edgepipe.journal import Journal
    from edgepipe.record import Report

KIND = "trial"


@dataclass(frozen=True)
class Final:
    """The last word on a candidate: measured by the profile asked for, scored on the evaluation set.

    ``key`` is the hash of how it was measured; ``report`` the id of the whole record. ``worst`` are the upper bounds
    of the intervals, which are held against a budget.
    """

    key: str
    report: str = ""
    figures: dict[str, Optional[float]] = field(default_factory=dict)
    worst: dict[str, Optional[float]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    sha256: str = ""
    error: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One candidate. ``figures`` go by the names of a budget and ``accuracy``; ``reasons`` say why one is null.

    The accuracy is that of the file on the host, on the data the search chooses by; latencies are those of the short
    profile. ``skipped`` says why the board was spared, ``error`` (an `EdgepipeError` on the wire) why the candidate
    failed. ``seconds`` is the time the trial took, with the work cache as it was.
    """

    id: str
    recipe: str
    format: str
    model: str = ""
    target: str = ""
    figures: dict[str, Optional[float]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    sha256: str = ""
    measurement: Optional[Measurement] = None
    skipped: str = ""
    error: dict[str, str] = field(default_factory=dict)
    final: Optional[Final] = None
    seconds: float = 0.0

    @property
    def status(self) -> str:
        """What became of it: failed, final, measured, skipped (not worth the board) or made."""
        if self.error:
            return "failed"
        if self.final and not self.final.error:
            return "final"
        return "measured" if self.measurement else "skipped" if self.skipped else "made"

    @property
    def name(self) -> str:
        """Recipe and format."""
        return f"{self.recipe} {self.format}"

    @property
    def last(self) -> dict[str, Optional[float]]:
        """The figures known best: the final ones, else those of the search."""
        return self.final.figures if self.final and not self.final.error else self.figures

    @property
    def judged(self) -> dict[str, Optional[float]]:
        """The figures a budget is held against: of final ones the upper bounds."""
        return {**self.last, **self.final.worst} if self.final and not self.final.error else self.figures

    @property
    def why(self) -> dict[str, str]:
        """Why figures of `last` are null."""
        return self.final.reasons if self.final and not self.final.error else self.reasons


def sources() -> str:
    """A hash of all code that makes files and takes their figures: changed code never meets old trials."""
    package = Path(cache.__file__).parent
    kept = ("compress", "formats", "tasks", "agent")
    return cache.code(*package.glob("*.py"), *(file for name in kept for file in (package / name).rglob("*.py")))


def key_of(**parts: Any) -> str:
    """The id of the trial of a candidate under these circumstances."""
    return f"trial-{cache.key(KIND, **parts)[:32]}"


def keep(journal: Journal, trial: Trial) -> Trial:
    """Write a trial down; it is on the disk when this returns."""
    journal.append(KIND, codec.to_dict(trial), trial.id)
    return trial


def known(journal: Journal, name: str) -> Trial | None:
    """The trial with this id as it was kept last; None where there is none, or another version wrote it."""
    record = journal.get(name)
    if record is None or record.kind != KIND:
        return None
    try:
        return codec.from_dict(Trial, record.value)
    except EdgepipeError:
        return None


def with_measurement(trial: Trial, result: Measurement) -> Trial:
    """The trial with what a board measured; a run that failed makes it a failed one."""
    if result.status in {"failed", "timeout"}:
        kind = DeadlineError if result.status == "timeout" else BoardError
        return failed(trial, kind(f"could not be measured: {result.reason}", f"{trial.name} on {trial.target}"))
    figures, _, reasons = of_measurement(result)
    return replace(
        trial,
        figures={**trial.figures, **figures},
        reasons={**trial.reasons, **reasons},
        measurement=result,
        skipped="",
    )


Found = tuple[dict[str, Optional[float]], dict[str, Optional[float]], dict[str, str]]
"""Figures, the upper bounds of those that have one, and the reasons for those that are null."""


def of_measurement(result: Measurement | None) -> Found:
    """The figures of a run, in ms, mJ and bytes."""
    figures: dict[str, Optional[float]] = {}
    worst: dict[str, Optional[float]] = {}
    reasons: dict[str, str] = {}
    why = (result.reason or result.status) if result else "not measured"
    for name in PERCENTILES:
        bound = getattr(result.latency_ms, name) if result and result.latency_ms else None
        figures[name] = bound.value if bound else None
        if bound and bound.high is not None:
            worst[name] = bound.high
        if figures[name] is None:
            reasons[name] = (bound.reason if bound else "") or why
    figures["energy"] = result.energy_mj.gross if result else None
    if result and result.energy_mj.high is not None:
        worst["energy"] = result.energy_mj.high
    figures["memory"] = result.memory_peak_bytes if result else None
    if figures["energy"] is None:
        reasons["energy"] = (result.energy_mj.reason if result else "") or why
    if figures["memory"] is None:
        reasons["memory"] = "the board does not say" if result else why
    return figures, worst, reasons


def of_step(step: Step) -> dict[str, Optional[float]]:
    """What the last step of a recipe says of the file and its network."""
    return {"bytes": step.bytes, "gzip": step.bytes_gzip, "parameters": step.parameters, "macs": step.macs}


def of_report(report: Report, trial: Trial, key: str) -> Final:
    """The final figures in a report. Where the model has no evaluation data, the accuracy is the search's own."""
    figures, worst, reasons = of_measurement(report.measurement)
    figures |= of_step(report.steps[-1])
    accuracy = report.accuracy
    reached = None if accuracy is None else accuracy.on_device if accuracy.on_device is not None else accuracy.exported
    baseline = accuracy.baseline if accuracy and accuracy.baseline is not None else report.steps[0].accuracy
    if reached is not None and baseline is not None:
        figures |= {"accuracy": reached, "drop": scores.lost(baseline, reached, plugins.task(report.model.task))}
    else:
        figures |= {name: trial.figures.get(name) for name in ("accuracy", "drop")}
        reasons["accuracy"] = "no labelled evaluation data: as on the data the search chose by"
    for name in ("macs", "parameters"):
        if figures[name] is None:
            reasons[name] = report.model.reason or "not counted"
    return Final(key, report.id, figures, worst, reasons, report.artifact.sha256)


def failed(trial: Trial, error: EdgepipeError) -> Trial:
    """The trial, with what went wrong."""
    return replace(trial, error=error.to_wire(), skipped="")


def skipped(trial: Trial, why: str) -> Trial:
    """The trial, with the reason why the board is spared it."""
    return replace(trial, skipped=why)
