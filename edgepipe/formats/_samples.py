"""Seeded inputs and a model's answers, kept beside the file it became: further files are held against them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FILE = "samples.npz"
_SAME = 1e-3  # of the largest output


def inputs(specs: list[dict[str, Any]], batch: int) -> list[Any]:
    """One batch for each input: normal numbers for floats, small whole numbers else, always the same."""
    import numpy as np

    random, found = np.random.default_rng(0), []
    for spec in specs:
        shape = [batch, *spec["shape"][1:]] if spec["shape"] else []
        kind = np.dtype(spec["dtype"])
        values = random.normal(size=shape) if kind.kind == "f" else random.integers(0, 2, shape)
        found.append(np.asarray(values).astype(kind))
    return found


def save(folder: Path, given: list[Any], results: list[Any]) -> None:
    """Keep them in ``folder``."""
    import numpy as np

    arrays = {f"input{index}": value for index, value in enumerate(given)}
    np.savez(folder / FILE, **arrays, **{f"output{index}": value for index, value in enumerate(results)})


def load(folder: Path) -> tuple[list[Any], list[Any]]:
    """What `save` kept: inputs and outputs in the model's own order."""
    import numpy as np

    with np.load(folder / FILE, allow_pickle=False) as found:
        sides = [
            [found[f"{word}{index}"] for index in range(_count(found.files, word))] for word in ("input", "output")
        ]
    return sides[0], sides[1]


def _count(names: list[str], word: str) -> int:
    return sum(name.startswith(word) for name in names)


def close(wanted: list[Any], have: list[Any]) -> bool:
    """Whether all outputs agree in shape and, within a thousandth of the largest, in value."""
    import numpy as np

    if len(wanted) != len(have):
        return False
    for one, other in zip(wanted, have, strict=True):
        if one.shape != other.shape:
            return False
        if one.size and not np.allclose(one, other, rtol=0, atol=_SAME * max(float(np.abs(one).max()), 1e-6)):
            return False
    return True
