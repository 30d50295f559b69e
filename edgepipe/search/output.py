"""What a search hands out: its document, the recipe as TOML, the recommended file, the page with the plots."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe import artifact, bench, codec, convert, recipe
from edgepipe.budget import MEASURES, Budget
from edgepipe.errors import UsageError
from edgepipe.report import front as report
from edgepipe.search import front

if TYPE_CHECKING:
    from edgepipe.search import Request
    from edgepipe.search.trials import Trial
    from edgepipe.search.work import Work

SCHEMA = "edgepipe.search/1"
RECIPE, PAGE = "recipe.toml", "search.html"
_COUNTS = ("bytes", "gzip", "parameters", "macs", "memory")


@dataclass(frozen=True)
class Verdict:
    """How a search ended: the recommended trial or, where none keeps the budget, the nearest; and why."""

    best: Trial | None = None
    nearest: Trial | None = None
    reason: str = ""


def check_folder(folder: Path) -> None:
    """Find out before hours of work whether the result can be written.

    Raises:
        UsageError: it can't.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"can't be made a folder: {error.strerror}", str(folder), "choose another -o DIR") from None


def line(trial: Trial, budget: Budget) -> str:
    """A trial on one line, for people."""
    if trial.error:
        return f"{trial.name}: failed: {trial.error.get('what', '')}"
    told = [
        MEASURES[name].show(value)
        for name in ("bytes", "drop", budget.percentile, "energy")
        if (value := trial.figures.get(name)) is not None
    ]
    words = f"{trial.name}: {', '.join(told)}".replace(" %", " % drop", 1)
    return f"{words}; not deployed: {trial.skipped}" if trial.skipped else words


def write(request: Request, work: Work, trials: list[Trial], verdict: Verdict) -> dict[str, Any]:
    """Write the recommended file with its recipe, and the page; return the document."""
    document = _document(request, work, trials, verdict)
    if verdict.best:
        document["recommended"] |= _place(request, work, verdict)
    report.write(document, request.folder / PAGE)
    return document


def _document(request: Request, work: Work, trials: list[Trial], verdict: Verdict) -> dict[str, Any]:
    number = {trial.id: at for at, trial in enumerate(trials, 1)}

    def point(trial: Trial | None, basis: str = "final") -> dict[str, Any] | None:
        if trial is None:
            return None
        seen = trial if basis == "final" else replace(trial, final=None)
        name = {"trial": number[trial.id], "recipe": trial.recipe, "format": trial.format, "status": trial.status}
        return {**name, **_numbers(seen.last), "reasons": seen.why, "keeps_budget": _keeps(seen, request.budget)}

    basis, best = _front(trials, request.budget, verdict)
    dataset, budget = work.dataset, request.budget
    return {
        "schema": SCHEMA,
        "model": codec.to_dict(work.source.facts),
        "target": {
            "name": request.how.target,
            "formats": list(request.how.formats),
            **{key: getattr(work.facts, key) for key in ("hostname", "model", "cpu", "arch", "os")},
        },
        "budget": {"text": str(budget), "limits": [codec.to_dict(limit) for limit in budget.limits]},
        "objectives": list(front.objectives(budget)),
        "chosen_on": {
            "dataset": dataset.name if dataset else None,
            "samples": len(dataset.inputs) if dataset else None,
            "metric": (work.metric if dataset else None),
            "reason": "" if dataset else "the model has no validation or calibration data",
        },
        "profiles": {"search": codec.to_dict(work.short), "final": codec.to_dict(work.full)},
        "trials": [_row(trial, at, request.budget) for at, trial in enumerate(trials, 1)],
        "front_basis": basis,
        "front": [point(trial, basis) for trial in best],
        "recommended": point(verdict.best),
        "nearest": point(verdict.nearest),
        "reason": verdict.reason,
        "versions": bench.versions(),
    }


def _front(trials: list[Trial], budget: Budget, verdict: Verdict) -> tuple[str, list[Trial]]:
    """The front by the best figures that are comparable: all final, else all of the search, else those of the host."""
    sound = [trial for trial in trials if not trial.error]
    finals = [trial for trial in sound if trial.status == "final"] if verdict.best else []
    timed = [trial for trial in sound if trial.measurement]
    basis = "final" if finals else "search" if timed else "host"
    pool = finals or timed or sound
    points = [trial.figures if basis != "final" else trial.last for trial in pool]
    names = front.known(points, front.objectives(budget))
    return basis, [pool[at] for at in front.front(points, names)]


def _row(trial: Trial, number: int, budget: Budget) -> dict[str, Any]:
    final = trial.final
    failed = trial.error or (final.error if final else {})
    reason = " (".join(filter(None, (failed.get("what"), failed.get("where")))) + (")" if failed.get("where") else "")
    return {
        "trial": number,
        "id": trial.id,
        "recipe": trial.recipe,
        "format": trial.format,
        "status": trial.status,
        "reason": reason or trial.skipped,
        "keeps_budget": _keeps(trial, budget),
        **_numbers(trial.figures),
        "reasons": trial.reasons,
        "measurement": codec.to_dict(trial.measurement) if trial.measurement else None,
        "steps": [codec.to_dict(step) for step in trial.steps],
        "final": {**_numbers(final.figures), "reasons": final.reasons, "report": final.report}
        if final and not final.error
        else None,
        "seconds": trial.seconds,
    }


def _keeps(trial: Trial, budget: Budget) -> bool:
    return not trial.error and not budget.broken(trial.judged)


def _numbers(figures: dict[str, float | None]) -> dict[str, float | int | None]:
    """Figures by name, all of them, counts as whole numbers."""
    found: dict[str, float | int | None] = {}
    for name in ("accuracy", *MEASURES):
        value = figures.get(name)
        found[name] = int(value) if value is not None and name in _COUNTS else value
    return found


def _place(request: Request, work: Work, verdict: Verdict) -> dict[str, Any]:
    """Put the recommended file and its recipe into the folder of the result."""
    best = verdict.best
    assert best is not None
    made = work.made(best)
    name = convert.folder_name(work.source, best.recipe, best.format)
    placed = artifact.copy(made.artifact, request.folder / name)
    path = request.folder / RECIPE
    partial = path.with_suffix(".part")
    partial.write_text(toml(best, f"{work.source.name} on {request.how.target}: {verdict.reason}"), encoding="utf-8")
    partial.replace(path)
    same = best.final is None or best.final.sha256 == placed.sha256
    note = "" if same else "the file had to be made again and is not byte for byte the one that was measured"
    return {"artifact": codec.to_dict(placed), "toml": str(path.absolute()), "note": note}


def toml(trial: Trial, why: str) -> str:
    """The recipe of a trial as the file that ``--recipe FILE.toml`` takes, with the format it is for in a comment."""
    plan = recipe.plan(recipe.parse(trial.recipe), trial.format)
    lines = [f"# {text}" for text in why.splitlines()] + [f"# for --to {trial.format}"]
    for action in (*plan.network, *plan.file):
        lines += ["", "[[step]]", f'name = "{action.name}"']
        lines += [f"{key} = {_value(action.params[key])}" for key in action.params if key in action.given]
    if trial.recipe == recipe.BASELINE:
        lines += ["", "[[step]]", f'name = "{recipe.BASELINE}"']
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
