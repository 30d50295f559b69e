"""`verify --matrix`: how far runtimes, precisions and boards disagree on one model. A cell that fails stays."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from edgepipe import (
    bench,
    board,
    codec,
    data,
    export,
    layers,
    layerwise,
    model,
    plugins,
    runner,
    samples,
    targets,
    verify,
)
from edgepipe.errors import EdgepipeError, IntegrityError
from edgepipe.schema import Artifact, Preprocessing
from edgepipe.verify import Tolerance

if TYPE_CHECKING:
    from edgepipe.model import Model
    from edgepipe.progress import Progress
    from edgepipe.samples import Samples

Answer = list[Any]  # numpy arrays, one for each output, samples first
Run = Callable[[Artifact, "dict[str, Any]"], Answer]

ANY = Tolerance(cosine=-1.0, disagreement=1.0)  # a matrix shows, it does not judge
HOST = "this host"
SAMPLES = 64


@dataclass(frozen=True)
class Request:
    """What to try: every recipe in every format, on this host and on every target."""

    model: str
    formats: tuple[str, ...]
    recipes: tuple[str, ...]
    targets: tuple[str, ...] = ()
    evaluation: str = "auto"


@dataclass(frozen=True)
class Cell:
    """One file on one board, held against the reference; numbers are null where it did not run, with the ``reason``.

    ``disagreement`` is the share of answers, by the model's task, that are other ones.
    """

    format: str
    recipe: str
    board: str
    max_abs: float | None = None
    mean_abs: float | None = None
    cosine: float | None = None
    disagreement: float | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        """The cell in words."""
        return f"{self.format} {self.recipe}, {self.board}"


@dataclass(frozen=True)
class Matrix:
    """All cells, and the share of answers in which each two differ (null where one did not run), in their order."""

    model: str
    inputs: str
    reference: str
    cells: list[Cell]
    disagreement: list[list[float | None]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {"schema": "edgepipe.matrix/1", **codec.to_dict(self)}


def measure(request: Request, progress: Progress) -> Matrix:
    """Make, run and compare every cell.

    Raises:
        UsageError: the model, a format, recipe or target is not known, or no inputs can be made up.
        LinkError: a board can't be reached.
    """
    source = model.load(request.model)
    for name in request.recipes:
        export.check(source, name, request.formats)
    reference = layers.reference_of(source, None, progress)
    fed = samples.choose(reference, data.evaluation(source, request.evaluation), SAMPLES)
    truth = layerwise.on_host(reference, fed.feeds(reference))
    cells: list[Cell] = []
    answers: list[Answer | None] = []
    with ExitStack() as stack:
        boards: list[tuple[str, Run]] = [(HOST, _here)]
        for name in request.targets:
            client = stack.enter_context(board.connect(targets.load(name), bench.owner(), progress))
            boards.append((name, layerwise.OnBoard(client)))
        for form, recipe in product(request.formats, request.recipes):
            made = _tried(partial(_made, source, recipe, form, progress))
            for where, run in boards:
                with progress.task(f"{source.name} {form} {recipe} on {where}", "s"):
                    found = made if isinstance(made, str) else _tried(partial(_run, made, fed, run))
                cells.append(Cell(form, recipe, where, reason=found if isinstance(found, str) else ""))
                answers.append(None if isinstance(found, str) else found)
    task = plugins.task(source.task)
    held = [_held(cell, truth, answer, task) for cell, answer in zip(cells, answers, strict=True)]
    pairs = [[_apart(one, other, task) for other in answers] for one in answers]
    return Matrix(source.name, fed.source, f"{reference.format} none, {HOST}, optimiser off", held, pairs)


def _tried(work: Callable[[], Any]) -> Any:
    """What ``work`` returns, or in words why it failed."""
    try:
        return work()
    except EdgepipeError as error:
        return error.what


def _made(source: Model, recipe: str, form: str, progress: Progress) -> Artifact:
    return export.make(source, recipe, form, None, progress).artifact


def _run(artifact: Artifact, fed: Samples, run: Run) -> Answer:
    return run(replace(artifact, preprocessing=Preprocessing()), fed.feeds(artifact))  # the samples are prepared


def _here(artifact: Artifact, feeds: dict[str, Any]) -> Answer:
    """Run a file on this host as a board would, with the runtime's optimiser on."""
    return runner.run_file(artifact, feeds).outputs


def _held(cell: Cell, truth: Answer, answer: Answer | None, task: Any) -> Cell:
    """The cell with its distance from the reference."""
    if answer is None:
        return cell
    try:
        rung = verify.compare(cell.name, truth, answer, task, ANY)
    except IntegrityError as error:
        return replace(cell, reason=error.what)
    return replace(
        cell,
        max_abs=rung.max_abs,
        mean_abs=rung.mean_abs,
        cosine=rung.cosine,
        disagreement=rung.disagreement,
    )


def _apart(one: Answer | None, other: Answer | None, task: Any) -> float | None:
    if one is None or other is None or [x.shape for x in one] != [x.shape for x in other]:
        return None
    share = float(task.disagreement(one, other))
    return share if math.isfinite(share) else None
