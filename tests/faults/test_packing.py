"""Pieces are packed where it pays, by a coding the board knows; hostile ones are refused; the cap on the rate holds."""

from __future__ import annotations

import hashlib
import os
import time
import zlib

import pytest
import zstandard

from edgepipe import board as boards
from edgepipe.agent import coding
from edgepipe.errors import IntegrityError
from edgepipe.link import _packing
from edgepipe.link._packing import Packer
from edgepipe.progress import Silent

SOFT = b"weights " * 64_000


@pytest.fixture
def slow(monkeypatch):
    """A link on which packing always pays in time."""
    monkeypatch.setattr(Packer, "_rate", lambda self: 1.0)


@pytest.mark.parametrize("known", [["zstd", "zlib"], ["zlib"], []])
def test_soft_bytes_are_packed_and_arrive_as_they_were(board, slow, monkeypatch, known):
    noise = os.urandom(500_000)
    digests = [hashlib.sha256(data).hexdigest() for data in (SOFT, noise)]
    with boards.connect(board.pinned(), "me@test", Silent()) as client:
        offered = client.hello().codings
        assert offered[-1] == "zlib"
        client._facts = boards.dataclasses.replace(client.hello(), codings=[one for one in known if one in offered])
        assert client.push([(SOFT, digests[0])]) == len(SOFT)
        packed, client.bytes_wire = client.bytes_wire, 0
        assert packed < len(SOFT) / 20 if client.hello().codings else packed == len(SOFT)
        assert client.push([(noise, digests[1])]) == len(noise) == client.bytes_wire
        assert client.get(digests[0]) == SOFT and client.get(digests[1]) == noise


def test_packing_stops_where_it_does_not_pay(monkeypatch):
    monkeypatch.setattr(Packer, "_rate", lambda self: 1e15)
    packer = Packer(["zlib"])
    assert packer.pack(SOFT[:100_000]) == (SOFT[:100_000], "") and packer._skip == _packing._RETRY
    monkeypatch.setattr(Packer, "_rate", lambda self: 1.0)
    tries = [packer.pack(SOFT[:100_000])[1] for _ in range(_packing._RETRY + 1)]
    assert tries == [""] * _packing._RETRY + ["zlib"]


@pytest.mark.parametrize("name", coding.known())
def test_hostile_pieces_are_refused(name):
    pack = {"zlib": zlib.compress, "zstd": zstandard.ZstdCompressor().compress}[name]
    good = pack(SOFT)
    assert b"".join(coding.unpack(name, iter([good[:9], good[9:]]), len(SOFT))) == SOFT
    for bad, most in (
        (good, len(SOFT) - 1),
        (pack(bytes(1 << 28)), 1000),  # a bomb
        (good[:-5], len(SOFT)),
        (b"\0" * 50, 1000),
        (b"", 1000),
        (os.urandom(coding.MOST_PACKED + 1), 1 << 30),
    ):
        with pytest.raises(IntegrityError):
            list(coding.unpack(name, iter([bad]), most))
    with pytest.raises(IntegrityError, match="nobody knows"):
        list(coding.unpack("lzma", iter([good]), 10))


def test_the_cap_on_the_rate(board):
    noise = os.urandom(600_000)
    with boards.connect(board.pinned(), "me@test", Silent()) as client:
        client.rate_limit = 400_000.0
        began = time.monotonic()
        client.push([(noise, hashlib.sha256(noise).hexdigest())])
        # The first piece goes at once; the last of three waits until the two before it are paid for.
        assert time.monotonic() - began >= 0.9 * 2 * 261_120 / client.rate_limit
