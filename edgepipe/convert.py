"""The host's half of the chain: load, compress, export, verify. `deploy` goes on from here; `export` ends here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe import artifact, codec, data, export, given, made_up, model, preflight, stages, targets, verify
from edgepipe import recipe as recipes
from edgepipe.artifact import ExportOptions
from edgepipe.errors import BoardError, EdgepipeError, UsageError
from edgepipe.given import Said
from edgepipe.made_up import Shown
from edgepipe.record import Payoff, Rung
from edgepipe.schema import Artifact, Board

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgepipe.data import Dataset
    from edgepipe.export import Made
    from edgepipe.model import Model
    from edgepipe.progress import Progress
    from edgepipe.verify import Ladder


@dataclass(frozen=True)
class Request:
    """What to export, and where to; ``weigh`` makes each changed network's plain twin too, to hold it against."""

    model: str
    formats: tuple[str, ...]
    folder: Path
    recipe: str = "none"
    max_drop: float | None = None
    opset: int | None = None
    dynamic: dict[str, list[int]] = field(default_factory=dict)
    batch: int | None = None
    layout: str = ""
    fold: bool = False
    evaluation: str = "auto"
    target: str = ""
    said: Said = field(default_factory=Said)
    synthetic: bool = False
    weigh: bool = False


@dataclass(frozen=True)
class Export:
    """One exported and verified file.

    ``ladder`` is None where the model has no data: then ``shown`` is what made-up inputs showed. ``plain`` is the same
    recipe without its network steps, where it has any and they are to be weighed; ``payoff`` is what these bought.
    """

    model: Model
    made: Made
    ladder: Ladder | None
    artifact: Artifact
    plain: Made | None = None
    payoff: Payoff | None = None
    cautions: list[str] = field(default_factory=list)
    shown: Shown = field(default_factory=Shown)

    @property
    def parity(self) -> list[Rung]:
        """The rungs climbed, on data or on made-up inputs."""
        return self.ladder.parity if self.ladder else self.shown.parity

    def row(self) -> dict[str, Any]:
        """The artifact as `export --json` lists it: with its accuracy and parity."""
        ladder = self.ladder
        return {
            **codec.to_dict(self.artifact),
            "accuracy": codec.to_dict(ladder.accuracy) if ladder else None,
            "parity": [codec.to_dict(rung) for rung in self.parity],
            "reason": "" if ladder else f"the model has no evaluation data; parity: {self.shown.source}",
            "cautions": self.cautions,
            "pruning": codec.to_dict(self.payoff) if self.payoff else None,
        }


@dataclass(frozen=True)
class Result:
    """Everything one `export` made."""

    model: Model
    recipe: str
    exports: list[Export]

    def document(self) -> dict[str, Any]:
        """The document of `export --json`."""
        steps = [{"format": x.artifact.format, **codec.to_dict(step)} for x in self.exports for step in x.made.steps]
        return {
            "schema": "edgepipe.export/1",
            "model": codec.to_dict(self.model.facts),
            "recipe": self.recipe,
            "calibration": self.model.given.facts if self.model.given else None,
            "steps": steps,
            "artifacts": [item.row() for item in self.exports],
        }


def convert(request: Request, progress: Progress) -> Result:
    """Export a model to every format asked for, verify each, and write them below ``request.folder``.

    Raises:
        UsageError: the model, recipe or a format is not known, or can't be had together.
        IntegrityError: a rung of the parity ladder broke.
        GateError: the loss is larger than ``max_drop``; nothing is written.
    """
    request = replace(request, recipe=recipes.plain(request.recipe))
    source = given.load(request.model, request.said)
    wanted = ExportOptions(
        batch=given.batch(request.said, request.batch, source),
        dynamic=request.dynamic,
        opset=request.opset,
        layout=request.layout or None,
        fold=request.fold,
        synthetic=request.synthetic,
    )
    target = targets.load(request.target) if request.target else None
    board = preflight.expected(target, request.formats) if target else None
    wanted = preflight.within(wanted, target) if target else wanted
    export.check(source, request.recipe, request.formats, wanted)
    dataset = data.evaluation(source, request.evaluation)
    plain(source, request.formats, wanted, board, progress)
    done = []
    for format_name in request.formats:
        item = prepare(source, request.recipe, format_name, wanted, dataset, progress, request.max_drop, request.weigh)
        if board:
            cautions = preflight.check(item.artifact, board, f"{source.name} {request.recipe} for {request.target}")
            item = replace(item, cautions=[*item.cautions, *cautions])
            for caution in cautions:
                progress.note(caution)
        if item.ladder:
            verify.judge(item.ladder, request.max_drop, f"{source.name} {request.recipe} {format_name}")
        done.append(item)
    places = [request.folder / folder_name(source, request.recipe, item.artifact.format) for item in done]
    placed = [
        replace(item, artifact=artifact.copy(item.artifact, place)) for item, place in zip(done, places, strict=True)
    ]
    return Result(source, request.recipe, placed)


