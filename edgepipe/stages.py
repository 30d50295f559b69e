"""The cached stages a file is made in: compress the network, export it, quantise the file.

Each stage is a folder kept by the hash of its parent and of everything that goes into it, so a chain goes on from
whatever of it is there already.
"""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgepipe import artifact, channels, data, dataflow, edits, formats, isolate, network, plugins, training
from edgepipe.cache import Cache, code, key, versions
from edgepipe.errors import UsageError
from edgepipe.formats import _inputs

if TYPE_CHECKING:
    from edgepipe.artifact import ExportOptions, Output
    from edgepipe.model import Model
    from edgepipe.network import Network
    from edgepipe.progress import Progress
    from edgepipe.recipe import Action
    from edgepipe.schema import Artifact

_RECORD = "step.json"
_TRAINING = (network, training, edits, channels, dataflow)  # whose code a changed network depends on
_CALIBRATION = "calibration.npz"
_ESTIMATOR = Path(__file__).with_name("calibrate.py")  # it imports numpy, and listing steps must not


def chain(model: Model, format_name: str) -> list[str]:
    """Formats on the shortest way from the model to ``format_name``, each exported from the one before.

    Every format says what it is exported from (``SOURCES``, the best first; "" is the framework's own module), and may
    say why it is not from another (``WHY_NOT``).

    Raises:
        UsageError: there is no way.
    """
    start = "" if model.network is not None else model.format
    if start == format_name:
        return [format_name]  # the file itself, checked and taken in
    ways = [[format_name]]
    for way in ways:  # it grows while it is walked: breadth first
        try:
            sources = plugins.load("formats", way[0], "export").SOURCES
        except UsageError:
            continue  # a format that is only read
        if start in sources or way == ["null"]:
            return way
        ways += [[source, *way] for source in sources if source and source not in way]
    why = getattr(plugins.load("formats", format_name, "export"), "WHY_NOT", {}).get(start, "there is no way")
    fix = f"export to {start}, or start from the model it was made of"
    raise UsageError(f"{format_name} can't be made from {start}: {why}", model.name, fix)


@dataclass(frozen=True)
class FileStage:
    """A file: its key, its artifact, what is on record of it (as `schema.Step` names it), and whether it was there."""

    key: str
    artifact: Artifact
    record: dict[str, Any]
    cached: bool


@dataclass(frozen=True)
class NetworkStage:
    """A changed network: the model with it, its folder, the step's record and seconds, and whether it was there."""

    model: Model
    folder: Path
    record: Network
    seconds: float
    cached: bool


