"""Which tensor of one file is which of another: by name where the names stayed, else by shape, order and values.

Converters rename, fuse and reorder. What they keep is the order of the computation and, up to the layout, the shapes;
and where both files are right, the values. So tensors are aligned as sequences are (Needleman and Wunsch, 1970): pairs
in order, each worth the more the more alike the two are, and gaps for what one of the files does not have.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_SAME_NAME, _SAME_VALUES, _SAME_KIND = 8.0, 4.0, 0.5
_APART = 0.05  # difference of the moments, relative, that halves what a pair is worth: more than quantisation makes
_KINDS = (
    ("convtranspose", "transposeconv", "convolutionbackprop"),
    ("conv",),
    ("gemm", "matmul", "fullyconnected"),
    ("pool", "reducemean", "mean"),
    ("add",),
    ("mul",),
    ("relu", "clip", "clamp", "minimum", "maximum"),
    ("softmax",),
    ("pad",),
    ("concat",),
    ("fakequantize", "dequantize", "quantize"),
    ("transpose",),
    ("reshape", "flatten", "squeeze"),
)


@dataclass(frozen=True)
class Seen:
    """A tensor as a run showed it: samples first. ``layer`` and ``op`` made it, from the tensors ``inputs``.

    ``alias`` is the name it goes by in the file it was quantised from.
    """

    name: str
    alias: str
    layer: str
    op: str
    inputs: tuple[str, ...]
    values: Array = field(repr=False)


@dataclass(frozen=True)
class Pairing:
    """Pairs of positions in both lists, in order; ``by`` is "name" or "value"."""

    pairs: list[tuple[int, int]]
    by: str


def pair(one: list[Seen], other: list[Seen]) -> Pairing:
    """Pair the tensors of two files, each in the order it computes them."""
    places = {seen.alias: place for place, seen in enumerate(one)}
    named = [
        (places[seen.alias], place)
        for place, seen in enumerate(other)
        if seen.alias in places and seen.values.size == one[places[seen.alias]].values.size
    ]
    if 2 * len(named) >= min(len(one), len(other)):
        return Pairing(named, "name")
    return Pairing(_aligned(one, other), "value")


def _aligned(one: list[Seen], other: list[Seen]) -> list[tuple[int, int]]:
    """The pairs in order whose worths add up to most."""
    import numpy as np

    worth = _worths(one, other)
    rows, columns = worth.shape
    best = np.zeros((rows + 1, columns + 1))
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            paired = best[row - 1, column - 1] + worth[row - 1, column - 1]
            best[row, column] = max(best[row - 1, column], best[row, column - 1], paired)
    pairs, row, column = [], rows, columns
    while row and column:
        value = worth[row - 1, column - 1]
        if value > 0 and best[row, column] == best[row - 1, column - 1] + value:
            row, column = row - 1, column - 1
            pairs.append((row, column))
        elif best[row, column] == best[row - 1, column]:
            row -= 1
        else:
            column -= 1
    return pairs[::-1]


def _worths(one: list[Seen], other: list[Seen]) -> Any:
    """What each pair is worth [len(one), len(other)]; nothing where the shapes can't be the same up to the layout."""
    import numpy as np

    sizes = [[tuple(sorted(n for n in seen.values.shape if n != 1)) for seen in side] for side in (one, other)]
    moments = [[_moments(seen.values) for seen in side] for side in (one, other)]
    kinds = [[kind(seen.op) for seen in side] for side in (one, other)]
    worth = np.zeros((len(one), len(other)))
    for row, seen in enumerate(one):
        for column, like in enumerate(other):
            if sizes[0][row] != sizes[1][column]:
                continue
            a, b = moments[0][row], moments[1][column]
            apart = float(np.abs(a - b).max() / max(float(np.abs(a).max()), 1e-12))
            worth[row, column] = _SAME_VALUES / (1 + apart / _APART) + _SAME_KIND * (kinds[0][row] == kinds[1][column])
            worth[row, column] += _SAME_NAME * (seen.alias == like.alias)
    return worth


def _moments(values: Array) -> Any:
    """Numbers that do not change when axes are swapped, in the unit of the values."""
    import numpy as np

    flat = np.asarray(values, np.float64).ravel()
    if not flat.size or not np.isfinite(flat).all():
        return np.full(5, np.inf if flat.size else 0.0)
    return np.array([flat.mean(), np.abs(flat).mean(), flat.std(), flat.min(), flat.max()])


def kind(op: str) -> str:
    """A word for operators that do the same under the names of different formats."""
    plain = op.lower().replace("_", "").replace("depthwise", "").replace("qlinear", "")
    return next((words[0] for words in _KINDS if any(word in plain for word in words)), plain)


def laid_out(values: Array, like: Array, *, moves: bool) -> tuple[Array, str]:
    """``values`` in the layout of ``like``, and in words how they had to be moved; ``moves`` allows it at all.

    Only sizes of 1 and the place of the channels may differ: any other permutation is a fault and not a layout.
    """
    import numpy as np

    candidates = [(values, "")]
    if moves and values.ndim > 2:  # noqa: PLR2004
        candidates += [(np.moveaxis(values, -1, 1), "channels last"), (np.moveaxis(values, 1, -1), "channels first")]
    fitting = [(moved.reshape(like.shape), word) for moved, word in candidates if _squeezed(moved) == _squeezed(like)]
    if not fitting:
        return values.reshape(like.shape), "reshaped"
    return min(fitting, key=lambda item: float(np.abs(item[0] - like).mean()))


def _squeezed(values: Array) -> list[int]:
    return [size for size in values.shape if size != 1]
