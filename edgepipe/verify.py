"""Prove that the exported file, and then the board, still give the model's answers.

The ladder: framework -> compressed -> exported -> quantized -> on_device. Each rung is held against the one before, so
the rung that broke the model is named. The host's rungs run with the runtime's optimiser off: an x86 host without VNNI
saturates int8 products and would misreport a file that is right (onnxruntime's quantization guide, "overflow").
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgepipe import cache, data, export, plugins, recipe, scores, stats
from edgepipe.errors import GateError, IntegrityError, UsageError
from edgepipe.record import Accuracy, Rung
from edgepipe.schema import Artifact

if TYPE_CHECKING:
    from edgepipe.data import Dataset
    from edgepipe.export import Made
    from edgepipe.model import Model

_FED = 250  # samples that a network is given at once
_FEW = 64  # samples that suffice to rank layers by their noise
UNKNOWN = "unknown"  # the recipe of a file that came without a manifest

AGREEMENT = "agreement with the float model"  # the metric where there are no labels
Outputs = list[Any]  # numpy arrays, one per model output, samples first


@dataclass(frozen=True)
class Tolerance:
    """What a rung may lose before the model counts as broken: least cosine, largest share of changed answers.

    Where the loss is ``meant``, the verdict waits for `judge`: the accuracy gate has the first word.
    """

    cosine: float
    disagreement: float
    meant: bool = False


# Float rungs recompute the same arithmetic in another order. A lossy rung changes the weights, and what may be lost is
# the user's to say (--max-drop); beyond its tolerance the file is a wreck whatever was said.
EXACT = Tolerance(cosine=0.9999, disagreement=0.002)
HALF = Tolerance(cosine=0.999, disagreement=0.01)
QUANTIZED = Tolerance(cosine=0.97, disagreement=0.06, meant=True)
LOSSY = Tolerance(cosine=0.8, disagreement=0.3, meant=True)
SAME_FILE = Tolerance(cosine=0.98, disagreement=0.05)


@dataclass(frozen=True)
class Ladder:
    """The rungs climbed so far, the accuracy on each, and the outputs of the last one and of the float model.

    ``features`` names the model whose features the task compares images by.
    """

    accuracy: Accuracy
    parity: list[Rung]
    outputs: Outputs
    reference: Outputs
    features: str = ""


def climb(model: Model, made: Made, dataset: Dataset) -> Ladder:
    """Climb the host's rungs: framework (or the file the model is), compressed, exported, quantized.

    Raises:
        IntegrityError: a rung departs from the one before by more than its tolerance.
    """
    task = plugins.task(model.task)
    reference = _reference(model, made, dataset)
    before = reference
    accuracy = replace(_metric_of(task, dataset), baseline=_score(task, before, dataset, reference))
    accuracy = _furthered(accuracy, "baseline", task, before, dataset, reference, model.features)
    _check_floor(model, accuracy)
    parity: list[Rung] = []
    if made.model is not model:
        after = framework(made.model, dataset)
        parity.append(compare("compressed", before, after, task, LOSSY))
        before = after
    accuracy = replace(accuracy, compressed=_score(task, before, dataset, reference))
    for place, artifact in enumerate(made.stages):
        after = outputs_of(artifact, dataset)
        adapted = place > 0 and artifact.recipe == made.stages[place - 1].recipe
        name, tolerance = (export.ADAPTED, EXACT) if adapted else rung_of(artifact)
        parity.append(compare(name, before, after, task, tolerance))
        before = after
    accuracy = replace(accuracy, exported=_score(task, before, dataset, reference))
    accuracy = _furthered(accuracy, "exported", task, before, dataset, reference, model.features)
    return Ladder(accuracy, parity, before, reference, model.features)


def _metric_of(task: Any, dataset: Dataset) -> Accuracy:
    """What is measured on the dataset: the task's metric, or the agreement where nobody knows the answers."""
    if dataset.labels is None:
        return Accuracy(AGREEMENT, len(dataset.inputs), dataset=dataset.name)
    unit, lower = scores.unit(task), scores.lower_is_better(task)
    return Accuracy(task.METRIC, len(dataset.inputs), dataset=dataset.name, unit=unit, lower_is_better=lower)


