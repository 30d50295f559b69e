"""A piece of a blob as instructions against a blob that is here already; see docs/adr/0015.

A piece is a row of instructions, each a head of 13 bytes (big-endian: what, offset in the base, length) and, for all
but a copy, ``length`` bytes behind it. Nothing here is trusted: a piece is checked to its end before its first byte is
written, and the whole blob is hashed like any other.
"""

from __future__ import annotations

import os
import struct
from typing import Iterator, List, NamedTuple

from edgepipe.errors import IntegrityError

HEAD = struct.Struct(">BQI")
COPY, INSERT, XOR = 0, 1, 2
# Instructions of one piece, unpacked, and what they may amount to: both bound the memory and the time of a request.
MOST_INSTRUCTIONS = 1 << 20
MOST_OUTPUT = 16 << 20
_CHUNK = 1 << 18


class _Step(NamedTuple):
    kind: int
    offset: int  # in the base
    length: int
    at: int  # of the bytes that belong to it


def rebuild(base: str, instructions: Iterator[bytes], most: int) -> Iterator[bytes]:
    """The bytes that the instructions make of the file ``base``, at most ``most``, in chunks of up to 256 KiB.

    Raises:
        IntegrityError: instructions that are none, reach beyond the base, or make too much: nothing was yielded. Or the
            base can't be read.
    """
    data = _gather(instructions)
    try:
        handle = os.open(base, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(error) from None
    try:
        steps = _parse(data, os.fstat(handle).st_size, min(most, MOST_OUTPUT))
        # Many small steps become few writes.
        ready = bytearray()
        for step in steps:
            for part in _run(handle, data, step):
                ready += part
                if len(ready) >= _CHUNK:
                    yield bytes(ready)
                    ready.clear()
        if ready:
            yield bytes(ready)
    finally:
        os.close(handle)


def _gather(pieces: Iterator[bytes]) -> bytes:
    data = bytearray()
    for piece in pieces:
        data += piece
        if len(data) > MOST_INSTRUCTIONS:
            raise IntegrityError(f"instructions of more than {MOST_INSTRUCTIONS} bytes", "delta")
    return bytes(data)


def _parse(data: bytes, base: int, most: int) -> List[_Step]:
    """The steps in ``data``, each within a base of ``base`` bytes, and all within ``most`` bytes of output."""
    steps: List[_Step] = []
    at = total = 0
    while at < len(data):
        if len(data) - at < HEAD.size:
            raise IntegrityError("the last instruction is cut off", "delta")
        kind, offset, length = HEAD.unpack_from(data, at)
        at += HEAD.size
        total += length
        if kind not in (COPY, INSERT, XOR) or length < 1 or total > most or (kind == INSERT and offset):
            raise IntegrityError("an instruction that is none, or makes too much", "delta")
        if kind != INSERT and offset + length > base:
            raise IntegrityError("an instruction reaches beyond the base", "delta")
        if kind != COPY and at + length > len(data):
            raise IntegrityError("the last instruction is cut off", "delta")
        steps.append(_Step(kind, offset, length, at))
        at += 0 if kind == COPY else length
    return steps


def _run(handle: int, data: bytes, step: _Step) -> Iterator[bytes]:
    for done in range(0, step.length, _CHUNK):
        count = min(_CHUNK, step.length - done)
        given = data[step.at + done : step.at + done + count]
        if step.kind == INSERT:
            yield given
            continue
        found = _read(handle, count, step.offset + done)
        yield found if step.kind == COPY else xor(found, given)


def _read(handle: int, count: int, offset: int) -> bytes:
    try:
        found = os.pread(handle, count, offset)
    except OSError as error:
        raise _unreadable(error) from None
    if len(found) != count:
        raise IntegrityError("the base became shorter", "delta")
    return found


def _unreadable(error: OSError) -> IntegrityError:
    # Not the error of a disk: the host need not give up, it can send the whole blob.
    return IntegrityError(f"the base can't be read: {error.strerror}", "delta")


def xor(one: bytes, other: bytes) -> bytes:
    """Two byte strings of one length, combined: as one long number each, the standard library's only quick way."""
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).to_bytes(len(one), "big")
