"""Data sets of a model: read from .npz or IDX files, checked, never unpickled."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgepipe import plugins
from edgepipe.cache import hash_file
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.idx import read_idx
from edgepipe.schema import Preprocessing, TensorSpec

if TYPE_CHECKING:
    import numpy as np

NPZ_LIMIT = 8 << 30
_WITHOUT = "use a recipe that needs no data: none, fp16 or dynamic"


@dataclass(frozen=True)
class DataPaths:
    """Where a model's data sets are. ``layout`` is that of the raw arrays.

    ``full`` and ``full_training`` are larger sets that need not be installed. ``validation`` is what a choice between
    models is made on; the evaluation set is for the last word alone.
    """

    layout: str = ""
    calibration: Path | None = None
    evaluation: Path | None = None
    training: Path | None = None
    validation: Path | None = None
    full: IdxPair | None = None
    full_training: IdxPair | None = None
    license: str = ""


@dataclass(frozen=True)
class IdxPair:
    """Two IDX files of which the first ``limit`` samples are used; ``package`` is what installs them."""

    images: Path
    labels: Path
    package: str = ""
    limit: int | None = None

    @property
    def installed(self) -> bool:
        """Whether both files are there."""
        return self.images.is_file() and self.labels.is_file()


@dataclass(frozen=True)
class Dataset:
    """Raw inputs (samples first, in ``layout`` without the batch's letter changed) and class labels, or None.

    ``inputs`` are for a model's first input; ``more`` has those for further inputs, by name, fed as they are.
    """

    name: str
    inputs: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any] | None
    layout: str
    sha256: str
    more: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)

    def first(self, count: int) -> Dataset:
        """The first ``count`` samples, as a set with an identity of its own."""
        return self.part(slice(count), f"{self.sha256}/{count}")

    def part(self, chosen: Any, sha256: str) -> Dataset:
        """The samples that the index ``chosen`` chooses, as a set of the identity ``sha256``."""
        labels = None if self.labels is None else self.labels[chosen]
        more = {name: values[chosen] for name, values in self.more.items()}
        return replace(self, inputs=self.inputs[chosen], labels=labels, sha256=sha256, more=more)

    def feeds(self, inputs: list[TensorSpec], preprocessing: Preprocessing) -> dict[str, np.ndarray[Any, Any]]:
        """What the model or file with these inputs is fed with, by input name."""
        from edgepipe.agent.preprocess import prepare

        first = next(spec.name for spec in inputs if spec.name not in self.more)
        return {first: prepare(self.inputs, preprocessing, self.layout), **self.more}


@dataclass(frozen=True)
class Given:
    """Data that the user named for a model: what to calibrate on, and what is held out to judge by, if enough is there.

    ``sha256`` is that of the file, or over the lines of `sha256sum` of a folder's files in the order of their names.
    """

    source: str
    sha256: str
    calibration: Dataset
    held: Dataset | None

    @property
    def facts(self) -> dict[str, Any]:
        """What a report says of it."""
        held = len(self.held.inputs) if self.held else 0
        samples = len(self.calibration.inputs)
        return {"source": self.source, "sha256": self.sha256, "samples": samples, "held_out": held}


class _Model(Protocol):
    """What this module needs to know of a model (edgepipe.model.Model fits)."""

    @property
    def name(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def data(self) -> DataPaths | None: ...
    @property
    def inputs(self) -> list[TensorSpec]: ...
    @property
    def preprocessing(self) -> Preprocessing: ...
    @property
    def labels(self) -> list[str]: ...
    @property
    def given(self) -> Given | None: ...


def calibrates(model: _Model) -> bool:
    """Whether the model has data to calibrate on: named by the user, or by its card."""
    return bool(model.given or (model.data and model.data.calibration))


def calibration(model: _Model) -> Dataset:
    """The model's calibration set: what the user named, else what its card does.

    Raises:
        UsageError: the model has none, or its file is missing.
        IntegrityError: the file is damaged or does not fit the model.
    """
    if model.given:
        return model.given.calibration
    if not model.data or not model.data.calibration:
        raise UsageError(f"{model.name} has no calibration data", "model.toml, [data] calibration", _WITHOUT)
    return _shipped(model, model.data.calibration, "calibration")


def synthetic(model: _Model, samples: int = 256) -> Dataset:
    """Made-up raw inputs, seeded and uniform over the preprocessing's range: calibration for want of anything better.

    Raises:
        UsageError: the input's shape has free dimensions besides the batch.
    """
    import numpy as np

    layout = model.data.layout if model.data else model.preprocessing.layout
    shape = expected_shape(model, layout) or model.inputs[0].shape[1:]
    if min(shape, default=1) < 1:
        fix = "say --input-shape"
        raise UsageError(f"data for an input of shape {shape} can't be made up", model.name, fix)
    low, high = model.preprocessing.range
    values = np.random.default_rng(0).uniform(low, high, (samples, *shape)).astype(np.float32)
    inputs = np.rint(values).astype(model.inputs[0].dtype) if "int" in model.inputs[0].dtype else values
    digest = hashlib.sha256(inputs.tobytes()).hexdigest()
    return Dataset(f"synthetic, uniform over {low:g} to {high:g}", inputs, None, layout, digest)


def evaluation(model: _Model, which: str = "auto") -> Dataset | None:
    """The model's evaluation set: "shipped", "full", or "auto" = the full one where it is installed.

    Under "auto", a model that names no data has what is held out of the data the user named, else None.

    Raises:
        UsageError: the set asked for is not there, or ``which`` is not a known word.
        IntegrityError: a file is damaged or does not fit the model.
    """
    if which not in ("auto", "shipped", "full"):
        raise UsageError(f"no such evaluation set: {which}", "evaluation", "use auto, shipped or full")
    data = model.data
    pair = data.full if data else None
    if data and pair and pair.installed and which != "shipped":
        return _full(model, pair)
    if data and which == "full":
        raise UsageError(
            "the full evaluation set is not installed" if pair else f"{model.name} names no full evaluation set",
            str(pair.images if pair else "model.toml, [data.full]"),
            f"install {(pair and pair.package) or 'it'}, or use the shipped set",
        )
    if data and data.evaluation:
        return _shipped(model, data.evaluation, "evaluation")
    if which == "auto":
        return model.given.held if model.given else None
    raise UsageError(f"{model.name} has no evaluation data", "model.toml, [data] evaluation", "add it there")


def training(model: _Model) -> Dataset | None:
    """The model's training set: the full one where it is installed, else the shipped one, else None.

    A full set has images alone: it is nothing for a model of several inputs.

    Samples that are also in the validation or evaluation set are left out, so that nothing is judged on what it learnt.

    Raises:
        IntegrityError: a file is damaged, does not fit the model, or holds no labels.
    """
    data = model.data
    if data and data.full_training and data.full_training.installed and len(model.inputs) == 1:
        found = _full(model, data.full_training)
    elif data and data.training:
        found = _shipped(model, data.training, "training")
    else:
        return None
    if found.labels is None:
        raise IntegrityError("the training data has no labels", "model.toml, [data] training", "add an array labels")
    held = [part for part in (validation(model), evaluation(model)) if part is not None]
    return without(found, held)


def fingerprint(model: _Model, needs: str) -> str:
    """A hash of the files that a step reading ``needs`` ("", "calibration" or "training") reads; "" for none.

    Raises:
        UsageError: a file is missing.
    """
    data = model.data
    if not data or not needs:
        return ""
    files = [data.calibration]
    if needs == "training":
        files += [data.validation, data.evaluation]
        pair = data.full_training
        full = pair if pair and pair.installed and len(model.inputs) == 1 else None
        files += [full.images, full.labels] if full else [data.training]
        files += [data.full.images] if data.full and data.full.installed else []
    limits = [pair.limit if pair else None for pair in (data.full, data.full_training)]
    try:
        return hashlib.sha256(repr([limits, *(hash_file(file) for file in files if file)]).encode()).hexdigest()
    except OSError as error:
        raise UsageError(f"no such data file: {error.filename}", "model.toml, [data]", "check the path") from None


def validation(model: _Model) -> Dataset | None:
    """The set a choice between candidates is made on, or None.

    Raises:
        IntegrityError: the file is damaged or does not fit the model.
    """
    if not model.data or not model.data.validation:
        return None
    return _shipped(model, model.data.validation, "validation")


def without(dataset: Dataset, held: list[Dataset]) -> Dataset:
    """``dataset`` less every sample that is, byte for byte, in one of ``held``."""
    import numpy as np

    taken = {_digest(sample) for part in held for sample in part.inputs}
    kept = np.array([_digest(sample) not in taken for sample in dataset.inputs], bool)
    if kept.all():
        return dataset
    digest = hashlib.sha256(f"{dataset.sha256} less {len(kept) - int(kept.sum())}".encode() + kept.tobytes())
    return dataset.part(kept, digest.hexdigest())


def _digest(sample: np.ndarray[Any, Any]) -> bytes:
    return hashlib.blake2b(sample.tobytes(), digest_size=16).digest()


def load_npz(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """All arrays of an .npz file, without unpickling anything.

    Raises:
        UsageError: no such file.
        IntegrityError: it is not a sound .npz of plain arrays, or would unpack to more than 8 GiB.
    """
    import numpy as np

    if not path.is_file():
        raise UsageError("no such data file", str(path), "check the path in model.toml, [data]")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
        if size > NPZ_LIMIT:
            raise IntegrityError(f"the data would unpack to {size} bytes", str(path), "split the data set")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, KeyError, SyntaxError) as error:
        fix = "write it with numpy.savez, plain arrays only"
        raise IntegrityError(f"the data file can't be read: {error}", str(path), fix) from None


def check(dataset: Dataset, model: _Model, where: str) -> Dataset:
    """Return ``dataset`` if its inputs and labels fit the model.

    Raises:
        IntegrityError: no samples, a wrong shape or dtype, NaN or infinity, or labels that don't match.
    """
    import numpy as np

    from edgepipe.agent.preprocess import prepare

    inputs, task = dataset.inputs, plugins.task(model.task)
    fix = "make the data set again"
    if inputs.dtype.kind not in "uif" or inputs.ndim < 1:
        raise IntegrityError(f"inputs are {inputs.dtype} of shape {list(inputs.shape)}, not numbers", where, fix)
    if len(inputs) == 0:
        raise IntegrityError("the data set is empty", where, fix)
    expected = expected_shape(model, dataset.layout)
    if expected is not None and not _fits(list(inputs.shape[1:]), expected):
        what = (
            f"inputs have shape {list(inputs.shape[1:])} per sample; {model.name} takes {expected} ({dataset.layout})"
        )
        raise IntegrityError(what, where, fix)
    if inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
        raise IntegrityError("inputs hold NaN or infinity", where, fix)
    if getattr(task, "WANTS_INPUT", False):
        dataset = replace(dataset, labels=prepare(inputs, model.preprocessing, dataset.layout))
    if dataset.labels is not None:
        wrong = getattr(task, "wrong_labels", _wrong_labels)(dataset.labels, len(inputs), len(model.labels))
        if wrong:
            raise IntegrityError(wrong, where, fix)
    return dataset


def expected_shape(model: _Model, layout: str) -> list[int] | None:
    """The shape of one raw sample in ``layout``, from the model's first input; None if the layouts say too little."""
    spec = model.inputs[0]
    own = spec.layout or model.preprocessing.layout
    if len(own) != len(spec.shape) or sorted(own) != sorted(layout):
        return spec.shape[1:] if own == layout else None
    sizes = dict(zip(own, spec.shape, strict=True))
    return [sizes[letter] for letter in layout][1:]


def _fits(shape: list[int], expected: list[int]) -> bool:
    pairs = zip(shape, expected, strict=False)
    return len(shape) == len(expected) and all(want in (-1, have) for have, want in pairs)


def _wrong_labels(labels: np.ndarray[Any, Any], samples: int, classes: int) -> str:
    """What is wrong with class labels; empty where nothing is. A task whose labels are others has its own."""
    if labels.shape != (samples,) or labels.dtype.kind not in "ui":
        return f"labels are {labels.dtype} of shape {list(labels.shape)}, not one integer for each of {samples} samples"
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes and high >= classes):
        return f"labels go from {low} to {high}; the model has {classes} classes"
    return ""


