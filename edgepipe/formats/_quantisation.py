"""The words of post-training quantisation, which mean the same in every format."""

from __future__ import annotations

from typing import Any

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
