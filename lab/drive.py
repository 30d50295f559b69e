"""A drive with a write cache that a power cut empties, for a whole emulated machine: an NBD server on a Unix socket.

What the machine writes lies in memory until it asks for a flush, as in a drive's own cache; only then is it in the
image. A cut loses all of that, keeps all of it, or a random part of its blocks of 4 KiB, as drives may write them in
any order; a block is not torn, since drives have written such sectors whole for years, as ext4 expects.
So a program that forgot an fsync loses its data here, which killing the emulator alone would not show: the machine's
writes would be safe in this host's memory.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
from pathlib import Path

SECTOR = 512
_WHOLE = 4096 // SECTOR  # sectors that are written together or not at all
LOST, KEPT, PART = "lost", "kept", "part"
_FLAGS = 0b1101  # has flags, takes flushes, takes "force unit access"
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3
_FUA = 1
_EXPORT_NAME, _ABORT, _INFO, _GO = 1, 2, 6, 7
_ACK, _INFO_REPLY, _UNSUPPORTED = 1, 3, (1 << 31) + 1
_REQUEST = struct.Struct(">IHHQQI")
_MOST = 64 << 20


class Drive:
    """Serves ``image``, a raw file, at ``path``. One machine at a time."""

    def __init__(self, image: Path, path: Path) -> None:
        self._image = os.open(image, os.O_RDWR)
        self._size = image.stat().st_size
        self._cache: dict[int, bytes] = {}  # by sector: written, not flushed
        self._cut = threading.Event()
        self._lock = threading.Lock()
        self.flushes = 0
        path.unlink(missing_ok=True)
        self._connection: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, name="drive", daemon=True)
        self._thread.start()

    def cut(self, how: str, rng: random.Random) -> int:
        """End at once; of what was not flushed all is lost or kept, or a part. Returns how many bytes that was."""
        with self._lock:
            self._cut.set()
            waiting = len(self._cache)
            blocks = dict.fromkeys(sector // _WHOLE for sector in self._cache)
            kept = {block for block in blocks if how == KEPT or (how == PART and rng.random() < 0.5)}  # noqa: PLR2004
            for sector, data in self._cache.items():
                if sector // _WHOLE in kept:
                    os.pwrite(self._image, data, sector * SECTOR)
            self._cache.clear()
        # A socket that is only closed leaves its thread waiting.
        for waited in (self._listener, self._connection):
            with contextlib.suppress(OSError):
                if waited:
                    waited.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        os.close(self._image)
        return waiting * SECTOR

    def _serve(self) -> None:
        while not self._cut.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connection = connection
            with connection, contextlib.suppress(OSError, EOFError):
                if self._greet(connection):
                    self._transmit(connection)

    def _greet(self, connection: socket.socket) -> bool:
        """Agree on the one export there is; see the NBD project's doc/proto.md, fixed newstyle negotiation."""
        connection.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        _exactly(connection, 4)
        while True:
            _, option, length = struct.unpack(">QII", _exactly(connection, 16))
            _exactly(connection, length)
            if option == _EXPORT_NAME:
                connection.sendall(struct.pack(">QH", self._size, _FLAGS))
                return True
            if option in (_INFO, _GO):
                info = struct.pack(">HQH", 0, self._size, _FLAGS)
                connection.sendall(_option(option, _INFO_REPLY, info) + _option(option, _ACK))
                if option == _GO:
                    return True
                continue
            if option == _ABORT:
                return False
            connection.sendall(_option(option, _UNSUPPORTED))

    def _transmit(self, connection: socket.socket) -> None:
        while True:
            _, flags, kind, handle, offset, length = _REQUEST.unpack(_exactly(connection, _REQUEST.size))
            data = _exactly(connection, length) if kind == _WRITE else b""
            answer = b""
            with self._lock:
                if self._cut.is_set() or kind == _DISCONNECT or length > _MOST:
                    return
                if kind == _READ:
                    answer = self._read(offset, length)
                elif kind == _WRITE:
                    self._write(offset, data, forced=bool(flags & _FUA))
                elif kind == _FLUSH:
                    self._flush()
            connection.sendall(struct.pack(">IIQ", 0x67446698, 0, handle) + answer)

    def _read(self, offset: int, length: int) -> bytes:
        found = bytearray(os.pread(self._image, length, offset))
        for sector in range(offset // SECTOR, (offset + length) // SECTOR) if self._cache else ():
            if data := self._cache.get(sector):
                at = sector * SECTOR - offset
                found[at : at + SECTOR] = data
        return bytes(found)

    def _write(self, offset: int, data: bytes, *, forced: bool) -> None:
        for at in range(0, len(data), SECTOR):
            self._cache[(offset + at) // SECTOR] = data[at : at + SECTOR]
        if forced:
            for at in range(0, len(data), SECTOR):
                del self._cache[(offset + at) // SECTOR]
            os.pwrite(self._image, data, offset)

    def _flush(self) -> None:
        self.flushes += 1
        for sector, data in self._cache.items():
            os.pwrite(self._image, data, sector * SECTOR)
        self._cache.clear()


def _option(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data


def _exactly(connection: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        piece = connection.recv(min(count - len(found), 1 << 20))
        if not piece:
            raise EOFError
        found += piece
    return bytes(found)
