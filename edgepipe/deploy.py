"""The whole chain: load, compress, export, verify, push, verify and measure on the board, activate, report.

Nothing is activated before every artifact asked for has passed on the board: accuracy, then latency. So a failure or
Ctrl-C at any moment leaves the board on its old release (docs/adr/0004).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe import (
    bench,
    board,
    codec,
    convert,
    data,
    executed,
    export,
    given,
    golden,
    honesty,
    leftovers,
    measurement,
    preflight,
    recipe,
    targets,
    verify,
)
from edgepipe.agent.runtimes import runtime_for
from edgepipe.artifact import ExportOptions
from edgepipe.errors import BoardError, DeadlineError, EdgepipeError, LinkError, UsageError
from edgepipe.given import Said
from edgepipe.journal import Journal
from edgepipe.llm import chain
from edgepipe.record import Report
from edgepipe.schema import Artifact, Board, DeltaSent, Manifest, Plan, RunOptions

if TYPE_CHECKING:
    from edgepipe.board import BoardClient
    from edgepipe.convert import Export
    from edgepipe.data import Dataset
    from edgepipe.link._push import Source
    from edgepipe.model import Model
    from edgepipe.progress import Progress
    from edgepipe.targets import Target
    from edgepipe.verify import Ladder


UNSIGNED = "anyone who can log in there can replace it (edgepipe targets signers {} --key FILE)"


@dataclass(frozen=True)
class Request:
    """What to deploy where, and what it must hold; without ``activate`` the board keeps its old release.

    With ``any_loss`` a model that a lossy step wrecked is measured all the same: how much it lost is what is asked.
    """

    model: str
    target: str
    host: str = ""
    recipe: str = "none"
    formats: tuple[str, ...] = ("onnx",)
    plan: Plan = field(default_factory=Plan)
    options: RunOptions = field(default_factory=RunOptions)
    max_drop: float | None = None
    max_latency: bench.LatencyGate | None = None
    evaluation: str = "auto"
    opset: int | None = None
    dynamic: dict[str, list[int]] = field(default_factory=dict)
    layout: str = ""
    fold: bool = False
    said: Said = field(default_factory=Said)
    synthetic: bool = False
    activate: bool = True
    wait: float = 0.0
    rate_limit: float = 0.0
    allow_fallback: bool = False
    profile_ops: bool = False
    any_loss: bool = False


@dataclass(frozen=True)
class Outcome:
    """The reports, complete as far as the chain got, and the error that stopped it, if one did."""

    reports: list[Report]
    error: EdgepipeError | None = None


@dataclass
class Candidate:
    """One artifact on its way to the board; its report is filled in stage by stage."""

    artifact: Artifact
    manifest: Manifest
    report: Report
    ladder: Ladder | None = None
    bytes_sent: int = 0
    bytes_wire: int = 0
    deltas: list[DeltaSent] = field(default_factory=list)
    inputs: str | None = None
    export: Export | None = None
    golden: list[Source] = field(default_factory=list)


def deploy(request: Request, progress: Progress) -> Outcome:
    """Run the chain. Errors before anything was made are raised; later ones come with the reports so far.

    Raises:
        UsageError, LinkError, BoardError: nothing was done yet.
    """
    request = replace(request, recipe=recipe.plain(request.recipe))
    target = targets.load(request.target, request.host or None)
    source, dataset = _loaded(request, progress)
    with board.connect(target, bench.owner(), progress, wait=request.wait) as client:
        client.rate_limit = request.rate_limit
        facts = client.hello().board
        leftovers.collect(client, progress)
        bench.check_runtimes(facts, list(request.formats), request.target)
        progress.note(f"{target.name}: {facts.model or facts.cpu}, {facts.os}, Python {facts.python}")
        if source.format != chain.FORMAT:
            convert.plain(source, request.formats, options_for(request, target, facts), facts, progress)
        candidates: list[Candidate] = []
        try:
            for name in request.formats:
                candidate = prepare(request, source, dataset, name, facts, target, progress)
                candidates.append(candidate)
            packed = bench.samples_blob(dataset) if dataset is not None and not dataset.more else None
            for candidate in candidates:
                _push_and_verify(candidate, dataset, packed, request, client, progress)
            for candidate in candidates:
                measure(candidate, request, client, progress)
            for candidate in candidates if request.activate else ():
                _activate(candidate, client, progress)
        except EdgepipeError as error:
            return Outcome([candidate.report for candidate in candidates], error)
    return Outcome([candidate.report for candidate in candidates])


def _loaded(request: Request, progress: Progress) -> tuple[Model, Dataset | None]:
    """The model, checked against the request, and what it is judged on.

    Raises:
        UsageError: they don't fit, or there is no such model or evaluation set.
    """
    if chain.knows(request.model):
        if request.said != Said():
            what = "a language model takes no data, shapes or preprocessing"
            raise UsageError(what, "--calibration, --input-shape, --preprocessing, --task", "leave them out")
        chain.check(request.recipe, request.formats, asked(request))
        language = chain.load(request.model, progress)
        return language, chain.evaluation(language, request.evaluation, progress)
    source = given.load(request.model, request.said)
    export.check(source, request.recipe, request.formats, asked(request))
    return source, data.evaluation(source, request.evaluation)


def dry_run(request: Request) -> dict[str, Any]:
    """What `deploy` would do, from what the host knows: no board is asked and nothing is made.

    Raises:
        UsageError: the request can't be met.
    """
    request = replace(request, recipe=recipe.plain(request.recipe))
    target = targets.load(request.target, request.host or None)
    known = preflight.expected(target, request.formats)
    if chain.knows(request.model):
        chain.check(request.recipe, request.formats, asked(request))
        model = chain.facts(request.model)
    else:
        source = given.load(request.model, request.said)
        export.check(source, request.recipe, request.formats, asked(request))
        convert.foresee(source, request.formats, options_for(request, target, known), known)
        model = source.facts
    steps = ["connect", "compress", "export", "verify", "push", "verify on the board", "measure", "activate", "report"]
    return {
        "schema": "edgepipe.plan/1",
        "model": codec.to_dict(model),
        "target": target.name,
        "recipe": request.recipe,
        "formats": list(request.formats),
        "runtimes": [runtime_for(name) for name in request.formats],
        "profile": codec.to_dict(request.plan),
        "least_measuring_seconds": request.plan.min_seconds * len(request.formats),
        "stages": steps,
    }


def prepare(
    request: Request,
    source: Model,
    dataset: Dataset | None,
    format_name: str,
    facts: Board,
    target: Target,
    progress: Progress,
) -> Candidate:
    """Compress, export and verify on the host, for what this board's runtime can load."""
    wanted, few = options_for(request, target, facts), dataset
    if source.format == chain.FORMAT:
        assert dataset is not None
        made = chain.prepare(source, request.recipe, dataset, asked(request), progress)
        few = dataset.first(1)  # a window has as many answers as others have samples
    else:
        drop = request.max_drop
        made = convert.prepare(source, request.recipe, format_name, wanted, dataset, progress, drop, weigh=True)
    for caution in preflight.check(made.artifact, facts, f"{source.name} {request.recipe} on {target.name}"):
        progress.note(caution)
    test = golden.make(made.artifact, few)
    manifest = bench.manifest_of(made.artifact, test.test if test else None)
    report = draft(made, source, request.recipe, facts, request.target, manifest)
    if made.ladder and not request.any_loss:
        verify.judge(made.ladder, request.max_drop, f"{source.name} {request.recipe} {format_name}, on the host")
    return Candidate(made.artifact, manifest, report, made.ladder, export=made, golden=test.blobs if test else [])