def _furthered(
    accuracy: Accuracy, place: str, task: Any, outputs: Outputs, dataset: Dataset, reference: Outputs, features: str
) -> Accuracy:
    """The accuracy with what else the task measures at this place; figures that are not finite are left out."""
    if dataset.labels is None or not hasattr(task, "further"):
        return accuracy
    more = {"features": _features(features)} if features else {}
    measured = task.further(outputs, dataset.labels, **more)
    if place != "baseline" and hasattr(task, "agreement"):
        measured |= task.agreement(reference, outputs)
    found = {name: float(value) for name, value in measured.items()}
    found = {name: value for name, value in found.items() if math.isfinite(value)}
    return replace(accuracy, further={**accuracy.further, place: found})


def _features(name: str) -> Callable[[Any], Any]:
    """What the last layer of the model ``name`` is given, for images in 0 to 1 of its own layout."""
    from edgepipe import model as models

    judge = models.load(name)

    def features(images: Any) -> Any:
        import torch

        from edgepipe.agent.preprocess import prepare

        low, high = judge.preprocessing.range
        layout = judge.preprocessing.layout
        fed = torch.from_numpy(prepare(low + (high - low) * images, judge.preprocessing, layout))
        digest = hashlib.sha256(fed.numpy().tobytes()).hexdigest()
        return cached(cache.key("features", model=judge.identity, data=digest), lambda: [_seen(judge.module, fed)])[0]

    return features


def _seen(module: Any, fed: Any) -> Any:
    """What the module's last linear layer is given, [samples, n]."""
    import numpy as np
    import torch

    last = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)][-1]
    seen: list[Any] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy()))
    try:
        with torch.inference_mode():
            for part in fed.split(_FED):
                module(part)
    finally:
        hook.remove()
    return np.concatenate(seen)


def _reference(model: Model, made: Made, dataset: Dataset) -> Outputs:
    """What the model itself answers: its module, its file, or its framework where no runtime of boards runs it.

    Where that is not asked either, as of the weights of a language model, it is what its first file answers.
    """
    if model.network is not None:
        return framework(model, dataset)
    from edgepipe.agent import runtimes

    try:
        runtimes.runtime_for(model.format)
    except UsageError:
        if model.format not in plugins.names("formats"):
            return outputs_of(made.stages[0], dataset)
        fed = dataset.feeds(model.inputs, model.preprocessing)
        return native(model, [fed[spec.name] for spec in model.inputs], dataset.sha256)
    assert model.path is not None
    return outputs_of(export.artifact_of_file(model.path, model), dataset)


def native(model: Model, arrays: list[Any], source: str) -> Outputs:
    """The answers of a file's own framework to ``arrays``, which ``source`` names; cached by model and samples.

    Raises:
        UsageError: nothing here runs such files.
        IntegrityError: it can't take in these arrays.
    """
    found = plugins.load("formats", model.format, "answers")
    key = cache.key("native", model=model.identity, data=source, versions=cache.versions(found.LIBRARIES))
    return cached(key, lambda: cast("Outputs", found.answers(model, arrays)))


def rung_of(artifact: Artifact) -> tuple[str, Tolerance]:
    """The rung a file stands on, and what it may lose: by the last step of its recipe."""
    last = artifact.recipe.split("+")[-1]
    if artifact.recipe == UNKNOWN:
        return "exported", QUANTIZED
    if last.split(":")[0] in recipe.file_steps():
        return f"quantized:{last}", HALF if last == "fp16" else QUANTIZED
    return "exported", EXACT


def on_device(ladder: Ladder, outputs: Outputs, dataset: Dataset, task_name: str) -> Ladder:
    """Add the board's rung: what the board answered to the same inputs."""
    task = plugins.task(task_name)
    rung = compare("on_device", ladder.outputs, outputs, task, SAME_FILE)
    accuracy = replace(ladder.accuracy, on_device=_score(task, outputs, dataset, ladder.reference))
    accuracy = _furthered(accuracy, "on_device", task, outputs, dataset, ladder.reference, ladder.features)
    return replace(ladder, accuracy=accuracy, parity=[*ladder.parity, rung], outputs=outputs)