def foresee(model: Model, format_names: Iterable[str], options: ExportOptions, board: Board | None) -> None:
    """Say what is known, from a file of the user's own alone, to be in the way of any of the formats.

    Raises:
        UsageError: as `preflight.before`.
    """
    preflight.before(model, {name: stages.chain(model, name)[0] for name in format_names}, options, board)


def plain(
    model: Model, format_names: Iterable[str], options: ExportOptions, board: Board | None, progress: Progress
) -> None:
    """Make the file every recipe begins with in each format, so that all that can't be is said before the rest.

    A file of the user's own is looked at first: what is known to be in the way is said before anything is made.

    Raises:
        UsageError, BoardError: some formats can't be made, or not run on ``board``; each with its reason and nodes.
    """
    foresee(model, format_names, options, board)
    refused: dict[str, EdgepipeError] = {}
    for name in format_names:
        try:
            made = export.make(model, "none", name, replace(options, layout=None, fold=False), progress)
            if board:
                preflight.check(made.artifact, board, model.name)
        except (UsageError, BoardError) as error:
            refused[name] = error
    if len(refused) == 1:
        raise next(iter(refused.values()))
    if refused:
        first = next(iter(refused.values()))
        what = "; ".join(f"{name}: {error.what}" for name, error in refused.items())
        raise type(first)(what, model.name, first.fix)


def prepare(
    source: Model,
    recipe: str,
    format_name: str,
    wanted: ExportOptions,
    dataset: Dataset | None,
    progress: Progress,
    max_drop: float | None = None,
    weigh: bool = False,
) -> Export:
    """Make one format of a model by a recipe, with the accuracy after each step, and climb the host's ladder.

    Raises:
        GateError: a step lost more than ``max_drop``.
        IntegrityError: a rung of the parity ladder broke.
    """
    evaluate, judge = verify.scorer(source, dataset), verify.judge_of(source)
    made = export.make(source, recipe, format_name, wanted, progress, evaluate, max_drop=max_drop, judge=judge)
    rest = recipes.without_network(recipe) if weigh else None
    plain = export.make(source, rest, format_name, wanted, progress, max_drop=max_drop, judge=judge) if rest else None
    if dataset is None and source.data is not None:
        return Export(source, made, None, made.artifact, plain)  # whoever asked has no use for a verdict
    if dataset is None:
        with progress.task(f"verify {source.name} {recipe} {format_name} on made-up inputs", "s"):
            shown = made_up.climb(source, made)
        for caution in shown.cautions:
            progress.note(f"caution: {caution}")
        return Export(source, made, None, made.artifact, plain, cautions=shown.cautions, shown=shown)
    with progress.task(f"verify {source.name} {recipe} {format_name} on the host", "s"):
        return Export(source, made, verify.climb(source, made, dataset), made.artifact, plain)


def verify_file(file: str, against: str, max_drop: float | None, evaluation: str, progress: Progress) -> Export:
    """Hold an exported file against the model it was made from.

    Raises:
        UsageError: the model has no data to verify on, or the file's manifest is missing.
        IntegrityError: they are not the same model.
        GateError: the loss is larger than ``max_drop``.
    """
    source = model.load(against)
    dataset = data.evaluation(source, evaluation)
    found = artifact_of(file, source)
    if dataset is None:
        raise UsageError(f"{source.name} has no evaluation data", against, "add [data] to its model.toml")
    made = export.Made.of_file(found, source)
    with progress.task(f"verify {Path(file).name} against {source.name}", "s"):
        ladder = verify.climb(source, made, dataset)
    verify.judge(ladder, max_drop, file)
    return Export(source, made, ladder, found)


def artifact_of(file: str, source: Model | None = None) -> Artifact:
    """The artifact a file is: by the manifest beside it, else by what the file itself says, fed as ``source`` is."""
    path = Path(file)
    if (path if path.is_dir() else path.parent).joinpath(artifact.MANIFEST).is_file():
        found = artifact.load(path if path.is_dir() else path.parent)
        if path.is_dir() or Path(found.path).name == path.name:
            artifact.check(found)
            return found
    return replace(export.artifact_of_file(path, source), recipe=verify.UNKNOWN)


def folder_name(source: Model, recipe: str, format_name: str) -> str:
    """What the folder of an exported file is called."""
    return f"{source.name}-{recipe}-{format_name}".replace(":", "_").replace("+", "_")
