"""From raw data to what a model expects. Part of the artifact: the same code runs on the host and on the board."""

from __future__ import annotations

from typing import Any

from edgepipe.schema import Preprocessing


def prepare(raw: Any, pre: Preprocessing, raw_layout: str) -> Any:
    """Return ``(raw * scale - mean) / std`` per channel, then RGB to BGR if asked, in the model's layout and dtype.

    ``raw`` is a batch in ``raw_layout`` (e.g. NHWC); ``mean`` and ``std`` are in the raw data's channel order.
    A dimension of the model's layout that the raw one lacks is added with size 1 (NHW to NCHW).
    Integer dtypes are rounded and clipped to their range. Raw integers that need no arithmetic (tokens) are only cast.
    """
    import numpy as np

    dtype = np.dtype(pre.dtype)
    values = np.asarray(raw)
    if pre.scale != 1.0 or pre.mean or pre.std:
        values = values.astype(np.float32) * np.float32(pre.scale)
        for numbers, combine in ((pre.mean, np.subtract), (pre.std, np.divide)):
            if numbers:
                values = combine(values, _per_channel(np.asarray(numbers, np.float32), values.ndim, raw_layout))
    if pre.color == "BGR" and "C" in raw_layout:
        values = np.flip(values, raw_layout.index("C"))
    values = _arrange(values, raw_layout, pre.layout)
    if dtype.kind in "iu" and values.dtype.kind == "f":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return np.ascontiguousarray(values.astype(dtype))


def _per_channel(numbers: Any, ndim: int, layout: str) -> Any:
    """Shape per-channel numbers so that they broadcast over ``layout``."""
    if numbers.size == 1:
        return numbers.reshape(())
    shape = [1] * ndim
    shape[layout.index("C") if "C" in layout else -1] = numbers.size
    return numbers.reshape(shape)


def _arrange(values: Any, raw: str, wanted: str) -> Any:
    """Transpose from one layout to another, adding the dimensions ``raw`` lacks."""
    import numpy as np

    if not raw or not wanted or raw == wanted:
        return values
    for letter in wanted:
        if letter not in raw:
            values, raw = np.expand_dims(values, values.ndim), raw + letter
    return np.transpose(values, [raw.index(letter) for letter in wanted])