def _shipped(model: _Model, path: Path, name: str) -> Dataset:
    arrays = load_npz(path)
    if "inputs" not in arrays:
        raise IntegrityError("the data file has no array named inputs", str(path), "name the arrays inputs and labels")
    layout = model.data.layout if model.data else ""
    more = _more(arrays, model, str(path))
    dataset = Dataset(name, arrays["inputs"], arrays.get("labels"), layout, hash_file(path), more)
    return check(dataset, model, str(path))


def _more(arrays: dict[str, np.ndarray[Any, Any]], model: _Model, where: str) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays for the inputs after the first, by name, in the inputs' types.

    Raises:
        IntegrityError: one is missing, or has other samples or another shape.
    """
    import numpy as np

    found = {}
    for spec in model.inputs[1:]:
        values = arrays.get(spec.name)
        if values is None:
            raise IntegrityError(f"the data file has no array for the input {spec.name}", where, "add it")
        if len(values) != len(arrays["inputs"]) or not _fits(list(values.shape[1:]), spec.shape[1:]):
            what = f"{spec.name} has shape {list(values.shape)} for {len(arrays['inputs'])} samples of {spec.shape[1:]}"
            raise IntegrityError(what, where, "make the data set again")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise IntegrityError(f"{spec.name} holds NaN or infinity", where, "make the data set again")
        found[spec.name] = values.astype(spec.dtype)
    return found


def _full(model: _Model, pair: IdxPair) -> Dataset:
    """The first ``limit`` images of an IDX pair, uint8, with the channel axis where the data's layout has its C."""
    images, labels = read_idx(pair.images, pair.limit), read_idx(pair.labels, pair.limit)
    layout = model.data.layout if model.data else ""
    if images.ndim == 3 and "C" in layout:  # noqa: PLR2004  samples, rows, columns
        import numpy as np

        images = np.expand_dims(images, layout.index("C"))
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    dataset = Dataset(f"full, {len(images)} images", images, labels.astype("int64"), layout, digest)
    return check(dataset, model, str(pair.images))