def judge(ladder: Ladder, max_drop: float | None, where: str) -> None:
    """Hold the loss (baseline - last rung known) against ``max_drop``, both as shares of 1, then every rung's note.

    Raises:
        GateError: the loss is larger than allowed.
        IntegrityError: nobody said what may be lost, and a step wrecked the model.
    """
    accuracy = ladder.accuracy
    last = next((v for v in (accuracy.on_device, accuracy.exported, accuracy.compressed) if v is not None), None)
    if max_drop is not None and accuracy.baseline is not None and last is not None:
        drop = scores.lost(accuracy.baseline, last, accuracy)
        if not stats.within(drop, max_drop):
            values = f"{scores.said(accuracy.baseline, accuracy.unit)} -> {scores.said(last, accuracy.unit)}"
            what = f"{accuracy.metric} {scores.verb(accuracy)} by {drop:.2%} ({values}), more than the"
            fix = "choose a gentler recipe (fp16, dynamic) or a larger --max-drop"
            raise GateError(f"{what} {max_drop:.2%} allowed; nothing was activated", where, fix)
    for rung in ladder.parity:
        if rung.note:
            fix = "choose another recipe or format; the rungs before this one hold"
            raise IntegrityError(f"the model broke here: {rung.note}", f"{where}, rung {rung.rung}", fix)


def framework(model: Model, dataset: Dataset) -> Outputs:
    """The torch module's answers to the dataset, as float32 arrays; cached by weights and data."""
    key = cache.key("framework", model=model.identity, data=dataset.sha256, torch=cache.versions(("torch",)))
    return cached(key, lambda: _torch_outputs(model, dataset))


def outputs_of(artifact: Artifact, dataset: Dataset, *, optimize: bool = False) -> Outputs:
    """An exported file's answers to the dataset, run in a child on the host; cached by file and data."""
    from edgepipe import runner
    from edgepipe.agent import runtimes

    def run() -> Outputs:
        raw = {"inputs": dataset.inputs}  # smaller than what becomes of it
        fed = dataset.feeds(artifact.inputs, artifact.preprocessing) if dataset.more else raw
        return runner.run_file(artifact, fed, optimize=optimize).outputs

    versions = cache.versions(runtimes.find(runtimes.runtime_for(artifact.format)).PACKAGES)
    key = cache.key("outputs", file=artifact.sha256, data=dataset.sha256, optimize=optimize, runtime=versions)
    return cached(key, run)


def scorer(model: Model, dataset: Dataset | None) -> Callable[[Artifact], float | None] | None:
    """A function that scores a file on the host by the model's own metric; None without data.

    Without labels it is the agreement with the module, or with the first file it is asked to score.
    """
    if dataset is None:
        return None
    task = plugins.task(model.task)
    reference: Outputs | None = None

    def score(artifact: Artifact) -> float | None:
        nonlocal reference
        found = outputs_of(artifact, dataset)
        if dataset.labels is None and reference is None:
            reference = framework(model, dataset) if model.network is not None else found
        return _score(task, found, dataset, reference)

    return score


def judge_of(model: Model) -> Judge | None:
    """What a choice between candidate files is made by: the validation set, else the calibration set, else None."""
    dataset = data.validation(model)
    if dataset is None and data.calibrates(model):
        dataset = data.calibration(model)
    return Judge(plugins.task(model.task), dataset) if dataset else None


@dataclass(frozen=True)
class Judge:
    """Holds candidate files against the float file they were made from; `edgepipe.mixed` asks it."""

    task: Any
    dataset: Dataset

    def loss(self, before: Artifact, after: Artifact) -> float:
        """What the task's metric lost, as a share of 1; without labels the share of answers that changed."""
        one, other = outputs_of(before, self.dataset), outputs_of(after, self.dataset)
        first, last = _metric(self.task, one, self.dataset), _metric(self.task, other, self.dataset)
        if first is None or last is None:
            return float(self.task.disagreement(one, other))
        return scores.lost(first, last, self.task)

    def noise_db(self, before: Artifact, after: Artifact) -> float:
        """The noise in the outputs on the first samples, in dB over the signal: higher is worse."""
        import numpy as np

        few = self.dataset.first(_FEW)
        one, other = (np.concatenate([x.ravel() for x in outputs_of(file, few)]) for file in (before, after))
        signal, noise = float(np.square(one).sum()), float(np.square(one - other).sum())
        if not math.isfinite(noise):
            return math.inf
        return 10 * math.log10(max(noise, 1e-30) / max(signal, 1e-30))


