from __future__ import annotations

import logging
import threading
import time
import traceback
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from edgepipe import board as boards
from edgepipe.errors import EdgepipeError
from edgepipe.progress import Silent
from tests.guarantees.figure import report

PASSPHRASE = b"canary-correct-horse-7f3a"


def key_canaries(path: Path) -> list[str]:
    """Pieces of a private key file that would show that it leaked."""
    body = "".join(path.read_text().splitlines()[1:-1])
    return [body[-64:-24], body[120:160]]


class Watch(threading.Thread):
    """Collect every command line and environment-free argv of the machine while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[bytes] = set()
        self.on = True

    def run(self) -> None:
        while self.on:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(path.read_bytes())
                except OSError:
                    continue
            time.sleep(0.005)


def _with_locals(error: BaseException) -> list[str]:
    """The traceback with every local variable, but for this test's own frame, which holds the canaries."""
    inner = error.with_traceback(error.__traceback__.tb_next)
    return list(traceback.TracebackException.from_exception(inner, capture_locals=True).format())


@pytest.mark.guarantee
def test_no_secret_in_argv_logs_or_tracebacks(board, monkeypatch, caplog, capfd, tmp_path):
    locked = board.home / ".ssh" / "locked"
    key = ed25519.Ed25519PrivateKey.generate()
    how = serialization.BestAvailableEncryption(PASSPHRASE)
    locked.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, how))
    monkeypatch.setenv("EDGEPIPE_CANARY", "canary-environment-91bd")
    canaries = [
        *key_canaries(board.server.folder / "client_key"),
        *key_canaries(locked),
        PASSPHRASE.decode(),
        "canary-environment-91bd",
    ]
    watch = Watch()
    watch.start()
    said = ""
    with caplog.at_level(logging.DEBUG):
        with boards.connect(board.pinned(), "me@test", Silent()) as client:
            client.push([(b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")])
            board.server.client_key = None
            try:
                client.push([(b"abc", "0" * 64)])
            except EdgepipeError:
                said += traceback.format_exc()
        (board.home / ".ssh" / "config").write_text(f"Host *\n  IdentityFile {locked}\n")
        try:
            boards.connect(board.target(), "me@test", Silent())
        except EdgepipeError as error:
            said += "".join(_with_locals(error))
    watch.on = False
    watch.join()
    out, err = capfd.readouterr()
    argv = b"\n".join(watch.seen).decode("utf-8", "replace")
    assert "serve" in argv and "encrypted" in said and "paramiko.transport" in caplog.text
    data = "".join(path.read_text("utf-8", "replace") for path in (tmp_path / "data").rglob("*") if path.is_file())
    for place in (argv, said, caplog.text, out, err, data):
        for canary in canaries:
            assert canary not in place
    report(15, f"{len(canaries)} canaries, 0 hits", ok=True)


def test_the_link_never_asks_for_a_password(board):
    """The source offers no password, no interactive login and no policy that accepts unseen keys."""
    source = "".join(path.read_text() for path in (Path(boards.__file__).parent / "link").glob("*.py"))
    for word in (
        "auth_password",
        "auth_interactive",
        "AutoAddPolicy",
        "WarningPolicy",
        "SSHClient(",
        "getpass.getpass",
        "shell=True",
    ):
        assert word not in source


@pytest.mark.parametrize(
    "option", ["PasswordAuthentication", "AllowTcpForwarding", "AllowAgentForwarding", "PermitTTY", "UsePAM"]
)
def test_the_private_server_grants_nothing_but_the_key(option, board):
    config = (board.server.folder / "sshd_config").read_text()
    assert f"{option} no" in config and "ListenAddress 127.0.0.1" in config
    assert (board.server.folder.stat().st_mode & 0o777) == 0o700
    assert ((board.server.folder / "client_key").stat().st_mode & 0o777) == 0o600
