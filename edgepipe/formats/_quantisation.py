"""What the formats' quantisers have in common: the words of calibrated quantisation, and 4-bit values in bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

MIXED = "int8, but the layers that lose most stay in float until the loss is within the limit"
# A word means the same in every format; what one can't do it refuses itself, with the reason.
_INT8: dict[str, Any] = {
    "scheme": "w8a8",
    "method": "minmax",
    "samples": 256,
    "percentile": 99.99,
    "weights": "channel",
    "activations": "asymmetric",
    "bias": "on",
}
WORDS = {
    "scheme": ("w8a8", "w8a16"),
    "method": ("minmax", "percentile", "entropy", "mse"),
    "weights": ("channel", "tensor"),
    "activations": ("asymmetric", "symmetric"),
    "bias": ("on", "off"),
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "fp16": {},
    "dynamic": {},
    "int8": _INT8,
    "mixed": {"drop": 0.01, **_INT8},
    "int8w": {"group": 0},  # 0: one scale for each channel
    "int4": {"group": 32},
}
_PERCENTILES = {"percentile": (90.0, 100.0)}
NEEDS_DATA = ("int8", "mixed")
CHOICES = dict.fromkeys(NEEDS_DATA, WORDS)
LIMITS: dict[str, dict[str, tuple[float, float]]] = {
    "int8": _PERCENTILES,
    "mixed": {"drop": (0.0, 1.0), **_PERCENTILES},
}
_LARGEST, _STEP = 7, 16  # of four bits with a sign


def unpacked(packed: np.ndarray[Any, Any], count: int, *, signed: bool) -> np.ndarray[Any, Any]:
    """The ``count`` 4-bit values in bytes, the first of two in the low half."""
    import numpy as np

    halves = np.ravel(packed).view(np.uint8)
    values = np.stack([halves & 15, halves >> 4], -1).ravel()[:count].astype(np.int8)
    return np.where(values > _LARGEST, values - _STEP, values) if signed else values
