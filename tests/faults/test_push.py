from __future__ import annotations

import hashlib
import os
import random
import time
from pathlib import Path

import pytest

from edgepipe import board as boards
from edgepipe.errors import DeadlineError, IntegrityError, LinkError
from edgepipe.link import _push
from edgepipe.progress import Silent
from tests.faults.helpers import agents, gone, within
from tests.faults.proxy import Proxy
from tests.guarantees.figure import report

MIB = 1 << 20


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(_push, "_BACKOFF", 0.05)


def blob(size: int, tmp_path: Path) -> tuple[Path, str]:
    data = random.Random(size).randbytes(size)
    path = tmp_path / "blob"
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


@pytest.mark.guarantee
@pytest.mark.parametrize("seed", range(4))
def test_cut_link_resumes_and_sends_only_the_rest(seed, board, tmp_path):
    size = 12 * MIB + 12345
    path, sha = blob(size, tmp_path)
    cuts = [random.Random(seed).randrange(200_000, 5 * MIB) for _ in range(3)]
    with Proxy(board.server.port, cuts) as proxy:
        target = board.target(proxy.port)
        pin_same_key(board, proxy)
        with boards.connect(target, "me@test", Silent()) as client:
            assert client.push([(path, sha)]) == size
            assert client.status([sha]).have == {sha: size}
        assert proxy.connections == 4
    assert (board.server.home / ".edgepipe" / "blobs" / sha).read_bytes() == path.read_bytes()
    # Beyond the file: at most 1 MiB for each cut, and what SSH itself needs (handshakes, the agent, packet headers).
    again = max(0, proxy.sent - size - 4 * 60_000 - size // 200)
    report(4, f"{again / 3 / MIB:.2f} MiB again for a cut", ok=again <= 3 * MIB)


def pin_same_key(board, proxy):
    from edgepipe.link import _trust

    key = board.server.host_key
    _trust.write_pin("board", _trust.HostKey(f"[127.0.0.1]:{proxy.port}", key.kind, key.blob))


def test_retries_are_bounded(board, tmp_path):
    path, sha = blob(4 * MIB, tmp_path)
    with Proxy(board.server.port, [2 * MIB], then_refuse=True) as proxy:
        pin_same_key(board, proxy)
        with boards.connect(board.target(proxy.port), "me@test", Silent()) as client, within(10):
            with pytest.raises(LinkError):
                client.push([(path, sha)])
            assert proxy.connections == 1 + _push.RETRIES
            with pytest.raises(LinkError, match="closed"):
                client.status()


def test_permanent_error_stops_at_once_and_leaves_the_channel_usable(board, tmp_path):
    path, sha = blob(3 * MIB, tmp_path)
    wrong = "0" * 64
    with Proxy(board.server.port) as proxy:
        pin_same_key(board, proxy)
        with boards.connect(board.target(proxy.port), "me@test", Silent()) as client:
            with pytest.raises(IntegrityError, match="hash"):
                client.push([(path, wrong)])
            assert client.push([(path, sha)]) == 3 * MIB
        assert proxy.connections == 1


@pytest.mark.guarantee
def test_half_open_connection_ends_by_its_deadline(board, tmp_path):
    path, sha = blob(30 * MIB, tmp_path)
    with Proxy(board.server.port) as proxy:
        pin_same_key(board, proxy)
        times = boards.Times(stall=2.0)
        with boards.connect(board.target(proxy.port), "me@test", Silent(), times) as client:
            proxy.frozen = True
            began = time.monotonic()
            with within(4), pytest.raises(DeadlineError):
                client.push([(path, sha)])
            late = time.monotonic() - began - times.stall
            report(10, f"a half-open connection: deadline + {late:.1f} s", ok=late < 2)


@pytest.mark.guarantee
def test_warm_push_sends_nothing_and_empty_files_arrive(board, tmp_path):
    path, sha = blob(MIB, tmp_path)
    empty = hashlib.sha256(b"").hexdigest()
    small = [(os.urandom(10), "") for _ in range(600)]
    files = [(path, sha), (b"", empty), *((data, hashlib.sha256(data).hexdigest()) for data, _ in small)]
    with boards.connect(board.pinned(), "me@test", Silent()) as client:
        assert client.push(files) == MIB + 6000
        assert client.push(files) == 0
        assert client.get(empty) == b"" and client.get(sha) == path.read_bytes()
    assert gone(agents(board.server.home))
    report(5, "0 blob bytes the second time", ok=True)


def test_a_file_that_shrinks_is_noticed(board, tmp_path):
    path, sha = blob(MIB, tmp_path)
    with boards.connect(board.pinned(), "me@test", Silent()) as client:
        source = _push._blob((path, sha))
        path.write_bytes(b"short")
        work = _push._Push(client, [source], Silent())
        with pytest.raises(IntegrityError, match="shorter"):
            work.attempt()


def test_a_torn_partial_of_an_earlier_run_is_sent_anew(board, tmp_path):
    path, sha = blob(MIB, tmp_path)
    partial = board.server.home / ".edgepipe" / "partial" / sha
    with boards.connect(board.pinned(), "me@test", Silent()) as client:
        client.status([])
        partial.write_bytes(bytes(MIB // 2))  # what a power cut leaves: the length, and zeros
        client.push([(path, sha)])
        assert client.status([sha]).have == {sha: MIB}
        partial.write_bytes(b"")
        with pytest.raises(IntegrityError, match="hash"):
            client.push([(path, "0" * 64)])  # a file that is not what its name says fails for good


def test_the_boards_own_service_over_a_real_connection(own_home, tmp_path, tools_null):
    """The whole way through sshd: restarted and well, then not well, and the release before is back."""
    from edgepipe.errors import BoardError
    from tests.faults.conftest import Board, OpenSshd

    stand_in = tmp_path / "bin" / "systemctl"
    stand_in.parent.mkdir()
    stand_in.write_text(f"#!/bin/sh\ntest ! -e {tmp_path}/dead\n")
    stand_in.chmod(0o755)
    home = tmp_path / "boards" / "home"
    # Of several such lines sshd takes the first alone.
    with OpenSshd(home, f"SetEnv HOME={home} PATH={stand_in.parent}:{os.environ['PATH']}\n") as server:
        (own_home / ".ssh" / "config").write_text(f"Host *\n  IdentityFile {server.folder}/client_key\n")
        with boards.connect(Board(server, own_home).pinned(), "me@test", Silent()) as client:
            client.status()
            (server.home / ".edgepipe" / "service.json").write_text('{"unit": "app.service", "deadline_seconds": 1}')
            (one, first), (two, second) = tools_null("one"), tools_null("two")
            client.push([(first, one.artifact.sha256), (second, two.artifact.sha256)])
            done = client.activate(one)
            assert done.service and done.service.unit == "app.service"
            (tmp_path / "dead").touch()
            with pytest.raises(BoardError, match=f"can't be restarted.*release {one.id} is active again"):
                client.activate(two)
            state = client.status()
            assert state.current == one.id and state.activations[one.id].service == "well"


@pytest.fixture
def tools_null():
    from tests.agent.conftest import Tools

    return lambda name: Tools.null(name=name)
