"""Make one file of a model by a recipe: walk its stages, score each, and hold each against the gate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgepipe import artifact, data, mixed, plugins, recipe, scores, stats
from edgepipe.artifact import ExportOptions, Output
from edgepipe.cache import Cache
from edgepipe.errors import GateError, UsageError
from edgepipe.formats import _inputs
from edgepipe.model import Model
from edgepipe.model import load as load_model
from edgepipe.progress import Silent
from edgepipe.record import Step
from edgepipe.schema import Artifact
from edgepipe.stages import FileStage, Stages, chain

if TYPE_CHECKING:
    from edgepipe.mixed import Judge
    from edgepipe.progress import Progress
    from edgepipe.recipe import Action, Plan

Evaluate = Callable[[Artifact], float | None]

ADAPTED = "input"  # the step that folds the preprocessing in and changes the layout

__all__ = ["ExportOptions", "Made", "artifact_of_file", "check", "formats", "make"]


@dataclass(frozen=True)
class Made:
    """What `make` made.

    ``stages`` are the files on the way: the export of the (compressed) network, then one for each step on the file;
    the last one is ``artifact``. ``steps[0]`` is the plain export, named "export"; then one for each step of the
    recipe. ``model`` is the compressed model, or the model itself where the recipe leaves the network alone.
    ``cached`` is true where no work at all was done.
    """

    artifact: Artifact
    steps: list[Step]
    stages: list[Artifact]
    model: Model
    cached: bool

    @staticmethod
    def of_file(found: Artifact, model: Model) -> Made:
        """A file somebody else made, to be held against ``model``."""
        return Made(found, [Step("export", bytes=found.bytes)], [found], model, cached=True)


def formats() -> list[str]:
    """Formats that can be exported to, sorted."""
    found = []
    for name in plugins.names("formats"):
        try:
            plugins.load("formats", name, "export")
        except UsageError:
            continue
        found.append(name)
    return found


def check(model: Model, text: str, format_names: Iterable[str], options: ExportOptions | None = None) -> None:
    """Find out before any work whether a recipe can be followed for a model and all formats, as the options ask.

    Raises:
        UsageError: it can't; the error says why.
    """
    parsed, options = recipe.parse(text), options or ExportOptions()
    for name in format_names:
        if name not in formats():
            raise plugins.unknown("format", name, formats())
        plan = recipe.plan(parsed, name)
        chain(model, name)
        if plan.network and model.network is None:
            what = f"{plan.network[0].name} changes the network, but {model.name} is an exported file"
            raise UsageError(what, f"recipe {parsed}", "start from the torch model, or leave the step out")
        if plan.network and model.network is not None and model.network.traced:
            what = f"{plan.network[0].name} changes layers, and an exported program has only operators"
            raise UsageError(what, f"recipe {parsed}", "start from model.py and .safetensors, or leave the step out")
        for action in plan.network:
            _check_training(model, action)
            if model.given and action.needs:
                what = f"{action.text} changes the network and reads the data that model.toml names"
                raise UsageError(what, "--calibration", "name the data there, in [data], or leave the step out")
        _check_apart(plan, name, options)
        _check_input(model, name, options)
        if not options.synthetic and any(action.needs == "calibration" for action in (*plan.network, *plan.file)):
            _check_data(model, str(parsed), name)


def make(
    model: Model,
    text: str,
    format_name: str,
    options: ExportOptions | None = None,
    progress: Progress | None = None,
    evaluate: Evaluate | None = None,
    *,
    max_drop: float | None = None,
    judge: Judge | None = None,
    cache: Cache | None = None,
) -> Made:
    """Follow the recipe ``text`` for one format.

    ``evaluate`` scores a file by the task's metric; without it the accuracies are null. ``max_drop`` is the largest
    loss of it against the plain export, as a share of 1; each step is held against it, but one that the next repairs.
    ``judge`` is what `mixed` chooses by.
    Files live in the work cache and are read-only; `artifact.copy` takes them out.

    Raises:
        UsageError: what `check` raises, or a format's own refusal.
        GateError: a step lost more than ``max_drop``; the steps after it were not begun.
        IntegrityError: an exported file is not the model any more, or does not load.
        BoardError: a converter crashed.
        DeadlineError: a converter hung.
    """
    options = options or ExportOptions()
    check(model, text, [format_name], options)
    plan = recipe.plan(recipe.parse(text), format_name)
    listener = progress or cast("Progress", Silent())
    stages = Stages(model, format_name, options, listener, cache or Cache())
    return _Walk(stages, plan, evaluate, max_drop, judge).run()


def artifact_of_file(path: Path, like: Model | None = None) -> Artifact:
    """The artifact a bare file is, by what the file itself says; layouts and preprocessing are those of ``like``.

    Raises:
        UsageError: no such file, or no format reads it.
        IntegrityError: it is damaged.
    """
    found = load_model(str(path))
    if found.network is not None or found.path is None:
        raise UsageError("this is a torch model, not an exported file", str(path), "export it first")
    loader = plugins.load("formats", found.format, "load")
    names = [path.name, *(loader.companions(path) if hasattr(loader, "companions") else ())]
    inputs, preprocessing, raw = found.inputs, found.preprocessing, found.raw_layout
    if like and like.inputs and len(inputs) == len(like.inputs):
        layout = _layout_of(inputs[0].shape, like)
        inputs = [replace(inputs[0], layout=layout), *inputs[1:]]
        preprocessing, raw = replace(like.preprocessing, layout=layout), like.raw_layout
    output = Output(names, inputs, found.outputs, preprocessing)
    parent = like.facts.sha256 if like else ""
    return artifact.build(
        found.format,
        path.absolute().parent,
        output,
        model=found.name,
        recipe="none",
        parent_sha256=parent,
        raw_layout=raw,
    )


def _layout_of(shape: list[int], like: Model) -> str:
    """The layout in which the sample of ``like`` has this shape: its own, else channels last."""
    own = like.preprocessing.layout
    if shape[1:] == like.inputs[0].shape[1:] or "C" not in own:
        return own
    return own.replace("C", "") + "C"


def _check_input(model: Model, name: str, options: ExportOptions) -> None:
    """Refuse what the format can't do with the input, or what makes no sense for the model."""
    _check_dynamic(model, name, options.dynamic)
    if not options.layout and not options.fold:
        return
    if not model.inputs:
        raise UsageError("the model has no inputs", model.name, "leave out --layout and --fold-preprocessing")
    try:
        plugins.load("formats", name, "adapt")
    except UsageError:
        where = "--layout, --fold-preprocessing"
        raise UsageError(f"the input of {name} files can't be changed", where, "leave them out") from None
    _inputs.check(model.preprocessing, model.inputs[0].dtype, options, model.name)


