"""A new version of a file goes as its differences, over a real SSH connection; on any doubt it goes whole."""

from __future__ import annotations

import random
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgepipe import board as boards
from edgepipe.link import _push, _sent
from edgepipe.progress import Silent
from tests.delta_kit import digest_of, released
from tests.faults.proxy import Proxy
from tests.faults.test_push import pin_same_key

SIZE = 3 << 20


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(_push, "_BACKOFF", 0.05)


@pytest.fixture
def versions(tmp_path):
    """Two files: the second has a few bytes more in its middle, and others at its end."""
    old = random.Random(1).randbytes(SIZE)
    new = old[: SIZE // 2] + b"a layer was renamed" + old[SIZE // 2 : -100] + random.Random(2).randbytes(100)
    for name, data in (("old", old), ("new", new)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.json").write_bytes(data)
    return tmp_path / "old" / "model.json", tmp_path / "new" / "model.json"


def send(client, path: Path) -> int:
    """Push a version and make it the active release; returns the bytes on the way."""
    data, before = path.read_bytes(), client.bytes_wire
    manifest = released("model.json", data)
    client.push([(path, manifest.artifact.files[0])])
    assert client.activate(manifest).id == manifest.id
    assert client.get(digest_of(data)) == data
    return client.bytes_wire - before


@contextmanager
def connected(board):
    with boards.connect(board.pinned(), "me@test", Silent()) as client:
        yield client


def test_the_next_version_goes_as_a_delta_and_the_record_can_say_so(board, versions):
    old, new = versions
    with connected(board) as client:
        assert send(client, old) == SIZE and not client.deltas
        assert send(client, new) < 5000
        (told,) = client.deltas
        assert (told.sha256, told.base) == (digest_of(new.read_bytes()), digest_of(old.read_bytes()))
        assert told.bytes == SIZE + 19 and told.bytes_wire < 5000 and told.bytes_saved > SIZE - 10_000
        assert send(client, old) == 0 and len(client.deltas) == 1


def test_a_copy_or_a_release_that_is_gone_means_the_whole_file(board, versions):
    old, new = versions
    with connected(board) as client:
        send(client, old)
        _sent.find(digest_of(old.read_bytes())).unlink()
        assert send(client, new) == SIZE + 19 and not client.deltas


@pytest.mark.parametrize("damage", ["missing", "flipped", "unknown"])
def test_a_board_that_cannot_follow_gets_the_whole_file(board, versions, damage, monkeypatch):
    """Its base was removed or damaged, or its agent has never heard of deltas."""
    old, new = versions
    base = board.server.home / ".edgepipe" / "blobs" / digest_of(old.read_bytes())
    with connected(board) as client:
        send(client, old)
        if damage == "missing":
            base.unlink()
        elif damage == "flipped":
            data = bytearray(base.read_bytes())
            data[1_000_000] ^= 1
            base.unlink()  # its second name in the release stays as it was
            base.write_bytes(data)
        else:
            told = _push._told
            monkeypatch.setattr(
                _push, "_told", lambda *args: (part._replace(more={**part.more, "new": "x"}) for part in told(*args))
            )
        assert send(client, new) >= SIZE + 19 and not client.deltas
        assert not list((base.parent.parent / "partial").iterdir())


def test_a_delta_that_is_cut_goes_on_where_it_was(board, tmp_path):
    """Noise in the new version makes the delta long enough to be cut inside."""
    rng = random.Random(3)
    old = tmp_path / "model.json"
    old.write_bytes(rng.randbytes(4 * SIZE))
    with connected(board) as client:
        send(client, old)
    new = tmp_path / "model.json.new"
    new.write_bytes(old.read_bytes()[50_000:] + rng.randbytes(SIZE))
    with Proxy(board.server.port, [SIZE // 2]) as proxy:
        pin_same_key(board, proxy)
        with boards.connect(board.target(proxy.port), "me@test", Silent()) as client:
            sent = send(client, new)
            assert len(client.deltas) == 1 and client.deltas[0].bytes_wire <= sent < client.deltas[0].bytes_wire + (
                2 << 20
            )
        assert proxy.connections == 2
