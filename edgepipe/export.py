"""Make one file of a model: compress the network, export it, quantise the file; every stage cached by its content."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgepipe import artifact, data, isolate, plugins, recipe
from edgepipe.artifact import ExportOptions, Output
from edgepipe.cache import Cache, code, key, versions
from edgepipe.errors import UsageError
from edgepipe.model import Model
from edgepipe.model import load as load_model
from edgepipe.progress import Silent
from edgepipe.schema import Artifact, Step

if TYPE_CHECKING:
    from edgepipe.progress import Progress
    from edgepipe.recipe import Action, Plan

Evaluate = Callable[[Artifact], float | None]
_RECORD = "step.json"
_CALIBRATION = "calibration.npz"

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


def check(model: Model, text: str, format_names: Iterable[str]) -> None:
    """Find out before any work whether a recipe can be followed for a model and all formats.

    Raises:
        UsageError: it can't; the error says why.
    """
    parsed = recipe.parse(text)
    for name in format_names:
        if name not in formats():
            raise plugins.unknown("format", name, formats())
        plan = recipe.plan(parsed, name)
        _chain(model, name)
        if plan.network and model.module is None:
            what = f"{plan.network[0].name} changes the network, but {model.name} is an exported file"
            raise UsageError(what, f"recipe {parsed}", "start from the torch model, or leave the step out")
        if any(action.needs_data for action in (*plan.network, *plan.file)):
            _check_data(model, str(parsed), name)


def make(
    model: Model,
    text: str,
    format_name: str,
    options: ExportOptions | None = None,
    progress: Progress | None = None,
    evaluate: Evaluate | None = None,
    *,
    cache: Cache | None = None,
) -> Made:
    """Follow the recipe ``text`` for one format.

    ``evaluate`` scores a file by the task's metric; without it the accuracies are null. Files live in the work cache
    and are read-only; `artifact.copy` takes them out.

    Raises:
        UsageError: what `check` raises, or a format's own refusal.
        IntegrityError: an exported file is not the model any more, or does not load.
        BoardError: a converter crashed.
        DeadlineError: a converter hung.
    """
    check(model, text, [format_name])
    plan = recipe.plan(recipe.parse(text), format_name)
    listener = progress or cast("Progress", Silent())
    return _Maker(model, plan, format_name, options or ExportOptions(), listener, cache or Cache()).run(evaluate)


def artifact_of_file(path: Path, like: Model | None = None) -> Artifact:
    """The artifact a bare file is, by what the file itself says; layouts and preprocessing are those of ``like``.

    Raises:
        UsageError: no such file, or no format reads it.
        IntegrityError: it is damaged.
    """
    found = load_model(str(path))
    if found.module is not None or found.path is None:
        raise UsageError("this is a torch model, not an exported file", str(path), "export it first")
    names = [path.name] + ([path.with_suffix(".bin").name] if found.format == "openvino" else [])
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


def _chain(model: Model, format_name: str) -> list[str]:
    """Formats from the model's own to ``format_name``, each exported from the one before.

    Raises:
        UsageError: there is no way.
    """
    chain = [format_name]
    if format_name == model.format and model.module is None:
        return chain
    while source := plugins.load("formats", chain[0], "export").SOURCE:
        if source == model.format and model.module is None:
            return chain
        chain.insert(0, source)
    if model.module is None and chain[0] != "null":
        what = f"{format_name} can't be made from {model.format}"
        raise UsageError(what, model.name, f"export to {model.format}, or start from the torch model")
    return chain


def _check_data(model: Model, text: str, format_name: str) -> None:
    known = ", ".join(recipe.without_data(format_name))
    fix = f"use a recipe that needs no data ({known}), or name data in model.toml, [data] calibration"
    if not model.data or not model.data.calibration:
        raise UsageError(f"{text} needs calibration data, and {model.name} has none", f"recipe {text}", fix)
    if len(model.inputs) != 1:
        raise UsageError(
            f"calibration works for one input; {model.name} has {len(model.inputs)}", f"recipe {text}", fix
        )


@dataclass(frozen=True)
class _Stage:
    """One cached stage: its key, its file, how long it took when it was made, and whether it was there already."""

    key: str
    artifact: Artifact
    seconds: float
    note: str
    cached: bool


class _Maker:
    """One run of `make`: walks the stages and keeps their records."""

    def __init__(
        self, model: Model, plan: Plan, format_name: str, options: ExportOptions, progress: Progress, cache: Cache
    ) -> None:
        self.model, self.plan, self.format = model, plan, format_name
        self.options, self.progress, self.cache = options, progress, cache

    def run(self, evaluate: Evaluate | None) -> Made:
        stage, cached = self._export(self.model, "none")
        steps = [self._step("export", {}, stage, evaluate)]
        model, prefix = self.model, ""
        for action in self.plan.network:
            prefix = f"{prefix}+{action.text}".lstrip("+")
            model = self._compress(model, action)
            stage, found = self._export(model, prefix)
            cached = cached and found
            steps.append(self._step(action.name, action.params, stage, evaluate))
        stages = [stage.artifact]
        for action in self.plan.file:
            prefix = f"{prefix}+{action.text}".lstrip("+")
            stage = self._quantize(model, stage, action, prefix)
            cached = cached and stage.cached
            stages.append(stage.artifact)
            steps.append(self._step(action.name, action.params, stage, evaluate))
        return Made(stage.artifact, steps, stages, model, cached)

    def _compress(self, model: Model, action: Action) -> Model:
        """Apply a step to the network. Its identity is that of its parent and of all that went into the step."""
        dataset = data.calibration(model) if action.needs_data else None
        with self.progress.task(f"{action.name} {model.name}", "s"):
            changed: Model = action.module.compress(model, action.params, dataset)
        identity = key(
            "compress",
            parent=model.identity,
            step=action.name,
            params=action.params,
            data=dataset.sha256 if dataset else "",
            code=code(action.module.__file__),
            versions=versions(("torch",)),
        )
        return replace(changed, identity=identity)

    def _export(self, model: Model, prefix: str) -> tuple[_Stage, bool]:
        """Export through the chain of formats; also whether every link of it was cached."""
        stage: _Stage | None = None
        cached = True
        for name in _chain(model, self.format):
            stage = self._link(model, name, stage, prefix)
            cached = cached and stage.cached
        assert stage is not None
        return stage, cached

    def _link(self, model: Model, name: str, before: _Stage | None, prefix: str) -> _Stage:
        module = plugins.load("formats", name, "export")
        chosen = {option: getattr(self.options, option) for option in module.OPTIONS}
        parent = before.key if before else model.identity
        entry = self._key("export", parent, module, name=model.name, format=name, options=chosen, recipe=prefix)
        source = Path(before.artifact.path) if before else model.path

        def work(folder: Path, call: artifact.Call) -> Output:
            output: Output = module.export(model, source, folder, self.options, call)
            return output

        return self._stage(entry, f"export {model.name} to {name}", work, model, name, prefix)

    def _quantize(self, model: Model, before: _Stage, action: Action, prefix: str) -> _Stage:
        dataset = data.calibration(model) if action.needs_data else None
        chosen = {option: getattr(self.options, option) for option in action.module.OPTIONS}
        entry = self._key(
            "quantize",
            before.key,
            action.module,
            step=action.name,
            params=action.params,
            options=chosen,
            recipe=prefix,
            data=dataset.sha256 if dataset else "",
        )

        def work(folder: Path, call: artifact.Call) -> Output:
            path = _calibrate(dataset, before.artifact, action.params, folder) if dataset else None
            try:
                output: Output = action.module.quantize(
                    before.artifact, action.name, action.params, path, folder, self.options, call
                )
            finally:
                if path:
                    path.unlink(missing_ok=True)
            return output

        return self._stage(entry, f"{action.name} {model.name} ({self.format})", work, model, self.format, prefix)

    @staticmethod
    def _key(kind: str, parent: str, module: Any, **parts: Any) -> str:
        """Hash what goes into a stage; the code of the plug-in's whole folder is part of it."""
        sources = sorted(Path(module.__file__).parent.glob("*.py"))
        return key(kind, parent=parent, versions=versions(module.LIBRARIES), code=code(*sources, __file__), **parts)

    def _stage(
        self,
        entry: str,
        title: str,
        work: Callable[[Path, artifact.Call], Output],
        model: Model,
        format_name: str,
        prefix: str,
    ) -> _Stage:
        def fill(folder: Path) -> None:
            start = time.monotonic()
            with self.progress.task(title, "s") as task:
                output = work(folder, partial(isolate.call, tick=task.update))
            made = artifact.build(
                format_name,
                folder,
                output,
                model=model.name,
                recipe=prefix,
                parent_sha256=model.facts.sha256,
                raw_layout=model.raw_layout,
            )
            artifact.save(made, folder)
            record = {"seconds": round(time.monotonic() - start, 3), "note": output.note}
            (folder / _RECORD).write_text(json.dumps(record), encoding="utf-8")

        folder, cached = self.cache.make(entry, fill)
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        return _Stage(entry, artifact.load(folder), record["seconds"], record["note"], cached)

    @staticmethod
    def _step(name: str, params: dict[str, Any], stage: _Stage, evaluate: Evaluate | None) -> Step:
        accuracy = evaluate(stage.artifact) if evaluate else None
        return Step(name, params, stage.artifact.bytes, accuracy, stage.seconds, stage.note)


def _calibrate(dataset: data.Dataset, like: Artifact, params: dict[str, Any], folder: Path) -> Path:
    """Write the first ``samples`` of the data, prepared as the file wants its input, for the converter's process."""
    import numpy as np

    from edgepipe.agent.preprocess import prepare

    inputs = prepare(dataset.inputs[: params.get("samples")], like.preprocessing, dataset.layout)
    path = folder / _CALIBRATION
    np.savez(path, **{like.inputs[0].name: inputs})
    return path
