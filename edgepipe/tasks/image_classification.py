"""Image classification: one score for each class; the highest one is the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.errors import IntegrityError
from edgepipe.scores import divergence

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

METRIC = "top1"
_SMOOTHING = 0.1
_MIRRORED = 0.5  # share of a batch that is mirrored
_SHIFT = 14  # images are shifted by up to a fourteenth of their size: 2 pixels of 28, 16 of 224
_SUM, _LEAST = 1e-3, 1e-8  # how near 1 probabilities sum up, and the smallest whose logarithm is taken


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

    return torch.nn.functional.cross_entropy(_logits(outputs[0]), labels, label_smoothing=_SMOOTHING)


def likeness(outputs: list[Any], wanted: list[Any], temperature: float) -> Any:
    """The divergence (`scores.divergence`) of the scores from the teacher's outputs ``wanted``: a scalar tensor."""
    return divergence(_logits(outputs[0]), _logits(wanted[0]), temperature)


def augmentations(layout: str) -> list[Callable[[Any, Any], Any]]:
    """Ways to vary a batch of ``layout`` (e.g. NCHW), each ``(inputs, generator) -> inputs``; none without rows.

    Whether they leave a label true depends on the data (a mirrored letter is another one): the caller tries them.
    """
    if not {"H", "W"} <= set(layout):
        return []
    rows, columns = layout.index("H"), layout.index("W")

    def mirror(inputs: Any, generator: Any) -> Any:
        import torch

        chosen = torch.rand(len(inputs), generator=generator) < _MIRRORED
        shape = [-1] + [1] * (inputs.dim() - 1)
        return torch.where(chosen.reshape(shape), inputs.flip(columns), inputs)

    def shift(inputs: Any, generator: Any) -> Any:
        for axis in (rows, columns):
            inputs = _shifted(inputs, axis, generator)
        return inputs

    return [mirror, shift]


def _shifted(inputs: Any, axis: int, generator: Any) -> Any:
    """Each sample moved along ``axis`` by up to a fourteenth of its size; the edge is repeated."""
    import torch

    size = inputs.shape[axis]
    most = size // _SHIFT
    by = torch.randint(-most, most + 1, (len(inputs), 1), generator=generator)
    places = (torch.arange(size) + by).clamp(0, size - 1)
    shape = [len(inputs)] + [1] * (inputs.dim() - 1)
    shape[axis] = size
    return torch.gather(inputs, axis, places.reshape(shape).expand(inputs.shape))


def _logits(scores: Any) -> Any:
    """Scores as logits: the logarithm of those that are probabilities already (a network that ends in a softmax)."""
    sums = scores.detach().sum(1)
    if bool((scores >= 0).all()) and bool(((sums - 1).abs() < _SUM).all()):
        return scores.clamp_min(_LEAST).log()
    return scores


def _scores(outputs: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    scores = outputs[0]
    if scores.ndim < 2 or len(scores) == 0:  # noqa: PLR2004  samples and classes
        raise IntegrityError(f"expected scores [samples, classes], got {list(scores.shape)}", "image-classification")
    return scores.reshape(len(scores), -1)
