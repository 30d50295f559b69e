"""Text classification: scores of each class, [samples, classes], and the text's embedding, [samples, width], if any."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.errors import IntegrityError
from edgepipe.scores import divergence

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

METRIC = "accuracy"
_WHERE = "text-classification"
_TABLE = 2  # samples and numbers


def metric(outputs: list[Array], labels: Array) -> float:
    """The share of texts, in [0, 1], whose highest score is at their label; one with NaN counts as wrong.

    Raises:
        IntegrityError: the shapes don't fit.
    """
    answers = _answers(outputs)
    if len(answers) != len(labels):
        raise IntegrityError(f"{len(answers)} outputs for {len(labels)} labels", _WHERE)
    return float((answers == labels).mean())


def further(outputs: list[Array], labels: Array) -> dict[str, float]:
    """F1, the harmonic mean of precision and recall: of class 1 where there are two, else averaged over classes."""
    import numpy as np

    answers, count = _answers(outputs), outputs[0].shape[1]
    found = []
    for kind in [1] if count == 2 else range(count):  # noqa: PLR2004  yes or no
        right = np.count_nonzero((answers == kind) & (labels == kind))
        said = np.count_nonzero(answers == kind) + np.count_nonzero(labels == kind)
        found.append(2 * right / said if said else 0.0)
    return {"F1": float(np.mean(found))}


def loss(outputs: list[Any], labels: Any) -> Any:
    """Cross entropy of the scores [texts, classes]: a scalar tensor. Embeddings are free to move."""
    import torch

    return torch.nn.functional.cross_entropy(outputs[0], labels)


def likeness(outputs: list[Any], wanted: list[Any], temperature: float) -> Any:
    """The divergence (`scores.divergence`) of the scores from the teacher's outputs ``wanted``: a scalar tensor."""
    return divergence(outputs[0], wanted[0], temperature)


def agreement(reference: list[Array], outputs: list[Array]) -> dict[str, float]:
    """The mean cosine of embeddings to those of the float model; nothing for a model that gives none."""
    import numpy as np

    if len(outputs) < 2:  # noqa: PLR2004  scores and embeddings
        return {}
    one, other = (side[1].astype(np.float64) for side in (reference, outputs))
    sizes = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return {"embedding cosine": float(((one * other).sum(axis=1) / np.maximum(sizes, 1e-12)).mean())}


def disagreement(a: list[Array], b: list[Array]) -> float:
    """The share of texts, in [0, 1], to which the two give different classes, or NaN."""
    if a[0].shape != b[0].shape:
        raise IntegrityError(f"outputs {list(a[0].shape)} and {list(b[0].shape)} can't be compared", _WHERE)
    one, other = _answers(a), _answers(b)
    return float(((one != other) | (one < 0) | (other < 0)).mean())


def _answers(outputs: list[Array]) -> Array:
    """The class of each text; -1 where an output is NaN."""
    import numpy as np

    scores = outputs[0]
    if scores.ndim != _TABLE or len(scores) == 0 or any(len(x) != len(scores) for x in outputs):
        shapes = [list(output.shape) for output in outputs]
        raise IntegrityError(f"expected scores [samples, classes] and embeddings, got {shapes}", _WHERE)
    broken = np.zeros(len(scores), bool)
    for output in outputs:
        broken |= np.isnan(output.reshape(len(output), -1)).any(axis=1)
    return np.where(broken, -1, scores.argmax(axis=1))
