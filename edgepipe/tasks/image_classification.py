"""Image classification: one score for each class; the highest one is the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.errors import IntegrityError

if TYPE_CHECKING:
    import numpy as np

METRIC = "top1"
_SMOOTHING = 0.1


def metric(outputs: list[np.ndarray[Any, Any]], labels: np.ndarray[Any, Any]) -> float:
    """The share, in [0, 1], of samples whose highest score is at their label; outputs[0] is [samples, classes].

    A sample with a score that is NaN counts as wrong.

    Raises:
        IntegrityError: the shapes don't fit.
    """
    import numpy as np

    scores = _scores(outputs)
    if len(labels) != len(scores):
        raise IntegrityError(f"{len(scores)} outputs for {len(labels)} labels", "image-classification")
    sound = ~np.isnan(scores).any(axis=1)
    return float(((scores.argmax(axis=1) == labels) & sound).mean())


def disagreement(a: list[np.ndarray[Any, Any]], b: list[np.ndarray[Any, Any]]) -> float:
    """The share of samples, in [0, 1], to which the two give different classes, or a score that is NaN."""
    import numpy as np

    one, other = _scores(a), _scores(b)
    if one.shape != other.shape:
        raise IntegrityError(
            f"outputs {list(one.shape)} and {list(other.shape)} can't be compared", "image-classification"
        )
    broken = np.isnan(one).any(axis=1) | np.isnan(other).any(axis=1)
    return float(((one.argmax(axis=1) != other.argmax(axis=1)) | broken).mean())


def loss(outputs: list[Any], labels: Any) -> Any:
    """Cross entropy with label smoothing (Szegedy et al. 2016) of the scores [samples, classes]: a scalar tensor."""
    import torch

    return torch.nn.functional.cross_entropy(outputs[0], labels, label_smoothing=_SMOOTHING)


def _scores(outputs: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    scores = outputs[0]
    if scores.ndim < 2 or len(scores) == 0:  # noqa: PLR2004  samples and classes
        raise IntegrityError(f"expected scores [samples, classes], got {list(scores.shape)}", "image-classification")
    return scores.reshape(len(scores), -1)