class Stages:
    """Makes the stages of one model in one format."""

    def __init__(
        self, model: Model, format_name: str, options: ExportOptions, progress: Progress, cache: Cache
    ) -> None:
        self.model, self.format = model, format_name
        self.options, self.progress, self.cache = options, progress, cache

    def compress(self, model: Model, before: Path | None, action: Action, params: dict[str, Any]) -> NetworkStage:
        """Apply a step to the network of stage ``before`` (None: the model's own), which ``model`` holds.

        The result's identity is that of its parent and of all that went into the step.
        """
        task = plugins.task(self.model.task)
        entry = key(
            "compress",
            parent=model.identity,
            step=action.name,
            params=params,
            data=data.fingerprint(self.model, action.module.needs(params)),
            code=code(*(part.__file__ for part in (action.module, task, *_TRAINING)), *_shared(action.module)),
            versions=versions(("torch", *action.module.LIBRARIES)),
        )

        def fill(folder: Path) -> None:
            start = time.monotonic()
            with self.progress.task(f"{action.text} {self.model.name}", "s") as task:
                network.compress(self.model, before, action.name, params, folder, task.update)
            _write(folder, {"seconds": round(time.monotonic() - start, 3)})

        folder, cached = self.cache.make(entry, fill)
        changed, record = network.load(self.model, folder, entry)
        return NetworkStage(changed, folder, record, _read(folder)["seconds"], cached)

    def export(self, model: Model, prefix: str) -> tuple[FileStage, bool]:
        """Export through the chain of formats; also whether every link of it was cached."""
        stage: FileStage | None = None
        cached = True
        for name in chain(model, self.format):
            stage = self._link(model, name, stage, prefix)
            cached = cached and stage.cached
        assert stage is not None
        return stage, cached

    def _link(self, model: Model, name: str, before: FileStage | None, prefix: str) -> FileStage:
        module = plugins.load("formats", name, "export")
        chosen = {option: getattr(self.options, option) for option in module.OPTIONS}
        parent = before.key if before else model.identity
        entry = self._key(
            "export",
            parent,
            module,
            name=model.name,
            format=name,
            options=chosen,
            recipe=prefix,
            layout=model.raw_layout,
        )
        source = Path(before.artifact.path) if before else model.path

        def work(folder: Path, call: artifact.Call) -> Output:
            output: Output = module.export(model, source, folder, self.options, call)
            return output

        return self._stage(entry, f"export {model.name} to {name}", work, model, name, prefix)

    def quantize(self, model: Model, before: FileStage, action: Action, prefix: str, **more: Any) -> FileStage:
        """Quantise the file of a stage; ``more`` are parameters that the user can't name, such as layers to keep."""
        params = {**action.params, **more}
        dataset = self._calibration(model) if action.needs else None
        chosen = {option: getattr(self.options, option) for option in action.module.OPTIONS}
        entry = self._key(
            "quantize",
            before.key,
            action.module,
            step=action.name,
            params=params,
            options=chosen,
            recipe=prefix,
            data=f"{dataset.name} {dataset.sha256}" if dataset else "",
        )

        def work(folder: Path, call: artifact.Call) -> Output:
            path = _calibrate(dataset, before.artifact, params, folder) if dataset else None
            try:
                output: Output = action.module.quantize(
                    before.artifact, action.name, params, path, folder, self.options, call
                )
            finally:
                if path:
                    path.unlink(missing_ok=True)
            if dataset and (self._made_up(model) or model.given):
                return replace(output, note=f"calibrated on {dataset.name}; {output.note}")
            return output

        return self._stage(entry, f"{action.name} {model.name} ({self.format})", work, model, self.format, prefix)

    def adapt(self, model: Model, before: FileStage) -> FileStage | None:
        """Fold the preprocessing into the file of a stage, and change its layout, as the options ask; None for no."""
        if not _inputs.wanted(before.artifact.preprocessing, self.options):
            return None
        module = plugins.load("formats", self.format, "adapt")
        chosen = {"layout": self.options.layout, "fold": self.options.fold}
        entry = self._key("adapt", before.key, module, options=chosen, recipe=before.artifact.recipe)

        def work(folder: Path, call: artifact.Call) -> Output:
            output: Output = module.adapt(before.artifact, folder, self.options, call)
            return output

        title = f"adapt the input of {model.name} ({self.format})"
        return self._stage(entry, title, work, model, self.format, before.artifact.recipe)

    @staticmethod
    def _key(kind: str, parent: str, module: Any, **parts: Any) -> str:
        """Hash what goes into a stage; the code of the plug-in's folder and of what they share is part of it."""
        own = sorted(Path(module.__file__).parent.glob("*.py"))
        sources = [*own, *_shared(formats), _ESTIMATOR, Path(__file__)]
        return key(kind, parent=parent, versions=versions(module.LIBRARIES), code=code(*sources), **parts)

    def _stage(
        self,
        entry: str,
        title: str,
        work: Callable[[Path, artifact.Call], Output],
        model: Model,
        format_name: str,
        prefix: str,
    ) -> FileStage:
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
            record = {"seconds": round(time.monotonic() - start, 3), "note": output.note, **_facts(made)}
            _write(folder, record)

        folder, cached = self.cache.make(entry, fill)
        return FileStage(entry, artifact.load(folder), _read(folder), cached)

    def _calibration(self, model: Model) -> data.Dataset:
        return data.synthetic(model) if self._made_up(model) else data.calibration(model)

    def _made_up(self, model: Model) -> bool:
        return self.options.synthetic and not data.calibrates(model)


def _shared(module: ModuleType) -> list[Path]:
    """What the plug-ins of a folder share: files whose names begin with an underscore."""
    return sorted(Path(str(module.__file__)).parent.glob("_[!_]*.py"))


def _facts(made: Artifact) -> dict[str, Any]:
    """What else is on record of a file: its size by zstd, and how many weights it stores and how many are zero."""
    files = [Path(made.path).parent / ref.name for ref in made.files]
    found: dict[str, Any] = {"bytes_zstd": sum(artifact.zstd_size(file) for file in files)}
    try:
        counter = plugins.load("formats", made.format, "inspect")
    except UsageError:
        return found
    counts = isolate.call(f"{counter.__name__}:weights", {"path": made.path})
    return {**found, "weights": counts["stored"], "zeros": counts["zeros"]}


def _calibrate(dataset: data.Dataset, like: Artifact, params: dict[str, Any], folder: Path) -> Path:
    """Write the first ``samples`` of the data, prepared as the file wants its input, for the converter's process."""
    import numpy as np

    few = dataset.first(params["samples"]) if "samples" in params else dataset
    path = folder / _CALIBRATION
    with zipfile.ZipFile(path, "w") as archive:  # not savez, whose own argument is called "file", as an input may be
        for name, values in few.feeds(like.inputs, like.preprocessing).items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)
    return path


def _write(folder: Path, record: dict[str, Any]) -> None:
    (folder / _RECORD).write_text(json.dumps(record), encoding="utf-8")


def _read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    return found
