"""The task nobody knows: outputs are judged only by being finite and by being alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

METRIC = "finite"
_TOLERANCE = 0.1
_SMALL = 0.01  # of the largest output: one below it is held against that instead, or zero would tolerate nothing


def metric(outputs: list[np.ndarray[Any, Any]], labels: np.ndarray[Any, Any] | None = None) -> float:  # noqa: ARG001
    """The share of samples, in [0, 1], all of whose outputs (each of shape [samples, ...]) are finite."""
    import numpy as np

    finite = np.ones(len(outputs[0]), bool)
    for output in outputs:
        finite &= np.isfinite(output.reshape(len(output), -1)).all(axis=1)
    return float(finite.mean())


def disagreement(a: list[np.ndarray[Any, Any]], b: list[np.ndarray[Any, Any]]) -> float:
    """The share of samples, in [0, 1], any of whose outputs is off by more than a tenth of its size, as vectors.

    A tenth is a noise of -20 dB, which int8 stays below; nothing more can be said of outputs nobody knows.
    """
    import numpy as np

    differs = np.zeros(len(a[0]), bool)
    for one, other in zip(a, b, strict=True):
        left, right = (side.astype("float64").reshape(len(side), -1) for side in (one, other))
        sizes = np.linalg.norm(left, axis=1)
        scale = np.maximum(sizes, _SMALL * float(sizes.max(initial=0.0)))
        differs |= ~(np.linalg.norm(left - right, axis=1) <= _TOLERANCE * scale)  # also true for NaN
    return float(differs.mean())
