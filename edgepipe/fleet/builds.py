"""The host's half of a fleet run: each file is made once for all boards that can share it, one after the other.

What a file must be like depends on the board (the newest opset it loads, whether its int8 products saturate), so boards
are greeted first; those that want the same get the same, by hash.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from edgepipe import artifact, bench, convert, data, deploy, export, golden, model, verify
from edgepipe.fleet.plan import Cell, Member
from edgepipe.fleet.work import Found, Package
from edgepipe.record import Report
from edgepipe.schema import Artifact, Board, RunOptions

if TYPE_CHECKING:
    from edgepipe.artifact import ExportOptions
    from edgepipe.data import Dataset
    from edgepipe.model import Model
    from edgepipe.progress import Progress

UNKNOWN = Board("", "", [], 0, None, "", "", "")  # the facts of a board that never answered


class Wanted(Protocol):
    """What the files depend on, besides the boards."""

    @property
    def cells(self) -> list[Cell]:
        """The candidates."""

    @property
    def options(self) -> RunOptions:
        """Batch and threads."""

    @property
    def evaluation(self) -> str:
        """Which evaluation set."""

    @property
    def max_drop(self) -> float | None:
        """What accuracy may be lost."""

    @property
    def synthetic(self) -> bool:
        """Whether made-up data may calibrate."""


@dataclass(frozen=True)
class Built:
    """A candidate ready to go, and the report of it that only lacks what the board will say."""

    package: Package
    report: Report


@dataclass
class Builds:
    """The files of a run; ``build`` may be replaced by whoever has them already."""

    request: Wanted
    progress: Progress
    models: dict[str, Model]
    _made: dict[tuple[Cell, str], Future[Built]] = field(default_factory=dict)
    _asked: dict[tuple[Cell, str], tuple[Board, Future[Built]]] = field(default_factory=dict)
    _worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "edgepipe-build"))
    _blank: dict[Cell, Report] = field(default_factory=dict)
    _samples: dict[str, tuple[bytes, str] | None] = field(default_factory=dict)

    @staticmethod
    def open(request: Wanted, progress: Progress) -> Builds:
        """Load the models, and refuse what can't be made before any board is asked.

        Raises:
            UsageError: a model, recipe or format is not known, or they can't be had together.
        """
        models = {name: model.load(name) for name in dict.fromkeys(cell.model for cell in request.cells)}
        for cell in request.cells:
            asked = deploy.asked(_how(request, cell))
            export.check(models[cell.model], cell.recipe, [cell.format], asked)
        return Builds(request, progress, models)

    def get(self, cell: Cell, member: Member, facts: Board) -> Future[Built]:
        """The future of a cell's file for a board; equal needs share one."""
        asked = self._asked.get((cell, member.name))
        if asked and asked[0] is facts:  # the planner asks at each step of each trial
            return asked[1]
        wanted = deploy.options_for(_how(self.request, cell), member.target, facts)
        key = cell, repr(wanted)
        if key not in self._made:
            self._made[key] = self._worker.submit(self._build, cell, wanted)
        self._asked[cell, member.name] = facts, self._made[key]
        return self._made[key]

    def report(self, cell: Cell, member: Member, facts: Board | None) -> Report:
        """The report of a candidate as far as the host knows it; for a board that never answered, of any file of it."""
        known = self.get(cell, member, facts) if facts else None
        some = known or next((made for (other, _), made in self._made.items() if other == cell), None)
        if some and some.done() and not some.cancelled() and some.exception() is None:
            return some.result().report
        if cell not in self._blank:
            self._blank[cell] = unmade(cell, self.models[cell.model])
        return self._blank[cell]

    def measured(self, cell: Cell, member: Member, facts: Board | None, found: Found, name: str = "") -> Report:
        """The report of a candidate with what came of it on a board, as of now."""
        report = self.report(cell, member, facts)
        seen = bench.describe(replace(facts or UNKNOWN, name=member.name), member.name, report.board.runtime)
        return replace(
            report,
            id=name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            board=replace(seen, name=member.name),
            measurement=found.measurement,
            accuracy=found.accuracy or report.accuracy,
            parity=list(found.parity) or report.parity,
        )

    def close(self) -> None:
        """Begin no more."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _build(self, cell: Cell, wanted: ExportOptions) -> Built:
        source, request = self.models[cell.model], self.request
        dataset = data.evaluation(source, request.evaluation)
        made = convert.prepare(source, cell.recipe, cell.format, wanted, dataset, self.progress, request.max_drop)
        if made.ladder:
            verify.judge(made.ladder, request.max_drop, f"{cell}, on the host")
        test = golden.make(made.artifact, dataset)
        manifest = bench.manifest_of(made.artifact, test.test if test else None)
        samples = self._blob(cell.model, dataset) if made.ladder else None
        files = [*bench.files_of(made.artifact), *(test.blobs if test else [])]
        package = Package(
            manifest, files, samples, dataset if samples else None, made.ladder, source.task,
            request.max_drop, made.artifact,
        )  # fmt: skip
        return Built(package, deploy.draft(made, source, cell.recipe, UNKNOWN, "", manifest))

    def _blob(self, name: str, dataset: Dataset | None) -> tuple[bytes, str] | None:
        if name not in self._samples:
            self._samples[name] = bench.samples_blob(dataset) if dataset is not None else None
        return self._samples[name]


def _how(request: Wanted, cell: Cell) -> deploy.Request:
    """How a single deployment would ask for this file."""
    return deploy.Request(cell.model, "", options=request.options, synthetic=request.synthetic)


def unmade(cell: Cell, source: Model) -> Report:
    """The report of a candidate that was never made."""
    blank = Artifact(
        cell.format, "", 0, 0, "", [], [], [], source.preprocessing, model=source.name, recipe=cell.recipe,
        parent_sha256=source.facts.sha256,
    )  # fmt: skip
    manifest = bench.manifest_of(artifact.portable(blank))
    return bench.blank_report(source.facts, blank, UNKNOWN, "", manifest)
