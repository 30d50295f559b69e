"""`verify --layers`: which files to hold against each other, on what, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe import bench, board, codec, convert, data, export, isolate, layerwise, plugins, samples, targets
from edgepipe.artifact import ExportOptions
from edgepipe.errors import IntegrityError
from edgepipe.layerwise import Comparison
from edgepipe.model import Model
from edgepipe.model import load as load_model
from edgepipe.schema import Artifact

if TYPE_CHECKING:
    from edgepipe.progress import Progress

REFERENCE = "onnx"  # what a framework's model is cut open as: its export, which the ladder holds against it


@dataclass(frozen=True)
class Report:
    """The file against the model; then, where a board was named, the host's run of the file against the board's."""

    comparisons: list[Comparison]

    def document(self) -> list[dict[str, Any]]:
        """As JSON."""
        return [codec.to_dict(each) for each in self.comparisons]

    def check(self, where: str) -> None:
        """Name the first layer that departs, if one does.

        Raises:
            IntegrityError: one does.
        """
        for each in self.comparisons:
            if each.first:
                parts = ", ".join([each.first.layer, *each.first.before])
                does = ", ".join(each.first.between)
                fix = f"look at {parts}, which does the work of {does}"
                raise IntegrityError(each.first.text, f"{where}, {each.other} against {each.one}", fix)


def compare(file: str, against: str, target: str, host: str, evaluation: str, progress: Progress) -> Report:
    """Hold a file against the model it was made from, layer by layer; and its run on a board against the one here.

    Raises:
        UsageError: a format that can't be cut open, inputs that can't be made up, or an unknown model or target.
        BoardError, LinkError: the board, or a runtime, failed.
    """
    source = load_model(against)
    found = convert.artifact_of(file, source)
    reference = reference_of(source, found, progress)
    fed = samples.choose(reference, data.evaluation(source, evaluation), layerwise.SAMPLES)
    with progress.task(f"cut open {source.name} and {found.format}", "s"):
        one, other = layerwise.observe(reference, fed), layerwise.observe(found, fed)
    names = (f"{source.name} ({reference.format})", f"{found.format} on this host")
    comparisons = [layerwise.compare(one, other, limit_of(found), names, fed.source)]
    if target:
        with board.connect(targets.load(target, host or None), bench.owner(), progress) as client:
            bench.check_runtimes(client.hello().board, [found.format], target)
            run = layerwise.OnBoard(client)
            with progress.task(f"cut open {found.format} on {target}", "s"):
                there = layerwise.observe(found, fed, run)
        names = (names[1], f"{found.format} on {target}")
        comparisons.append(layerwise.compare(other, there, _coarser(limit_of(found), run.limit), names, fed.source))
    return Report(comparisons)


def reference_of(source: Model, like: Artifact | None, progress: Progress) -> Artifact:
    """The model as a file: its own, or the export of the framework's model, with the batch of ``like`` or one of 1."""
    if source.network is None and source.path is not None:
        return export.artifact_of_file(source.path, source)
    batch = like.inputs[0].shape[0] if like and like.inputs and like.inputs[0].shape else 1
    options = ExportOptions(batch=max(batch, 1))
    return export.make(source, "none", REFERENCE, options, progress).artifact


def limit_of(artifact: Artifact) -> str:
    """The precision of a file, by what it stores: a key of `layerwise.LIMITS`."""
    module = plugins.load("formats", artifact.format, "tensors")
    return str(isolate.call(f"{module.__name__}:precision", {"path": artifact.path}))


def _coarser(*limits: str) -> str:
    return max(limits, key=list(layerwise.LIMITS).index)
