"""Which parts of a new file stand where in an old one: runs with a shift, found by equal blocks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

BLOCK = 1024
_SPAN = 1 << 20
# Of a polynomial modulo 2^64, as the arithmetic of uint64 is: odd, so that it has an inverse.
_BASE = 0x9E3779B97F4A7C15
_FILTER = 20  # bits of a hash that are looked up first: most positions end there
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Run(NamedTuple):
    """The bytes ``start`` to ``end`` of the new file, which resemble the old one's at ``shift`` further on."""

    start: int
    end: int
    shift: int


def runs(old: Bytes, new: Bytes) -> list[Run]:
    """Cover the new file with runs, in order.

    What both begin and end with is told apart first; what is between is looked up by its blocks of 1024 bytes. Bytes
    that are found nowhere belong to the neighbour whose shift they resemble more.
    """
    most = min(len(old), len(new))
    head = _same(old[:most], new[:most])
    tail = min(_same(old[::-1][:most], new[::-1][:most]), most - head)
    end = len(new) - tail
    found = [Run(0, head, 0), *_anchors(old, new, head, end), Run(end, len(new), len(old) - len(new))]
    return list(_covered(old, new, found))


def _covered(old: Bytes, new: Bytes, found: list[Run]) -> Iterator[Run]:
    """The runs, and what lies between two of them with the better of their shifts."""
    for before, after in pairwise(found):
        if before.end > before.start:
            yield before
        start, end = before.end, after.start
        if end > start:
            near = slice(start, min(end, start + BLOCK * 64))
            best = max((before.shift, after.shift), key=lambda shift: _alike(old, new, near, shift))
            yield Run(start, end, best)
    if found[-1].end > found[-1].start:
        yield found[-1]


def _alike(old: Bytes, new: Bytes, part: slice, shift: int) -> int:
    """How many bytes of a part are equal at a shift; -1 where it reaches beyond the old file."""
    if part.start + shift < 0 or part.stop + shift > len(old):
        return -1
    return int(np.count_nonzero(old[part.start + shift : part.stop + shift] == new[part]))


def _anchors(old: Bytes, new: Bytes, start: int, end: int) -> Iterator[Run]:
    """Runs of equal bytes between ``start`` and ``end`` that hold a whole block of the old file."""
    if len(old) < BLOCK or end - start < BLOCK:
        return
    hashes, places = _index(old)
    lookup = np.zeros(1 << _FILTER, bool)
    lookup[hashes >> np.uint64(64 - _FILTER)] = True
    done = start
    for low in range(start, end - BLOCK + 1, _SPAN):
        rolled = _rolling(new[low : min(end, low + _SPAN + BLOCK - 1)])
        likely = np.flatnonzero(lookup[rolled >> np.uint64(64 - _FILTER)])
        slots = np.minimum(np.searchsorted(hashes, rolled[likely]), len(hashes) - 1)
        hits = hashes[slots] == rolled[likely]
        positions, blocks = likely[hits] + low, places[slots[hits]]
        at = int(np.searchsorted(positions, done))
        while at < len(positions):
            there, here = int(positions[at]), int(blocks[at])
            if not np.array_equal(old[here : here + BLOCK], new[there : there + BLOCK]):
                at += 1
                continue
            back = _same(old[max(0, here - (there - done)) : here][::-1], new[done:there][::-1])
            ahead = _same(old[here:], new[there:end])
            yield Run(there - back, there + ahead, here - there)
            done = there + ahead
            at = int(np.searchsorted(positions, done))


def _index(old: Bytes) -> tuple[Any, Any]:
    """The hashes of the old file's blocks, sorted, each with the place of one such block."""
    count = len(old) // BLOCK
    powers = _powers(BLOCK, _BASE)
    parts = [
        (old[at * BLOCK : (at + 1024) * BLOCK][: (min(count, at + 1024) - at) * BLOCK].reshape(-1, BLOCK) * powers).sum(
            axis=1, dtype=np.uint64
        )
        for at in range(0, count, 1024)
    ]
    hashes, first = np.unique(np.concatenate(parts), return_index=True)
    return hashes, first * BLOCK


def _rolling(data: Bytes) -> Any:
    """The hash of the block at each position, from sums over all before it."""
    sums = np.zeros(len(data) + 1, np.uint64)
    np.cumsum(data * _powers(len(data), _BASE), out=sums[1:])
    count = len(data) - BLOCK + 1
    return (sums[BLOCK:] - sums[:-BLOCK]) * _powers(count, pow(_BASE, -1, 1 << 64))


def _powers(count: int, base: int) -> Any:
    """``base`` to the 0, 1, 2 ... modulo 2^64."""
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


def _same(one: Bytes, other: Bytes) -> int:
    """How many bytes two arrays begin with alike."""
    most = min(len(one), len(other))
    for at in range(0, most, _SPAN):
        differs = np.flatnonzero(one[at : min(most, at + _SPAN)] != other[at : min(most, at + _SPAN)])
        if len(differs):
            return at + int(differs[0])
    return most