def _check_dynamic(model: Model, name: str, dynamic: dict[str, list[int]]) -> None:
    """Refuse free axes that the format can't have, or the model does not."""
    flag = "--dynamic"
    if dynamic and name == "tflite":
        raise UsageError("tflite files have a fixed batch and fixed shapes", flag, "leave it out, or export to onnx")
    known = {spec.name: spec.shape for spec in model.inputs}
    for key, axes in dynamic.items():
        if key and key not in known:
            raise plugins.unknown("input", key, list(known))
        # A free batch is that of the inputs that have one: a scalar beside them has none.
        shapes = [known[key]] if key else [shape for shape in known.values() if shape] or list(known.values())
        for axis, shape in product(axes, shapes):
            if axis >= len(shape):
                raise UsageError(f"the input has {len(shape)} axes, 0 to {len(shape) - 1}", f"{flag} {key}={axis}")
            if key and model.network is None and shape[axis] > 0:
                what = f"the file fixes axis {axis} at {shape[axis]}"
                raise UsageError(what, f"{flag} {key or 'batch'}", "export it again from where it came")


def _check_apart(plan: Plan, name: str, options: ExportOptions) -> None:
    """Refuse what would come after a step whose base is a file of its own, or a format that has one file."""
    for place, action in enumerate(plan.network, 1):
        reason = action.module.apart(action.params) if hasattr(action.module, "apart") else ""
        flags = {"--layout": options.layout, "--fold-preprocessing": options.fold}
        after = [step.name for step in (*plan.network[place:], *plan.file)] + [flag for flag in flags if flags[flag]]
        if reason and (after or name != "onnx"):
            what = f"{reason}; {after[0] if after else f'a {name} file'} would not keep it"
            raise UsageError(what, f"recipe {plan.recipe}", "merge it, or export it to onnx as it is")


def _check_training(model: Model, action: Action) -> None:
    """Refuse a step that does nothing but train, or whose epochs the user named, where there is nothing to train on."""
    untrainable = action.needs == "training" and not _can_train(model, action)
    only = getattr(action.module, "REPAIRS", False) or getattr(action.module, "LEARNS", False)
    if untrainable and (only or "epochs" in action.given):
        what = f"{action.text} trains, and {model.name} has no training data"
        fix = "name data in model.toml, [data] training"
        raise UsageError(what, f"step {action.text}", fix + (", or epochs=0" if "epochs" in action.given else ""))


