"""Whether to pack a piece before it is sent: only where that is quicker than sending it as it is, as measured."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable

_WORTH = 0.9  # a piece that packs to no less than this share goes as it is
_RETRY = 32  # pieces between two tries where it did not pay
_LEAST = 1024


class Packer:
    """Packs pieces of blobs in one of the codings the board ``knows``; ``limit`` caps the bytes per second sent."""

    def __init__(self, knows: list[str], limit: float = 0.0) -> None:
        self.coding, self._pack = packer(knows)
        self.sent = 0
        self._limit = limit
        self._began = time.monotonic()
        self._skip = 0

    def pack(self, piece: bytes) -> tuple[bytes, str]:
        """The piece as it is to be sent, and its coding (empty: as it is)."""
        if not self.coding or len(piece) < _LEAST:
            return piece, ""
        if self._skip:
            self._skip -= 1
            return piece, ""
        began = time.perf_counter()
        packed = self._pack(piece)
        spent = time.perf_counter() - began
        if len(packed) > _WORTH * len(piece) or spent > (len(piece) - len(packed)) / self._rate():
            self._skip = _RETRY
            return piece, ""
        return packed, self.coding

    def account(self, count: int) -> float:
        """Note bytes about to be sent; returns the seconds to wait first, for the cap's sake."""
        ahead = self.sent / self._limit - (time.monotonic() - self._began) if self._limit else 0.0
        self.sent += count
        return max(0.0, ahead)

    def _rate(self) -> float:
        """Bytes per second so far. Before anything was sent: slow, as packing one piece costs next to nothing."""
        return max(1.0, self.sent / max(1e-6, time.monotonic() - self._began))


def packer(knows: list[str], *, best: bool = False) -> tuple[str, Callable[[bytes], bytes]]:
    """The coding to use with a board that ``knows`` these (empty: none), and its function; ``best`` takes its time."""
    if "zstd" in knows:
        import zstandard

        return "zstd", zstandard.ZstdCompressor(level=12 if best else 3).compress
    return ("zlib" if "zlib" in knows else ""), lambda piece: zlib.compress(piece, 9 if best else 1)
