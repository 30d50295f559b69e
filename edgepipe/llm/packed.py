"""Weights in 8 and 4 bits, by groups along what is summed: taken over from a GGUF as they are, or fitted to floats.

A weight is ``code * scale + offset``. onnxruntime's products know only a whole number of steps as the offset (the zero
point); what is left over is put beside the weights as more of them, to be multiplied with the sums of the groups: see
`pack`. So a grid that GGUF's Q4_1 or a fit has chosen is kept, where rounding its offset to a step costs as much as
quantising anew does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

_ROUNDS = 8  # of a fit; the error no longer falls in the third digit after five
_TINY = np.float32(1e-12)
_WHOLE = 1e-4  # of a step: an offset nearer to a whole number of steps is one
_HALF_BYTE, _BYTE = 4, 8
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Groups:
    """Codes [N, G, size], and for each group a scale and an offset [N, G]: a weight is code * scale + offset."""

    bits: int
    codes: Array
    scale: Array
    offset: Array

    @property
    def size(self) -> int:
        """Weights of a group."""
        return int(self.codes.shape[2])

    def floats(self) -> Array:
        """The weights [N, K] that these stand for."""
        values = self.codes * self.scale[..., None] + self.offset[..., None]
        return values.reshape(len(self.codes), -1).astype(np.float32)

    def rows(self, order: Array) -> Groups:
        """The same with the outputs in another order."""
        return Groups(self.bits, self.codes[order], self.scale[order], self.offset[order])

    def halved(self, size: int) -> Groups:
        """The same in groups of ``size``, which divides the present one."""
        times = self.size // size
        codes = self.codes.reshape(len(self.codes), -1, size)
        return Groups(self.bits, codes, self.scale.repeat(times, 1), self.offset.repeat(times, 1))


@dataclass(frozen=True)
class Packed:
    """What onnxruntime's MatMulNBits takes: weights [N, blocks, bytes], scales [N, blocks], zero points packed alike.

    ``inputs`` is K; ``width`` is the length of what is multiplied, which is more where the sums of groups follow.
    """

    bits: int
    size: int
    inputs: int
    width: int
    weights: Array
    scales: Array
    zeros: Array | None  # None where each is half of the codes


def joined(parts: list[Groups]) -> Groups:
    """Weights of several products of the same input, below each other."""
    return Groups(
        parts[0].bits,
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scale for part in parts]),
        np.concatenate([part.offset for part in parts]),
    )


def fitted(weights: Array, bits: int, size: int) -> Groups:
    """Groups whose mean square error to float weights [N, K] is least, or nearly: K is filled up with zeros.

    From the span of each group on, codes are rounded and scale and offset solved for (least squares, two unknowns), in
    turns. In 8 bits the span, taken symmetric, is good enough.
    """
    filled = np.pad(weights, ((0, 0), (0, -weights.shape[1] % size))).astype(np.float32)
    values = filled.reshape(len(weights), -1, size)
    if bits == _BYTE:
        scale = np.maximum(np.abs(values).max(-1) / 127, _TINY)
        codes = (np.rint(values / scale[..., None]) + 128).astype(np.uint8)
        return Groups(bits, codes, scale, -128 * scale)
    most = (1 << bits) - 1
    offset = values.min(-1)
    scale = np.maximum((values.max(-1) - offset) / most, _TINY)
    for _ in range(_ROUNDS):
        codes = _codes(values, scale, offset, most)
        mean = codes.mean(-1)
        spread = codes - mean[..., None]
        above = (spread * values).sum(-1)
        scale = np.where(above > 0, above / np.maximum((spread * spread).sum(-1), _TINY), scale)
        offset = values.mean(-1) - scale * mean
    return Groups(bits, _codes(values, scale, offset, most).astype(np.uint8), scale, offset)


def _codes(values: Array, scale: Array, offset: Array, most: int) -> Array:
    return np.clip(np.rint((values - offset[..., None]) / scale[..., None]), 0, most).astype(np.float32)


def pack(groups: Groups, width: int) -> Packed:
    """Groups as MatMulNBits takes them, for inputs of length ``width``.

    Where offsets are no whole numbers of steps, the rest of each is a further weight in as many bits. The input must
    then be filled up with zeros to whole groups, followed by the sum of each group, and filled up again.
    """
    most = (1 << groups.bits) - 1
    scale = np.maximum(groups.scale, _TINY)
    zeros = np.clip(np.rint(-groups.offset / scale), 0, most).astype(np.float32)
    rest = groups.offset + zeros * groups.scale
    codes, scales, full = groups.codes, groups.scale, width
    if bool((np.abs(rest) > _WHOLE * scale).any()):
        more = _spanned(rest, groups.bits, groups.size)
        codes = np.concatenate([codes, more.codes], 1)
        scales = np.concatenate([scales, more.scale], 1)
        zeros = np.concatenate([zeros, np.rint(-more.offset / more.scale)], 1)
        full = codes.shape[1] * codes.shape[2]
    whole, usual = zeros.astype(np.uint8), bool((zeros == 1 << (groups.bits - 1)).all())
    if groups.bits == _HALF_BYTE:
        codes = codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))
        whole = np.pad(whole, ((0, 0), (0, whole.shape[1] % 2)))
        whole = whole[:, 0::2] | (whole[:, 1::2] << np.uint8(4))
    weights, scales = np.ascontiguousarray(codes), np.ascontiguousarray(scales, np.float32)
    return Packed(groups.bits, groups.size, width, full, weights, scales, None if usual else whole)


def _spanned(values: Array, bits: int, size: int) -> Groups:
    """Groups from the least to the greatest of each with nothing in between lost: zero is a code, offsets are whole."""
    most = (1 << bits) - 1
    parts = np.pad(values, ((0, 0), (0, -values.shape[1] % size))).reshape(len(values), -1, size)
    low, high = np.minimum(parts.min(-1), 0), np.maximum(parts.max(-1), 0)
    scale = np.maximum((high - low) / most, _TINY).astype(np.float32)
    offset = -scale * np.rint(-low / scale)
    return Groups(bits, _codes(parts, scale, offset, most).astype(np.uint8), scale, offset)


def summing(width: int, size: int) -> Array:
    """The matrix [width, zeros and sums] that makes of an input what `pack` wants behind it."""
    groups = -(-width // size)
    filling = groups * size - width
    found = np.zeros((width, filling + -(-groups // size) * size), np.float32)
    places = np.arange(width)
    found[places, filling + places // size] = 1
    return found
