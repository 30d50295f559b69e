"""Tell a file against an older one that the board holds, where that saves more than half; see docs/adr/0015."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from edgepipe.agent.delta import COPY, HEAD, INSERT, MOST_INSTRUCTIONS, MOST_OUTPUT, XOR, xor
from edgepipe.errors import DeadlineError, EdgepipeError, LinkError
from edgepipe.link import _sent
from edgepipe.link._packing import packer
from edgepipe.schema import SHA256, DeltaSent, FileRef, Manifest

if TYPE_CHECKING:
    import numpy as np

    Bytes = np.ndarray[Any, np.dtype[np.uint8]]

LEAST, MOST = 1 << 16, 1 << 28  # bytes of a file: smaller is not worth a question, larger not worth the memory
WORTH = 0.5
_WINDOW = 1 << 18
_SAMPLES, _SAMPLE, _NEAR = 16, 4096, 1 << 16


class Piece(NamedTuple):
    """Bytes ``start`` to ``end`` of the new file as instructions, packed by ``coding`` if that is not empty."""

    start: int
    end: int
    data: bytes
    coding: str


@dataclass(frozen=True)
class Plan:
    """A whole file told against ``base``; ``whole`` is what it would take to send it as it is, packed."""

    base: str
    pieces: list[Piece]
    whole: int

    @property
    def wire(self) -> int:
        """Bytes of all pieces."""
        return sum(len(piece.data) for piece in self.pieces)

    def said(self, sha256: str) -> DeltaSent:
        """What a record says of it."""
        return DeltaSent(sha256, self.base, self.pieces[-1].end, self.wire, self.whole - self.wire)


def bases(ref: FileRef, releases: list[Manifest]) -> Iterator[str]:
    """Files of the board's releases that a file may resemble: those of its name, else of its suffix.

    What a board says is hostile: of a hash that is none, a path would be made.
    """
    files = [one for release in releases for one in release.artifact.files if SHA256.match(one.sha256)]
    yield from (one.sha256 for one in files if one.name == ref.name)
    yield from (one.sha256 for one in files if Path(one.name).suffix == Path(ref.name).suffix)


def plan(source: Path | bytes, ref: FileRef, releases: list[Manifest], codings: list[str]) -> Plan | None:
    """Tell a file against one of the releases' files, of which a copy must be here; None where that does not pay.

    Raises:
        OSError: the file can't be read.
    """
    if not LEAST <= ref.bytes <= MOST:
        return None
    for base in dict.fromkeys(bases(ref, releases)):
        kept = _sent.find(base)
        if not kept or not LEAST <= kept.stat().st_size <= MOST:
            continue
        with kept.open("rb") as old_file, _opened(source) as new_file:
            if not _promising(old_file, new_file):
                continue
            import numpy as np

            old, new = (np.frombuffer(_whole_of(file), np.uint8) for file in (old_file, new_file))
        if len(new) == ref.bytes and hashlib.sha256(old.data).hexdigest() == base:
            made = Plan(base, list(_pieces(old, new, codings)), _packed_whole(new, codings))
            if made.wire < WORTH * made.whole:
                return made
    return None


def releases_of(client: Any, names: list[str | None]) -> list[Manifest]:
    """The manifests of the releases the board holds, as far as they can be had.

    Raises:
        LinkError, DeadlineError: the board can't be reached, or does not answer.
    """
    found = []
    for name in filter(None, names):
        try:
            found.append(client.manifest(name))
        except (LinkError, DeadlineError):
            raise
        except EdgepipeError:  # whatever is wrong with it: what is sent now goes whole
            continue
    return found


def _opened(source: Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _whole_of(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(MOST + 1)


def _promising(old: BinaryIO, new: BinaryIO) -> bool:
    """Whether samples of the new file are told shortly by the old one: few ms and bytes read where there is no hope."""
    plain = told = 0
    size, before = new.seek(0, io.SEEK_END), old.seek(0, io.SEEK_END)
    for number in range(_SAMPLES):
        at = (size - _SAMPLE) * number // (_SAMPLES - 1)
        sample = _part(new, at, at + _SAMPLE)
        low = max(0, at - _NEAR)
        near = _part(old, low, at + _NEAR)
        spot = near.find(sample[:48])
        places = {at, at + before - size} | ({low + spot} if spot >= 0 else set())
        shown = [_part(old, place, place + _SAMPLE) for place in places if place >= 0]
        alone = len(zlib.compress(sample, 1))
        others = [len(zlib.compress(xor(sample, one), 1)) for one in shown if len(one) == len(sample)]
        plain, told = plain + alone, told + min([alone, *others])
    return told < WORTH * plain


def _part(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _packed_whole(new: Bytes, codings: list[str]) -> int:
    coding, pack = packer(codings)
    if not coding:
        return len(new)
    windows = (new[at : at + _WINDOW] for at in range(0, len(new), _WINDOW))
    return sum(min(len(window), len(pack(window.tobytes()))) for window in windows)


def _pieces(old: Bytes, new: Bytes, codings: list[str]) -> Iterator[Piece]:
    """The file as pieces that the board takes, each within its bounds."""
    coding, pack = packer(codings, best=True)
    start = end = 0
    row = bytearray()
    for step, data in _steps(old, new):
        if row and (len(row) + HEAD.size + len(data) > MOST_INSTRUCTIONS or end + step[2] - start > MOST_OUTPUT):
            yield _packed(start, end, bytes(row), coding, pack)
            start, row = end, bytearray()
        row += HEAD.pack(*step) + data
        end += step[2]
    yield _packed(start, end, bytes(row), coding, pack)


def _packed(start: int, end: int, row: bytes, coding: str, pack: Callable[[bytes], bytes]) -> Piece:
    packed = pack(row) if coding else row
    return Piece(start, end, packed, coding) if len(packed) < len(row) else Piece(start, end, row, "")


def _steps(old: Bytes, new: Bytes) -> Iterator[tuple[tuple[int, int, int], bytes]]:
    """Instructions in order: (what, offset in the base, length) and the bytes that belong to it."""
    from edgepipe.link._align import runs

    copied = 0  # bytes of a copy under way, which ends at `at + shift` of the base
    for start, end, shift in runs(old, new):
        for at in range(start, end, _WINDOW):
            part = new[at : min(end, at + _WINDOW)]
            there = at + shift
            base = old[there : there + len(part)] if there >= 0 else old[:0]
            kind, data = _told(base, part)
            if kind == COPY and copied < MOST_OUTPUT - _WINDOW:
                copied += len(part)
            else:
                if copied:
                    yield (COPY, there - copied, copied), b""
                copied = len(part) if kind == COPY else 0
                if kind != COPY:
                    yield (kind, there if kind == XOR else 0, len(part)), data
        if copied:
            yield (COPY, end + shift - copied, copied), b""
            copied = 0


def _told(base: Bytes, part: Bytes) -> tuple[int, bytes]:
    """How to tell a window: as it stands in the base, by its differences, or by itself."""
    if len(base) != len(part):
        return INSERT, part.tobytes()
    differs = base ^ part
    if not differs.any():
        return COPY, b""
    one, other = len(zlib.compress(differs.data, 1)), len(zlib.compress(part.data, 1))
    return (XOR, differs.tobytes()) if one <= other else (INSERT, part.tobytes())
