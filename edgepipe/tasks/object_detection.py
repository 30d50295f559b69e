"""Object detection: class logits [samples, boxes, classes] and corners [samples, boxes, 4], in shares of the sides.

The file gives every box it knows. Which are kept depends on the data (a score to reach, no overlap with a better one),
and loops of that kind are what formats and int8 support worst: it is done here, and by the application on a board.
Labels are rows (x1, y1, x2, y2, class) for each sample, [samples, most, 5]; unused rows are -1.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

from edgepipe.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

METRIC = "mAP@.5"
_WHERE = "object-detection"
_LEAST, _OVERLAP = 0.02, 0.5  # a box with a lower score is dropped; so is one that overlaps a better one by more
_MOST = 100  # boxes of a sample that are judged, as COCO does
_SURE, _THERE = 0.5, 0.25  # a box as sure as that must be there in the other answer, with this score at least
_COLUMNS, _CORNERS = 5, 4
_SCALE = 1000.0  # COCO's sizes are pixels, and all boxes of a side of 1000 are counted, whatever their area


def detections(outputs: list[Array], least: float = _LEAST) -> list[Array]:
    """What is kept of each sample: rows (x1, y1, x2, y2, class, score) [n, 6], the highest score first.

    Boxes of one class that overlap a better one by more than half are dropped; so is what is NaN.

    Raises:
        IntegrityError: the shapes are not those of logits and boxes.
    """
    import numpy as np

    logits, boxes = _checked(outputs)
    sound = np.asarray(np.isfinite(logits).all(axis=2) & np.isfinite(boxes).all(axis=2))
    with np.errstate(over="ignore", invalid="ignore"):
        scores = np.where(sound[..., None], 1 / (1 + np.exp(-logits.astype(np.float64))), 0)
    found = []
    for score, corners in zip(scores, boxes.astype(np.float64), strict=True):
        places, kinds = np.nonzero(score >= least)
        order = np.argsort(-score[places, kinds], kind="stable")
        places, kinds = places[order], kinds[order]
        rows = np.concatenate([corners[places], kinds[:, None], score[places, kinds][:, None]], axis=1)
        found.append(_suppressed(rows)[:_MOST])
    return found


def metric(outputs: list[Array], labels: Array) -> float:
    """Mean average precision at an overlap of a half, in [0, 1], over classes, as COCO counts it.

    Raises:
        IntegrityError: the shapes don't fit.
        UsageError: pycocotools is not installed.
    """
    return _evaluated(outputs, labels)[1]


def further(outputs: list[Array], labels: Array) -> dict[str, float]:
    """Mean average precision, averaged over overlaps of 0.5, 0.55 ... 0.95, in [0, 1]."""
    return {"mAP@.5:.95": _evaluated(outputs, labels)[0]}


def disagreement(a: list[Array], b: list[Array]) -> float:
    """The share of samples, in [0, 1], in which one has a sure box (score of a half) that the other lacks.

    The other has it if a box of its own, of that class and a score of a quarter, overlaps it by half.
    """
    ours, theirs = detections(a, _THERE), detections(b, _THERE)
    if len(ours) != len(theirs) or a[0].shape != b[0].shape:
        shapes = f"outputs {list(a[0].shape)} and {list(b[0].shape)} can't be compared"
        raise IntegrityError(shapes, _WHERE)
    lacks = [_lacks(one, other) or _lacks(other, one) for one, other in zip(ours, theirs, strict=True)]
    return sum(lacks) / len(lacks)


def wrong_labels(labels: Array, samples: int, classes: int) -> str:
    """What is wrong with labels; empty where nothing is."""
    import numpy as np

    if labels.ndim != 3 or labels.shape[::2] != (samples, _COLUMNS) or labels.dtype.kind != "f":  # noqa: PLR2004
        told = f"labels are {labels.dtype} of shape {list(labels.shape)}"
        return f"{told}, not rows x1, y1, x2, y2, class of floats for each of {samples} samples"
    used = labels[labels[..., 4] != -1]
    if not np.isfinite(labels).all() or (used[:, 2:4] <= used[:, :2]).any():
        return "a box of the labels has no area"
    if len(used) and (used[:, 4].min() < 0 or (classes and used[:, 4].max() >= classes)):
        return f"labels go from {used[:, 4].min():g} to {used[:, 4].max():g}; the model has {classes} classes"
    return ""


def _checked(outputs: list[Array]) -> tuple[Array, Array]:
    sizes = [list(output.shape) for output in outputs]
    if len(outputs) != 2 or any(len(size) != 3 for size in sizes):  # noqa: PLR2004  samples, boxes, numbers
        raise IntegrityError(f"expected logits [samples, boxes, classes] and boxes, got {sizes}", _WHERE)
    logits, boxes = outputs
    if logits.shape[:2] != boxes.shape[:2] or boxes.shape[2] != _CORNERS or len(logits) == 0:
        raise IntegrityError(f"logits {sizes[0]} and boxes {sizes[1]} don't fit each other", _WHERE)
    return logits, boxes


def _suppressed(rows: Array) -> Array:
    """Rows, the best first, less those that overlap a better one of their class by more than half."""
    import numpy as np

    kept: list[int] = []
    left = np.arange(len(rows))
    while len(left) and len(kept) < _MOST:
        best, left = left[0], left[1:]
        kept.append(int(best))
        same = rows[left, 4] == rows[best, 4]
        left = left[~(same & (_overlaps(rows[best], rows[left]) > _OVERLAP))]
    return rows[kept]


def _overlaps(one: Array, others: Array) -> Array:
    """Intersection over union of one box with each of the others."""
    import numpy as np

    sides = np.minimum(one[2:4], others[:, 2:4]) - np.maximum(one[:2], others[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    areas = np.maximum(others[:, 2:4] - others[:, :2], 0).prod(axis=1) + np.maximum(one[2:4] - one[:2], 0).prod()
    return np.asarray(shared / np.maximum(areas - shared, 1e-12))


def _lacks(one: Array, other: Array) -> bool:
    """Whether ``other`` has no box for a sure one of ``one``."""
    free = other
    for row in one[one[:, 5] >= _SURE]:
        fits = (free[:, 4] == row[4]) * _overlaps(row, free)
        if not len(fits) or fits.max() < _OVERLAP:
            return True
        free = free[[place for place in range(len(free)) if place != fits.argmax()]]
    return False


def _evaluated(outputs: list[Array], labels: Array) -> tuple[float, float]:
    """Mean average precision over overlaps of 0.5 to 0.95, and at 0.5, by pycocotools."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        fix = "pip install 'edgepipe[detection]'"
        raise UsageError("judging detections needs pycocotools", _WHERE, fix) from None
    found = detections(outputs)
    if len(found) != len(labels):
        raise IntegrityError(f"{len(found)} outputs for {len(labels)} labels", _WHERE)
    answers = [_entry(i, row) | {"score": float(row[5])} for i, rows in enumerate(found) for row in rows]
    if not answers:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # it prints tables
        truth = COCO()
        truth.dataset = _dataset(labels, outputs[0].shape[2])
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(answers), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return max(float(run.stats[0]), 0.0), max(float(run.stats[1]), 0.0)


def _dataset(labels: Array, classes: int) -> dict[str, Any]:
    rows = [_entry(i, row) for i, sample in enumerate(labels) for row in sample if row[4] >= 0]
    for number, row in enumerate(rows, 1):
        row.update(id=number, area=row["bbox"][2] * row["bbox"][3], iscrowd=0)
    images = [{"id": i, "width": _SCALE, "height": _SCALE} for i in range(len(labels))]
    return {"info": {}, "images": images, "annotations": rows, "categories": [{"id": i + 1} for i in range(classes)]}


def _entry(image: int, row: Array) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(value) * _SCALE for value in row[:4])
    return {"image_id": image, "category_id": int(row[4]) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
