"""Language models: how likely they find a text, window by window.

The output is one array [windows]: the mean loss in nats of the predictions of a window that count. Labels say how many
these are, [windows]; all windows weigh alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe import stats
from edgepipe.errors import IntegrityError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

METRIC = "perplexity"
UNIT = "ppl"
LOWER_IS_BETTER = True
CALL = "token"  # what a timed call makes; the first one takes the prompt in
LOST = ("lost", "lost, at least", "lost, at most")  # names in `agreement`
_WHERE = "language-modelling"
_TOLERANCE = 0.25  # of a nat, a quarter of the perplexity: 4 bits of a sound model stay far below in every window
_LEAST = 2  # windows for an interval


def metric(outputs: list[Array], labels: Array) -> float:
    """The exponential of the mean loss over windows: of how many equally likely tokens the next one would be one.

    Raises:
        IntegrityError: there is not one loss for each window.
    """
    import numpy as np

    nats = _checked(outputs)
    if len(nats) != len(labels):
        raise IntegrityError(f"{len(nats)} losses for {len(labels)} windows", _WHERE)
    with np.errstate(over="ignore"):
        return float(np.exp(nats.mean()))


def further(outputs: list[Array], labels: Array) -> dict[str, float]:
    """The mean loss in nats a token."""
    del labels
    return {"nats a token": float(_checked(outputs).mean())}


def agreement(reference: list[Array], outputs: list[Array]) -> dict[str, float]:
    """What the perplexity lost against the float model's, as a share, with its 95 % interval over windows.

    The ratio is taken window by window, so that what makes a text hard falls out of it.
    """
    import numpy as np

    apart = _checked(outputs) - _checked(reference)
    if len(apart) < _LEAST or not np.isfinite(apart).all():
        return {}
    found = stats.ratio([float(value) for value in np.exp(apart)])
    return {
        name: value - 1
        for name, value in zip(LOST, (found.value, found.low, found.high), strict=True)
        if value is not None
    }


def disagreement(a: list[Array], b: list[Array]) -> float:
    """The share of windows, in [0, 1], whose losses are apart by more than a quarter of a nat, or not finite."""
    import numpy as np

    one, other = _checked(a), _checked(b)
    if len(one) != len(other):
        raise IntegrityError(f"{len(one)} and {len(other)} windows can't be compared", _WHERE)
    return float((~(np.abs(one - other) <= _TOLERANCE)).mean())  # also true for NaN


def wrong_labels(labels: Array, samples: int, classes: int) -> str:  # noqa: ARG001
    """What is wrong with labels; empty where nothing is."""
    if labels.shape != (samples,) or labels.min() < 1:
        return f"the counts of predictions have shape {list(labels.shape)} for {samples} windows, or one is below 1"
    return ""


def _checked(outputs: list[Array]) -> Array:
    if len(outputs) != 1 or outputs[0].ndim < 1:
        raise IntegrityError(f"expected one loss for each window, got {[list(x.shape) for x in outputs]}", _WHERE)
    return outputs[0].reshape(len(outputs[0])).astype("float64")
