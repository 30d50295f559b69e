"""What a parity check is fed with: a model's own data where it has some, else several seeded distributions.

Which of them it was is part of every result: agreement on noise is a weaker proof than agreement on real inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.errors import UsageError

if TYPE_CHECKING:
    from edgepipe.data import Dataset
    from edgepipe.schema import Artifact, Preprocessing, TensorSpec

DISTRIBUTIONS = ("normal", "uniform", "sparse")
_SPIKES = 0.05  # share of a sparse input that is not in the middle of the range, but at one of its ends
_WIDTH = 3.0  # standard deviations of a normal input from the middle of the range to an end of it


@dataclass(frozen=True)
class Samples:
    """Inputs, the same for every file they are fed to; ``source`` says in words what they are.

    Either ``dataset`` (raw, preprocessed as each file asks), or ``arrays`` with one array for each input, samples
    first, in the layouts of the file they were made for.
    """

    source: str
    dataset: Dataset | None = None
    arrays: tuple[Any, ...] = ()

    def feeds(self, artifact: Artifact) -> dict[str, Any]:
        """The arrays for ``artifact`` by input name, preprocessed and laid out as it wants them.

        Raises:
            UsageError: the file has other inputs than the one the samples were made for.
        """
        if self.dataset is not None:
            return self.dataset.feeds(artifact.inputs, artifact.preprocessing)
        if len(artifact.inputs) != len(self.arrays):
            what = f"the file has {len(artifact.inputs)} inputs, the model {len(self.arrays)}"
            raise UsageError(what, artifact.path, "it is another model, or its inputs were folded in")
        pairs = zip(artifact.inputs, self.arrays, strict=True)
        return {spec.name: _laid_out(array, spec, artifact.path) for spec, array in pairs}


def choose(artifact: Artifact, dataset: Dataset | None, count: int, seed: int = 0) -> Samples:
    """The first ``count`` samples of ``dataset``; without one, ``count`` made-up ones for the file's inputs.

    Raises:
        UsageError: made-up inputs are needed, and an input's shape is free besides the batch.
    """
    if dataset is not None:
        few = dataset.first(count)
        return Samples(f"{len(few.inputs)} samples of {dataset.name}", dataset=few)
    each = -(-count // len(DISTRIBUTIONS))
    arrays = tuple(
        _made_up(spec, artifact.preprocessing, each, seed + place) for place, spec in enumerate(artifact.inputs)
    )
    return Samples(f"{each} made-up samples each of {', '.join(DISTRIBUTIONS)} values, seed {seed}", arrays=arrays)


def _made_up(spec: TensorSpec, preprocessing: Preprocessing, each: int, seed: int) -> Any:
    """``each`` samples of every distribution, samples first; whole numbers are 0 or 1, which any vocabulary holds.

    All values lie in the range of real inputs: beyond it a quantised file is right to saturate.
    """
    import numpy as np

    shape = [each, *spec.shape[1:]]
    if any(size < 1 for size in shape):
        what = f"the input {spec.name!r} has a free dimension besides the batch: {spec.shape}"
        raise UsageError(what, "inputs", "name data in the model's card, or export it with fixed shapes")
    random = np.random.default_rng(seed)
    dtype = np.dtype(spec.dtype)
    if dtype.kind != "f":
        return random.integers(0, 2, [each * len(DISTRIBUTIONS), *shape[1:]]).astype(dtype)
    low, high = _range(preprocessing)
    middle, half = (low + high) / 2, (high - low) / 2
    spikes = np.where(random.random(shape) < _SPIKES, half * random.choice([-1.0, 1.0], shape), 0.0)
    normal = (random.normal(size=shape) / _WIDTH).clip(-1, 1) * half
    parts = [middle + normal, random.uniform(low, high, shape), middle + spikes]
    return np.concatenate(parts).astype(dtype)


def _range(preprocessing: Preprocessing) -> tuple[float, float]:
    """What raw data becomes at its ends, averaged over channels; three deviations of 1 where the card does not say."""
    if not preprocessing.mean and preprocessing.scale == 1.0:
        return -_WIDTH, _WIDTH
    mean = sum(preprocessing.mean) / len(preprocessing.mean) if preprocessing.mean else 0.0
    std = sum(preprocessing.std) / len(preprocessing.std) if preprocessing.std else 1.0
    low, high = ((end * preprocessing.scale - mean) / std for end in preprocessing.range[:2])
    return low, high


def _laid_out(array: Any, spec: TensorSpec, where: str) -> Any:
    """The array in the layout whose shape the input has: its own, or with the channels moved."""
    import numpy as np

    wanted = list(spec.shape[1:])
    for moved in (array, *(np.moveaxis(array, *axes) for axes in ((1, -1), (-1, 1)) if array.ndim > 2)):  # noqa: PLR2004
        have = list(moved.shape[1:])
        if len(have) == len(wanted) and all(size in (-1, own) for size, own in zip(wanted, have, strict=True)):
            return np.ascontiguousarray(moved.astype(spec.dtype, copy=False) if moved.dtype.kind != "f" else moved)
    raise UsageError(
        f"the input {spec.name!r} takes {wanted}, the model {list(array.shape[1:])}", where, "it is another model"
    )
