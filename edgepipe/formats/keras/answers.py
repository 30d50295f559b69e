"""What a model answers in TensorFlow itself: the first rung that its files are held against."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe import isolate
from edgepipe.errors import IntegrityError

if TYPE_CHECKING:
    from edgepipe.model import Model

LIBRARIES = ("tensorflow", "keras")
_FED, _MADE = "fed.npz", "made.npz"


def answers(model: Model, arrays: list[Any]) -> list[Any]:
    """The outputs for ``arrays``, one for each input, samples first, as the model itself takes them.

    Raises:
        UsageError, IntegrityError: see `formats.keras.load`; or it can't take in these arrays.
    """
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="edgepipe-") as folder:
        np.savez(Path(folder, _FED), **{str(place): array for place, array in enumerate(arrays)})
        isolate.call(f"{__name__}:run", {"path": str(model.path), "folder": folder})
        with np.load(Path(folder, _MADE), allow_pickle=False) as made:
            return [made[str(place)] for place in range(len(made.files))]


def run(path: str, folder: str) -> None:
    """Answer what lies in ``folder``, and leave the outputs there (runs in the child)."""
    import numpy as np

    from edgepipe.formats.keras import read

    tf = read.tensorflow()
    found = read.function(path)
    with np.load(Path(folder, _FED), allow_pickle=False) as fed:
        arrays = [fed[str(place)] for place in range(len(fed.files))]
    size = next((tensor.shape[0] for tensor in found.call.inputs if tensor.shape.rank), None) or len(arrays[0])
    batches: list[list[Any]] = []
    try:
        for start in range(0, len(arrays[0]), size):
            places = np.minimum(np.arange(start, start + size), len(arrays[0]) - 1)  # a fixed batch is filled up
            batches.append(
                [each.numpy() for each in tf.nest.flatten(found.call(*(tf.constant(a[places]) for a in arrays)))]
            )
    except (tf.errors.OpError, ValueError, TypeError) as error:
        what = f"the model can't take in these samples: {' '.join(str(error).split())[:200]}"
        raise IntegrityError(what, path, "export it with the sizes the samples have") from None
    outputs = [np.concatenate(parts)[: len(arrays[0])] for parts in zip(*batches, strict=True)]
    made: dict[str, Any] = {str(place): array for place, array in enumerate(outputs)}
    np.savez(Path(folder, _MADE), **made)
