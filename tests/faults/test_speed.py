from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import time

import pytest

from edgepipe import board as boards
from edgepipe.progress import Silent

SIZE = 50_000_000


def timed(act) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def openssh(board, program: str, *more: str, stdin: bytes = b"") -> None:
    options = [
        "-F",
        "none",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "LogLevel=ERROR",
    ]
    options += ["-o", "IdentitiesOnly=yes", "-i", str(board.server.folder / "client_key")]
    port = "-P" if program == "sftp" else "-p"
    subprocess.run(
        [program, *options, port, str(board.server.port), *more], input=stdin, check=True, capture_output=True
    )


@pytest.mark.bench
@pytest.mark.slow
def test_push_keeps_up_with_sftp(board, tmp_path):
    path = tmp_path / "blob"
    pushes, puts = [], []
    with boards.connect(board.pinned(), "me@test", Silent()) as client:
        for _ in range(7):
            data = os.urandom(SIZE)
            path.write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            pushes.append(timed(lambda digest=digest: client.push([(path, digest)])))
            client.gc()
            empty = timed(lambda: openssh(board, "ssh", "127.0.0.1", "true"))
            put = f"put {path} {tmp_path}/copy\n".encode()
            puts.append(timed(lambda put=put: openssh(board, "sftp", "-b", "-", "127.0.0.1", stdin=put)) - empty)
    ours, theirs = SIZE / statistics.median(pushes) / 1e6, SIZE / statistics.median(puts) / 1e6
    print(f"push {ours:.0f} MB/s, sftp put {theirs:.0f} MB/s")
    assert ours >= 0.9 * theirs


@pytest.mark.bench
@pytest.mark.slow
def test_a_warm_connection_costs_little_more_than_ssh_true(board):
    target = board.pinned()
    boards.connect(target, "me@test", Silent()).close()
    links, plain = [], []
    for _ in range(9):
        plain.append(timed(lambda: openssh(board, "ssh", "127.0.0.1", "true")))
        began = time.perf_counter()
        with boards.connect(target, "me@test", Silent()) as client:
            client.status()
            links.append(time.perf_counter() - began)
    ours, theirs = statistics.median(links), statistics.median(plain)
    print(f"connect + hello + status {ours * 1e3:.0f} ms, ssh true {theirs * 1e3:.0f} ms")
    assert ours <= 1.5 * theirs + 0.05
