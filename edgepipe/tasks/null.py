"""The task nobody knows: outputs are judged only by being finite and by being alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

METRIC = "finite"
_TOLERANCE = 0.01


def metric(outputs: list[np.ndarray[Any, Any]], labels: np.ndarray[Any, Any] | None = None) -> float:  # noqa: ARG001
    """The share of samples, in [0, 1], all of whose outputs (each of shape [samples, ...]) are finite."""
    import numpy as np

    finite = np.ones(len(outputs[0]), bool)
    for output in outputs:
        finite &= np.isfinite(output.reshape(len(output), -1)).all(axis=1)
    return float(finite.mean())


def disagreement(a: list[np.ndarray[Any, Any]], b: list[np.ndarray[Any, Any]]) -> float:
    """The share of samples, in [0, 1], any of whose outputs differ by more than 1 % of that output's largest value."""
    import numpy as np

    differs = np.zeros(len(a[0]), bool)
    for one, other in zip(a, b, strict=True):
        scale = float(np.abs(one).max(initial=0.0)) or 1.0
        far = ~(np.abs(one.astype("float64") - other) <= _TOLERANCE * scale)  # also true for NaN
        differs |= far.reshape(len(one), -1).any(axis=1)
    return float(differs.mean())