def draft(made: Export, source: Model, text: str, facts: Board, target: str, manifest: Manifest) -> Report:
    """The report of a file as far as the host knows it: what the recipe ``text`` did, and what came of it."""
    report = bench.blank_report(source.facts, made.artifact, facts, target, manifest)
    report = replace(report, recipe=text, steps=made.made.steps)
    ladder = made.ladder
    return replace(report, accuracy=ladder.accuracy if ladder else None, parity=made.parity)


def options_for(request: Request, target: Target, facts: Board) -> ExportOptions:
    """What a file must be like to run on this board as the request asks."""
    opset = request.opset or target.opset
    return replace(asked(request), opset=opset, ir_version=target.ir_version, reduce_range=saturates(facts))


def asked(request: Request) -> ExportOptions:
    """What the request asks of a file, whatever the board."""
    return ExportOptions(
        request.options.batch,
        dynamic=request.dynamic,
        opset=request.opset,
        layout=request.layout or None,
        fold=request.fold,
        synthetic=request.synthetic,
    )


def saturates(facts: Board) -> bool:
    """Whether int8 products saturate on this CPU: x86 without VNNI (docs/adr/0007)."""
    return facts.arch in {"x86_64", "AMD64", "i686"} and not {"avx512_vnni", "avx_vnni"} & set(facts.isa)


