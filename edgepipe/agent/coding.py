"""How a piece of a blob may be packed on its way here: zlib everywhere, zstd where this Python has it."""

from __future__ import annotations

import importlib
import zlib
from typing import Iterator, List

from edgepipe.errors import IntegrityError

# A packed piece is unpacked in memory, so it must be small.
MOST_PACKED = 1 << 20
_ZSTD = ("compression.zstd", "zstandard")


def known() -> List[str]:
    """The codings this board can unpack, the better one first."""
    return (["zstd"] if _zstd() else []) + ["zlib"]


def unpack(coding: str, pieces: Iterator[bytes], most: int) -> Iterator[bytes]:
    """The bytes that were packed, at most ``most`` of them; an empty ``coding`` passes them on as they come.

    Raises:
        IntegrityError: an unknown coding, damaged bytes, or more than ``most`` of them.
    """
    if not coding:
        yield from pieces
        return
    packed = bytearray()
    for piece in pieces:
        packed += piece
        if len(packed) > MOST_PACKED:
            raise IntegrityError(f"a packed piece of more than {MOST_PACKED} bytes", "put")
    try:
        data = _unpack(coding, bytes(packed), most)
    except IntegrityError:
        raise
    except Exception as error:  # each library has errors of its own
        raise IntegrityError(f"a packed piece is damaged: {type(error).__name__}", "put") from None
    if len(data) > most:
        raise IntegrityError(f"a packed piece holds more than the {most} bytes left", "put")
    yield data


def _unpack(coding: str, packed: bytes, most: int) -> bytes:
    if coding == "zlib":
        opened = zlib.decompressobj()
        data = opened.decompress(packed, most + 1)
        if len(data) <= most and not opened.eof:
            raise IntegrityError("a packed piece is cut off", "put")
        return data
    name = _zstd() if coding == "zstd" else ""
    if not name:
        raise IntegrityError(f"a coding nobody knows here: {coding[:16]!r}", "put", f"known: {', '.join(known())}")
    module = importlib.import_module(name)
    if name == "zstandard":
        # A size in the frame's head is believed, and allocated, whatever limit is given.
        if module.frame_content_size(packed) > most:
            raise IntegrityError(f"a packed piece holds more than the {most} bytes left", "put")
        return module.ZstdDecompressor().decompress(packed, max_output_size=most + 1)  # type: ignore[no-any-return]
    opened = module.ZstdDecompressor()
    data = opened.decompress(packed, most + 1)
    if len(data) <= most and not opened.eof:
        raise IntegrityError("a packed piece is cut off", "put")
    return data  # type: ignore[no-any-return]


def _zstd() -> str:
    """The module that unpacks zstd, or nothing."""
    for name in _ZSTD:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        return name
    return ""