def compare(name: str, before: Outputs, after: Outputs, task: Any, tolerance: Tolerance) -> Rung:
    """Hold one rung against the one before.

    Raises:
        IntegrityError: other shapes, numbers that are not finite, or beyond the tolerance.
    """
    import numpy as np

    if [np.shape(x) for x in before] != [np.shape(x) for x in after]:
        shapes = f"{[np.shape(x) for x in before]} became {[np.shape(x) for x in after]}"
        raise IntegrityError(
            f"the output shapes changed: {shapes}", f"rung {name}", "report this file: it is not the model"
        )
    a, b = (np.concatenate([np.ravel(x).astype(np.float64) for x in side]) for side in (before, after))
    if not np.isfinite(b).all():
        raise IntegrityError(
            f"{np.count_nonzero(~np.isfinite(b))} of {b.size} outputs are not finite",
            f"rung {name}",
            "choose another recipe or format",
        )
    delta = np.abs(a - b)
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(np.dot(a, b)) / norm if norm else float(np.array_equal(a, b))
    disagreement = float(task.disagreement(before, after))
    note = ""
    if cosine < tolerance.cosine or disagreement > tolerance.disagreement:
        changed = f"{disagreement:.1%} of the answers changed (at most {tolerance.disagreement:.1%})"
        note = f"cosine {cosine:.4f} (at least {tolerance.cosine}), {changed}"
    if note and not tolerance.meant:
        fix = "choose another recipe or format; the rungs before this one hold"
        raise IntegrityError(f"the model broke here: {note}", f"rung {name}", fix)
    return Rung(name, float(delta.max()), float(delta.mean()), min(cosine, 1.0), disagreement, note)


def _score(task: Any, outputs: Outputs, dataset: Dataset, reference: Outputs | None) -> float | None:
    """The task's metric; without labels the share of answers that are the same as ``reference``'s."""
    if dataset.labels is None:
        return 1.0 - float(task.disagreement(reference, outputs)) if reference is not None else None
    return _metric(task, outputs, dataset)


def _metric(task: Any, outputs: Outputs, dataset: Dataset) -> float | None:
    if dataset.labels is None:
        return None
    value = float(task.metric(outputs, dataset.labels))
    return value if math.isfinite(value) else None


def _check_floor(model: Model, accuracy: Accuracy) -> None:
    if model.floor is None or accuracy.baseline is None or accuracy.metric == AGREEMENT:
        return
    if accuracy.baseline > model.floor if accuracy.lower_is_better else accuracy.baseline < model.floor:
        value, floor = (scores.said(each, accuracy.unit) for each in (accuracy.baseline, model.floor))
        what = f"{accuracy.metric} is {value}, worse than the model's own floor of {floor}"
        raise IntegrityError(what, model.name, "the weights or the data are not the ones model.toml describes")


def _torch_outputs(model: Model, dataset: Dataset, batch: int = _FED) -> Outputs:
    import numpy as np
    import torch

    parts: list[Outputs] = []
    with torch.inference_mode():
        for start in range(0, len(dataset.inputs), batch):
            feeds = dataset.part(slice(start, start + batch), "").feeds(model.inputs, model.preprocessing)
            result = model.module(*(torch.from_numpy(feeds[spec.name]) for spec in model.inputs))
            found = result if isinstance(result, (list, tuple)) else [result]
            parts.append([tensor.float().numpy() for tensor in found])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def cached(key: str, make: Callable[[], Outputs]) -> Outputs:
    """What ``make`` returns, kept in the work cache under ``key``."""
    import numpy as np

    def build(folder: Path) -> None:
        np.savez(folder / "outputs.npz", *make())

    folder, _ = cache.Cache().make(key, build)
    with np.load(folder / "outputs.npz", allow_pickle=False) as arrays:
        return [arrays[f"arr_{number}"] for number in range(len(arrays.files))]
