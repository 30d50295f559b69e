"""Parity of a file whose model has no data: each stage against the one before, on several seeded distributions.

Agreement on noise is a weaker proof than agreement on real inputs, and a model may be fed with what it can't stand. So
nothing is refused by it: what departs is a caution, and the rung says what it was shown on.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgepipe import cache, export, plugins, runner, samples, verify
from edgepipe.agent import runtimes
from edgepipe.errors import EdgepipeError, UsageError
from edgepipe.record import Rung

if TYPE_CHECKING:
    from edgepipe.export import Made
    from edgepipe.model import Model
    from edgepipe.samples import Samples
    from edgepipe.schema import Artifact

COUNT = 24  # samples: as many of each distribution


@dataclass(frozen=True)
class Shown:
    """The rungs, what they were shown on (or why they could not be), and what people should know of them."""

    parity: list[Rung] = field(default_factory=list)
    source: str = ""
    cautions: list[str] = field(default_factory=list)


def climb(model: Model, made: Made) -> Shown:
    """Hold every stage that a runtime here runs against the one before; the first against the model itself."""
    own = model.network is None and _runs(model.format)  # a file that boards run as it is
    try:
        template = _own_file(model) if own else made.stages[0]  # says which inputs there are
        fed = samples.choose(template, None, COUNT)
        before = _first(model, template, fed)
    except EdgepipeError as error:
        return Shown(source=f"not shown to be the same model: {error.what}")
    parity: list[Rung] = []
    cautions: list[str] = []
    for artifact in made.stages:
        if not _runs(artifact.format) or (own and artifact.sha256 == template.sha256):
            continue
        name, tolerance = verify.rung_of(artifact)
        try:
            after = _answers(artifact, fed)
            rung = verify.compare(name, before, after, plugins.task("null"), replace(tolerance, meant=True))
        except EdgepipeError as error:
            cautions.append(f"rung {name}, on made-up inputs: {error.what}")
            break
        if rung.note:
            cautions.append(f"rung {name}, on made-up inputs: {rung.note}; hold it against data: --calibration DIR")
        parity.append(rung)
        before = after
    return Shown(parity, fed.source, cautions)


def _own_file(model: Model) -> Artifact:
    assert model.path is not None
    found = export.artifact_of_file(model.path, model)
    pairs = zip(found.inputs, model.inputs, strict=True)  # the model's have the sizes that the user said
    inputs = [replace(own, shape=said.shape) if -1 in own.shape[1:] else own for own, said in pairs]
    return replace(found, inputs=inputs)


def _first(model: Model, template: Artifact, fed: Samples) -> list[Any]:
    """The answers of the model itself: of its module, its file, or its framework where no runtime here runs it."""
    if model.network is not None:
        return _module(model, fed)
    if _runs(model.format):
        return _answers(template, fed)
    return verify.native(model, list(fed.arrays), fed.source)


def _runs(format_name: str) -> bool:
    try:
        runtimes.runtime_for(format_name)
    except UsageError:
        return False
    return True


def _answers(artifact: Artifact, fed: Samples) -> list[Any]:
    """A file's answers on this host, kept by file, samples and runtime."""
    versions = cache.versions(runtimes.find(runtimes.runtime_for(artifact.format)).PACKAGES)
    key = cache.key("made up", file=artifact.sha256, fed=fed.source, runtime=versions)
    return verify.cached(key, lambda: runner.run_file(artifact, fed.feeds(artifact), optimize=False).outputs)


def _module(model: Model, fed: Samples) -> list[Any]:
    """The torch module's answers.

    Raises:
        UsageError: it can't be fed so.
    """
    import torch

    try:
        with torch.inference_mode():
            found = model.module(*(torch.from_numpy(array) for array in fed.arrays))
    except Exception as error:
        raise UsageError(f"the module can't be fed with made-up inputs: {str(error)[:200]}", model.name) from None
    several = found if isinstance(found, (list, tuple)) else [found]
    return [tensor.float().numpy() for tensor in several]
