"""The lab's drive: what was flushed survives a cut, and what was not goes as it is told."""

from __future__ import annotations

import random
import socket
import struct
import tempfile
from pathlib import Path

import pytest

from lab.drive import KEPT, LOST, PART, SECTOR, Drive

SIZE = 64 * SECTOR


class Client:
    """A few words of the NBD protocol."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(5)
        self.socket.connect(str(path))
        assert self.take(18) == b"NBDMAGICIHAVEOPT\0\3"
        self.socket.sendall(struct.pack(">I", 3))
        assert self.option(8) == [(1 << 31) + 1]  # structured replies: it has none
        assert self.option(7) == [3, 1]

    def take(self, count: int) -> bytes:
        return self.socket.recv(count, socket.MSG_WAITALL)

    def option(self, number: int) -> list[int]:
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", number, 0))
        kinds = []
        while not kinds or kinds[-1] == 3:
            _, same, kind, length = struct.unpack(">QIII", self.take(20))
            assert same == number
            info = self.take(length)
            assert kind != 3 or struct.unpack(">HQ", info[:10]) == (0, SIZE)
            kinds.append(kind)
        return kinds

    def ask(self, kind: int, offset: int = 0, data: bytes = b"", length: int = 0, flags: int = 0) -> bytes:
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, flags, kind, 7, offset, length or len(data)) + data)
        assert struct.unpack(">IIQ", self.take(16)) == (0x67446698, 0, 7)
        return self.take(length) if length else b""


@pytest.mark.parametrize("how", [LOST, KEPT, PART])
def test_only_what_was_flushed_is_sure_to_survive(tmp_path, how):
    image = tmp_path / "disk"
    image.write_bytes(bytes(SIZE))
    with tempfile.TemporaryDirectory() as short:  # a socket's path has room for 107 bytes
        drive = Drive(image, Path(short) / "socket")
        client = Client(Path(short) / "socket")
        client.ask(1, 0, b"a" * 2 * SECTOR)
        client.ask(3)
        client.ask(1, SECTOR, b"b" * SECTOR)
        client.ask(1, 40 * SECTOR, b"c" * SECTOR, flags=1)
        client.ask(1, 10 * SECTOR, b"d" * 20 * SECTOR)
        assert client.ask(0, 0, length=3 * SECTOR) == b"a" * SECTOR + b"b" * SECTOR + bytes(SECTOR)
        assert (drive.flushes, drive.cut(how, random.Random(1))) == (1, 21 * SECTOR)
        assert client.socket.recv(1) == b""
        client.socket.close()
    found = image.read_bytes()
    assert found[:SECTOR] == b"a" * SECTOR and found[40 * SECTOR : 41 * SECTOR] == b"c" * SECTOR
    second, later = found[SECTOR : 2 * SECTOR], found[10 * SECTOR : 30 * SECTOR]
    kept = later.count(b"d") // SECTOR
    assert {later[at : at + SECTOR] for at in range(0, len(later), SECTOR)} <= {b"d" * SECTOR, bytes(SECTOR)}
    if how == PART:
        assert 0 < kept < 20
    else:
        assert (kept, second[:1]) == ((20, b"b") if how == KEPT else (0, b"a"))
