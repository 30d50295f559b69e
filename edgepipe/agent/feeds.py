"""Samples in and outputs out of a session, in the child. This file needs numpy.

An .npz of samples has either one array "inputs" of raw data (preprocessed here, for the first input), or arrays
named as the model's inputs, or "0", "1" ... in their order; the latter two are fed as they are. Axis 0 counts samples.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

from edgepipe.agent.preprocess import prepare
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.schema import Artifact, TensorSpec


def batch_of(artifact: Artifact, batch: int) -> int:
    """The batch to run: the artifact's own where it is fixed, else ``batch``."""
    fixed = [spec.shape[0] for spec in artifact.inputs if spec.shape and spec.shape[0] > 0]
    return fixed[0] if fixed else batch


def load(artifact: Artifact, path: str) -> List[Any]:
    """The samples of an .npz as the model wants them, one array per input.

    Raises:
        UsageError: an input has no array, or the arrays differ in length.
        IntegrityError: the file is not a plain .npz.
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, KeyError) as error:
        raise IntegrityError(f"the samples can't be read: {str(error)[:200]}", "inputs") from None
    if set(arrays) == {"inputs"}:
        arrays = {"0": prepare(arrays["inputs"], artifact.preprocessing, artifact.raw_layout)}
    found = [arrays.get(spec.name, arrays.get(str(index))) for index, spec in enumerate(artifact.inputs)]
    missing = [spec.name for spec, array in zip(artifact.inputs, found) if array is None]
    if missing:
        raise UsageError(
            f"no samples for the input {missing[0]!r}", "inputs", f"given: {', '.join(sorted(arrays))[:200]}"
        )
    lengths = {len(array) for array in found if array is not None}
    if len(lengths) != 1 or 0 in lengths:
        raise UsageError("the inputs need the same number of samples, one at least", "inputs")
    return [np.ascontiguousarray(array) for array in found]


def one_batch(artifact: Artifact, path: Optional[str], batch: int) -> List[Any]:
    """One batch per input, from the samples at ``path`` (repeated if too few), else made up: the same at every call."""
    import numpy as np

    size = batch_of(artifact, batch)
    if path:
        return [np.ascontiguousarray(np.resize(array, (size, *array.shape[1:]))) for array in load(artifact, path)]
    return [_made_up(spec, artifact, size) for spec in artifact.inputs]


def _made_up(spec: TensorSpec, artifact: Artifact, batch: int) -> Any:
    """Floats as the preprocessing makes them of raw data evenly spread over its range; integers are 0 or 1."""
    import numpy as np

    shape = [batch, *spec.shape[1:]] if spec.shape else []
    if any(size < 1 for size in shape):
        raise UsageError(
            f"the input {spec.name!r} has a free dimension besides the batch", "inputs", "give real samples"
        )
    random = np.random.RandomState(0)
    if np.dtype(spec.dtype).kind != "f":
        return random.randint(0, 2, shape).astype(spec.dtype)
    pre = artifact.preprocessing
    low, high = (*pre.range, 0.0, 1.0)[:2] if pre.range else (0.0, 1.0)
    mean = sum(pre.mean) / len(pre.mean) if pre.mean else 0.0
    std = sum(pre.std) / len(pre.std) if pre.std else 1.0
    return ((random.uniform(low, high, shape) * pre.scale - mean) / std).astype(spec.dtype)


def run_all(session: Any, artifact: Artifact, path: str, batch: int) -> Tuple[List[Any], int]:
    """Run every sample at ``path``; the outputs in the artifact's order, samples along axis 0, and their number.

    The last batch is filled up with copies of the last sample, whose outputs are dropped.
    """
    import numpy as np

    inputs = load(artifact, path)
    total, size = len(inputs[0]), batch_of(artifact, batch)
    parts: List[List[Any]] = []
    for start in range(0, total, size):
        feeds = [array[start : start + size] for array in inputs]
        lacking = size - len(feeds[0])
        if lacking:
            feeds = [np.concatenate([feed, np.repeat(feed[-1:], lacking, axis=0)]) for feed in feeds]
        outputs = session.run([np.ascontiguousarray(feed) for feed in feeds])
        parts.append([np.asarray(output) for output in outputs])
    return [_join([part[index] for part in parts], size, total) for index in range(len(parts[0]))], total


def _join(parts: List[Any], size: int, total: int) -> Any:
    """Outputs of all batches as one array; those without a batch axis are stacked."""
    import numpy as np

    batched = all(part.ndim and part.shape[0] == size for part in parts)
    return np.concatenate(parts)[:total] if batched else np.stack(parts)


def save(path: str, outputs: List[Any]) -> None:
    """Write outputs as an .npz with the keys "0", "1" ... in their order."""
    import numpy as np

    named: Dict[str, Any] = {str(index): output for index, output in enumerate(outputs)}
    with open(path, "wb") as file:
        np.savez(file, **named)


def max_abs(outputs: List[Any], golden: str) -> Optional[float]:
    """The largest absolute difference to golden outputs; None where shapes differ or a number is not finite."""
    import numpy as np

    with np.load(golden, allow_pickle=False) as file:
        wanted = [file[str(index)] for index in range(len(file.files))]
    worst = 0.0
    if len(wanted) != len(outputs):
        return None
    for ours, theirs in zip(outputs, wanted):
        if ours.shape != theirs.shape:
            return None
        gap = float(np.max(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)))) if ours.size else 0.0
        if not np.isfinite(gap):
            return None
        worst = max(worst, gap)
    return worst