def _push_and_verify(
    candidate: Candidate,
    dataset: Dataset | None,
    packed: tuple[bytes, str] | None,
    request: Request,
    client: BoardClient,
    progress: Progress,
) -> None:
    """Send what the board lacks, let it answer the evaluation set, and hold the answers against the host's.

    ``packed`` is the dataset as a blob with its sha256, the same for all candidates where the model has one input.
    """
    files = [*bench.files_of(candidate.artifact), *candidate.golden]
    if dataset is None or candidate.ladder is None:
        _send(candidate, files, client, progress)
        return
    artifact = candidate.artifact
    content, candidate.inputs = packed or bench.blob(dataset.feeds(artifact.inputs, artifact.preprocessing))
    _send(candidate, [*files, (content, candidate.inputs)], client, progress)
    name = candidate.manifest.name
    with progress.task(f"verify {name} on the board, {len(dataset.inputs)} samples", "s") as task:
        answer = client.verify(candidate.manifest, candidate.inputs, request.options, task.update)
    source = candidate.report.model
    ladder = verify.on_device(candidate.ladder, client.arrays(answer.outputs), dataset, source.task)
    candidate.report = replace(candidate.report, accuracy=ladder.accuracy, parity=ladder.parity)
    if not request.any_loss:
        verify.judge(ladder, request.max_drop, f"{source.name} {request.recipe}, {name} on {request.target}")


def _send(candidate: Candidate, files: list[Source], client: BoardClient, progress: Progress) -> None:
    """Push, and note what that took."""
    wire, deltas = client.bytes_wire, len(client.deltas)
    candidate.bytes_sent = client.push(files)
    candidate.bytes_wire = client.bytes_wire - wire
    candidate.deltas = client.deltas[deltas:]
    for one in candidate.deltas:
        how = f"{one.bytes_wire:,}: a delta against {one.base[:12]}, {one.bytes_saved:,} saved"
        progress.note(f"{candidate.manifest.name}: {one.bytes:,} bytes sent as {how}")


def measure(candidate: Candidate, request: Request, client: BoardClient, progress: Progress) -> None:
    """Time the staged release; keep the record at once, whatever becomes of the rest.

    Raises:
        LinkError: the link was lost; the record says so until the board hands the run over.
        BoardError, DeadlineError: the runtime can't run it, or not in time.
        GateError: it is too slow, or ran otherwise than it should have.
    """
    name, plan, options = candidate.report.id, request.plan, request.options
    try:
        result = bench.measure(client, candidate.manifest, plan, options, candidate.inputs, progress, name)
    except LinkError as error:
        lost = measurement.failed("unreachable", error.what, plan, options)
        candidate.report = replace(candidate.report, measurement=lost)
        _keep(candidate)
        raise
    path = Path(candidate.artifact.path)
    if path.is_absolute() and path.is_file():  # a release that only the board holds has no file here
        result = executed.judged(result, candidate.artifact)
    candidate.report = replace(candidate.report, measurement=result)
    _keep(candidate)
    # Only now is it safe here, and the board may forget it.
    client.forget([name])
    if candidate.export and candidate.export.plain and result.latency_ms:
        weighed = honesty.weighed(candidate.export, client, request.options, candidate.inputs, progress)
        candidate.report = replace(candidate.report, pruning=weighed.payoff)
        _keep(candidate)
    where = f"{candidate.manifest.name} on {request.target}"
    if result.status in {"failed", "timeout"}:
        kind = DeadlineError if result.status == "timeout" else BoardError
        raise kind(f"could not be measured: {result.reason}", where, "see the runtime's own words above")
    if not request.allow_fallback:
        executed.check(result, where)
    if request.max_latency:
        request.max_latency.check(result, where)


def _activate(candidate: Candidate, client: BoardClient, progress: Progress) -> None:
    """Move the board's `current` link to the release, and complete the record."""
    release = client.activate(candidate.manifest)
    release = replace(
        release, bytes_sent=candidate.bytes_sent, bytes_wire=candidate.bytes_wire, deltas=candidate.deltas
    )
    candidate.report = replace(candidate.report, release=release)
    _keep(candidate)
    word = "active" if release.changed else "was active already"
    signed = f"signed by {release.signer}" if release.signer else f"NOT SIGNED; {UNSIGNED.format(client.target.name)}"
    progress.note(f"{candidate.manifest.name}: {word} as {release.id}, {signed}")
    if release.service:
        progress.note(f"{release.service.unit} was restarted and is well after {release.service.seconds:.1f} s")


def _keep(candidate: Candidate) -> None:
    Journal().append_report(candidate.report)
