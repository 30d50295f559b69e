"""Variational autoencoders: what the image's code is decoded to, what noise is, and the code's distribution.

Outputs are four: logits of the image decoded from its code, logits of one decoded from the noise alone (both
[samples, ...] as the image is), mean and logarithm of the variance of the code, [samples, code]. Noise is an input of
the model, so a file answers the same each time. What is wanted is the input itself, prepared: values in 0 to 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    Array = np.ndarray[Any, Any]

METRIC = "-ELBO"
UNIT = "nats"
LOWER_IS_BETTER = True
WANTS_INPUT = True  # labels are the prepared first input
_WHERE = "generative"
_OUTPUTS = 4
_TOLERANCE = 0.1
_MOST = 80.0  # exp beyond it is infinite in float32; a variance of e^80 is as wrong as any
_GAP = 2  # pixels between the images of a grid


def metric(outputs: list[Array], labels: Array) -> float:
    """Minus the evidence lower bound in nats, averaged over samples: less is better (Kingma and Welling, 2013).

    The cross entropy of each value as a Bernoulli probability, for one draw of the code, plus the divergence of the
    code's distribution from a standard normal one. NaN where an output is.

    Raises:
        IntegrityError: the shapes don't fit, or what is wanted is not in 0 to 1.
    """
    import numpy as np

    logits, _, mean, log_variance = _checked(outputs)
    wanted = labels.reshape(len(labels), -1).astype(np.float64)
    logits = logits.reshape(len(logits), -1).astype(np.float64)
    if wanted.shape != logits.shape:
        raise IntegrityError(f"outputs {list(logits.shape)} for images {list(wanted.shape)}", _WHERE)
    if wanted.min() < 0 or wanted.max() > 1:
        what = f"what is wanted goes from {wanted.min():g} to {wanted.max():g}, not within 0 to 1"
        raise IntegrityError(what, _WHERE, "correct the preprocessing")
    pixels = np.maximum(logits, 0) - logits * wanted + np.log1p(np.exp(-np.abs(logits)))
    mean, spread = mean.astype(np.float64), np.minimum(log_variance.astype(np.float64), _MOST)
    divergence = 0.5 * (np.exp(spread) + np.square(mean) - 1 - spread)
    return float(pixels.sum(axis=1).mean() + divergence.sum(axis=1).mean())


def further(outputs: list[Array], labels: Array, features: Callable[[Array], Array] | None = None) -> dict[str, float]:
    """The mean squared error of the decoded image, and the Frechet distance of drawn images to the real ones.

    The distance is that of Heusel et al. (2017, arXiv:1706.08500) with ``features`` (of images in 0 to 1, [samples,
    ...] to [samples, n]) in the place of an ImageNet network's: it compares files of one model, on as many samples, and
    is not comparable with published ones.
    """
    import numpy as np

    logits, drawn, *_ = _checked(outputs)
    error = np.square(probabilities(logits) - labels.reshape(logits.shape)).mean()
    found = {"reconstruction MSE": float(error)}
    if features is not None:
        real = features(labels.reshape(drawn.shape).astype(np.float32))
        found["Frechet distance"] = frechet(real, features(probabilities(drawn).astype(np.float32)))
    return found


def disagreement(a: list[Array], b: list[Array]) -> float:
    """The share of samples, in [0, 1], whose decoded or drawn image is off by more than a tenth of its size, or NaN."""
    import numpy as np

    one, other = _checked(a), _checked(b)
    if [x.shape for x in one] != [x.shape for x in other]:
        raise IntegrityError(f"outputs {list(one[0].shape)} and {list(other[0].shape)} can't be compared", _WHERE)
    differs = np.zeros(len(one[0]), bool)
    for left, right in zip(one[:2], other[:2], strict=True):
        images, others = (probabilities(x).reshape(len(x), -1) for x in (left, right))
        sizes = np.maximum(np.linalg.norm(images, axis=1), 1e-6)
        differs |= ~(np.linalg.norm(images - others, axis=1) <= _TOLERANCE * sizes)  # also true for NaN
    return float(differs.mean())


def probabilities(logits: Array) -> Array:
    """Logits as values in 0 to 1, float64."""
    import numpy as np

    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64))))


def frechet(one: Array, other: Array) -> float:
    """The Frechet distance of two sets of features, [samples, n] each, as if both were normally distributed.

    The trace of the root of the covariances' product is the sum of the roots of the eigenvalues of R C R, with R the
    root of the one covariance and C the other: both are symmetric, so the numbers stay real.
    """
    import numpy as np

    one, other = one.astype(np.float64), other.astype(np.float64)
    first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (one, other))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    apart = np.square(one.mean(axis=0) - other.mean(axis=0)).sum()
    return float(apart + np.trace(first) + np.trace(second) - 2 * shared)


def pictures(outputs: list[Array]) -> list[Array]:
    """The images decoded from the samples, and those drawn from noise, both in 0 to 1, [samples, ...].

    Raises:
        IntegrityError: the outputs are no autoencoder's.
    """
    import numpy as np

    decoded, drawn, _, _ = _checked(outputs)
    return [1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -_MOST, _MOST))) for logits in (decoded, drawn)]


def grid(rows: list[Array], columns: int = 8) -> Array:
    """Images side by side, for a report: uint8 [height, width], one line for each of ``rows``.

    Each of ``rows`` is images in 0 to 1, grey, [samples, 1, H, W] or [samples, H, W]; the first ``columns`` are shown:
    the images themselves, what one file decodes them to, what another does, what it draws.

    Raises:
        IntegrityError: an image is not grey, or the rows differ in size.
    """
    import numpy as np

    lines = []
    for images in rows:
        if images.ndim < 3 or int(np.prod(images.shape[1:-2])) != 1:  # noqa: PLR2004  samples, rows, columns
            raise IntegrityError(f"images of shape {list(images.shape)} are not grey", _WHERE)
        lines.append(images[:columns].reshape(-1, *images.shape[-2:]))
    shapes = {line.shape for line in lines}
    if len(shapes) != 1:
        raise IntegrityError(f"the rows have shapes {sorted(shapes)}", _WHERE, "give as many images of one size")
    count, height, width = shapes.pop()
    canvas = np.full((len(lines) * (height + _GAP) - _GAP, count * (width + _GAP) - _GAP), 255, np.uint8)
    for y, line in enumerate(lines):
        for x, image in enumerate(line):
            top, left = y * (height + _GAP), x * (width + _GAP)
            canvas[top : top + height, left : left + width] = np.rint(255 * np.clip(np.nan_to_num(image), 0, 1))
    return canvas


def wrong_labels(labels: Array, samples: int, classes: int) -> str:  # noqa: ARG001
    """What is wrong with labels; empty where nothing is."""
    import numpy as np

    if len(labels) != samples or not np.isfinite(labels).all():
        return f"what is wanted has shape {list(labels.shape)} for {samples} samples, or is not finite"
    return ""


def _checked(outputs: list[Array]) -> list[Array]:
    if len(outputs) != _OUTPUTS or outputs[0].shape != outputs[1].shape or outputs[2].shape != outputs[3].shape:
        shapes = [list(output.shape) for output in outputs]
        raise IntegrityError(f"expected two images, mean and log variance of the code, got {shapes}", _WHERE)
    return outputs