def _can_train(model: Model, action: Action) -> bool:
    """Whether there are data to train on; those for calibration do for a step that learns from the float model."""
    paths = model.data
    if paths is None:
        return False
    few = getattr(action.module, "UNLABELLED", False) and paths.calibration
    full = len(model.inputs) == 1 and paths.full_training and paths.full_training.installed
    return bool(few or paths.training or full)


def _check_data(model: Model, text: str, format_name: str) -> None:
    known = ", ".join(recipe.without_data(format_name))
    fix = (
        f"use a recipe that needs no data ({known}), name data by --calibration or in model.toml, or "
        "say --synthetic-calibration and take what comes"
    )
    if not data.calibrates(model):
        raise UsageError(f"{text} needs calibration data, and {model.name} has none", f"recipe {text}", fix)


class _Walk:
    """One run of `make`: from stage to stage, with the accuracy after each and the gate."""

    def __init__(
        self, stages: Stages, plan: Plan, evaluate: Evaluate | None, max_drop: float | None, judge: Judge | None
    ) -> None:
        self.stages, self.plan, self.evaluate, self.max_drop, self.judge = stages, plan, evaluate, max_drop, judge
        self.steps: list[Step] = []

    def run(self) -> Made:
        model, prefix, folder = self.stages.model, "", None
        stage, cached = self.stages.export(model, "none")
        self._step("export", {}, stage, model)
        for action in self.plan.network:
            prefix = f"{prefix}+{action.text}".lstrip("+")
            params = dict(action.params)
            if action.needs == "training" and not _can_train(model, action):
                params["epochs"] = 0  # the step's own default; `check` has refused what the user asked for by name
            changed = self.stages.compress(model, folder, action, params)
            model, folder = changed.model, changed.folder
            stage, found = self.stages.export(model, prefix)
            cached = cached and found and changed.cached
            told = {"seconds": changed.seconds, "note": changed.record.note, "sparsity": changed.record.sparsity}
            self._step(action.name, params, stage, model, **told)
            self._gate(action)
        made = [stage]
        for action in self.plan.file:
            prefix = f"{prefix}+{action.text}".lstrip("+")
            made.append(self._quantize(model, made[-1], action, prefix))
            self._step(action.name, action.params, made[-1], model, sparsity=self.steps[-1].sparsity)
            self._gate(action)
        adapted = self.stages.adapt(model, made[-1])
        if adapted:
            made.append(adapted)
            self._step(ADAPTED, {}, adapted, model, sparsity=self.steps[-1].sparsity)
        cached = cached and all(stage.cached for stage in made)
        return Made(made[-1].artifact, self.steps, [stage.artifact for stage in made], model, cached)

    def _quantize(self, model: Model, before: FileStage, action: Action, prefix: str) -> FileStage:
        if action.name != "mixed":
            return self.stages.quantize(model, before, action, prefix)
        if self.judge is None:
            fix = "name data in model.toml, [data] validation, or use int8"
            raise UsageError("mixed chooses by the loss, and there is no data to see it on", model.name, fix)
        limit = min(self.max_drop if self.max_drop is not None else 1.0, action.params["drop"])
        return mixed.walk(self.stages, model, before, action, prefix, self.judge, limit)

    def _step(self, name: str, params: dict[str, Any], stage: FileStage, model: Model, **more: Any) -> None:
        step = Step(
            name,
            params,
            bytes=stage.artifact.bytes,
            accuracy=self.evaluate(stage.artifact) if self.evaluate else None,
            bytes_gzip=stage.artifact.bytes_gzip,
            parameters=model.facts.parameters,
            macs=model.facts.macs,
            **{**stage.record, **more},
        )
        self.steps.append(step)

    def _gate(self, action: Action) -> None:
        """Hold the step just done against the plain export."""
        first, last = self.steps[0].accuracy, self.steps[-1].accuracy
        if self.max_drop is None or first is None or last is None:
            return
        task = plugins.task(self.stages.model.task)
        drop, unit = scores.lost(first, last, task), scores.unit(task)
        if stats.within(drop, self.max_drop):
            return
        after = [*self.plan.network, *self.plan.file][len(self.steps) - 1 :]
        if after and getattr(after[0].module, "REPAIRS", False):
            return
        source = self.stages.model
        values = f"{scores.said(first, unit)} -> {scores.said(last, unit)}"
        what = f"{source.metric or 'agreement'} {scores.verb(task)} by {drop:.2%} at {action.text} ({values})"
        fix = "a gentler setting, distill after it, mixed for int8, or a larger --max-drop"
        where = f"{source.name} {self.plan.recipe} {self.stages.format}, step {action.text}"
        raise GateError(f"{what}, more than the {self.max_drop:.2%} allowed; nothing was activated", where, fix)
