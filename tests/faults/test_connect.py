from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from edgepipe import board as boards
from edgepipe.errors import BoardError, DeadlineError, HostKeyError, LinkError, UsageError
from edgepipe.link import Endpoint, Refused, _trust, loopback, parse_address, pins, ssh
from edgepipe.progress import Silent
from tests.faults.conftest import OpenSshd
from tests.faults.helpers import agents, alive, gone, within
from tests.faults.proxy import Proxy
from tests.guarantees.figure import report


def link_to(board, **more):
    return ssh.open_link(board.target(**more).endpoint())


def write_key(path, password=b""):
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    key = ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, how))
    path.chmod(0o600)


@pytest.mark.guarantee
def test_unknown_host_key_is_refused_with_fingerprint_and_command(board):
    with pytest.raises(HostKeyError) as caught:
        link_to(board)
    shown = board.server.host_key.fingerprint
    assert shown in caught.value.what
    assert f"edgepipe targets pin board --host 127.0.0.1:{board.server.port} --fingerprint {shown}" in caught.value.fix
    kept = list(_trust.paths.data_home().glob("known_hosts/*"))
    report(14, "an unknown key: refused with its fingerprint", ok=not kept)


def test_pin_wants_the_expected_fingerprint(board):
    with pytest.raises(HostKeyError, match="not the expected"):
        pins.pin(board.target(), "SHA256:somebodyelse")
    with pytest.raises(HostKeyError, match="not known"):
        link_to(board)
    pins.pin(board.target(), board.server.host_key.fingerprint)
    link_to(board).close()


@pytest.mark.guarantee
def test_changed_host_key_is_a_hard_stop_until_re_pinned(board):
    write_pin(board, b"another key")
    with pytest.raises(HostKeyError, match="HAS CHANGED") as caught:
        link_to(board)
    old = _trust.HostKey("h", "ssh-ed25519", b"another key").fingerprint
    assert old in caught.value.what and board.server.host_key.fingerprint in caught.value.what
    assert "edgepipe targets re-pin board" in caught.value.fix
    with pytest.raises(HostKeyError, match="HAS CHANGED"):
        pins.pin(board.target())
    report(14, "a changed key: a hard stop", ok=True)
    before, now = pins.re_pin(board.target())
    assert old in before and now.fingerprint == board.server.host_key.fingerprint
    link_to(board).close()


def write_pin(board, blob):
    _trust.write_pin("board", _trust.HostKey(f"[127.0.0.1]:{board.server.port}", "ssh-ed25519", blob))


def test_the_users_known_hosts_counts_but_a_pin_goes_first_and_revoked_is_final(board):
    known = board.home / ".ssh" / "known_hosts"
    line = _trust.HostKey(f"[127.0.0.1]:{board.server.port}", "ssh-ed25519", board.server.host_key.blob).line()
    known.write_text(line)
    link_to(board).close()
    write_pin(board, b"another key")
    with pytest.raises(HostKeyError, match="HAS CHANGED"):
        link_to(board)
    known.write_text(f"@revoked * {line.split(' ', 1)[1]}")
    _trust.pin_file("board").unlink()
    with pytest.raises(HostKeyError, match="revoked"):
        link_to(board)


def test_hashed_known_hosts_are_read(board):
    known = board.home / ".ssh" / "known_hosts"
    known.write_text(
        _trust.HostKey(f"[127.0.0.1]:{board.server.port}", "ssh-ed25519", board.server.host_key.blob).line()
    )
    subprocess.run(["ssh-keygen", "-H", "-f", known], check=True, capture_output=True)
    assert known.read_text().startswith("|1|")
    link_to(board).close()


def test_refused_key_names_what_was_tried(board):
    write_key(board.home / ".ssh" / "id_ed25519")
    (board.home / ".ssh" / "config").write_text("")
    board.pinned()
    with within(5), pytest.raises(Refused) as caught:
        link_to(board)
    assert "~/.ssh/id_ed25519" in caught.value.what and "ssh-copy-id" in caught.value.fix


def test_encrypted_key_without_agent_says_so(board):
    write_key(board.home / ".ssh" / "locked", b"opensesame")
    (board.home / ".ssh" / "config").write_text("Host *\n  IdentityFile ~/.ssh/locked\n  IdentitiesOnly yes\n")
    board.pinned()
    with pytest.raises(Refused) as caught:
        link_to(board)
    assert "encrypted" in caught.value.what and f"ssh-add {board.home}/.ssh/locked" in caught.value.fix


def test_a_key_in_an_agent_opens_the_door(board, monkeypatch, tmp_path):
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", tmp_path / "agent"], stdout=subprocess.DEVNULL)
    try:
        while not (tmp_path / "agent").exists():
            time.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        subprocess.run(["ssh-add", "-q", board.server.folder / "client_key"], check=True)
        (board.home / ".ssh" / "config").write_text("")
        board.pinned()
        link_to(board).close()
    finally:
        agent.kill()
        agent.wait()


def test_unreachable_and_silent_servers(board, monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        with within(2), pytest.raises(LinkError, match="refused"):
            link_to(board, port=port)
        listener.listen()
        monkeypatch.setattr(ssh, "HANDSHAKE_SECONDS", 1.0)
        with within(3), pytest.raises(DeadlineError, match="does not speak SSH"):
            link_to(board, port=port)
    with within(12), pytest.raises(LinkError, match="no such host name"):
        ssh.open_link(Endpoint("board", parse_address("no-such-host.invalid")))


def test_outdated_server_is_refused(own_home, tmp_path):
    for line in (
        "Ciphers aes128-cbc\n",
        "KexAlgorithms diffie-hellman-group14-sha256\n",
        "Ciphers aes128-ctr\nMACs hmac-sha1\n",
    ):
        with OpenSshd(tmp_path / "old" / "home", line) as server, pytest.raises(LinkError, match="outdated"):
            ssh.open_link(Endpoint("board", parse_address(f"127.0.0.1:{server.port}")))


def test_jump_hosts_are_passed_and_each_is_checked(own_home, tmp_path):
    open_up = "AllowTcpForwarding yes\n"
    with (
        OpenSshd(tmp_path / "a" / "home", open_up) as first,
        OpenSshd(tmp_path / "b" / "home", open_up) as second,
        OpenSshd(tmp_path / "c" / "home") as last,
    ):
        (own_home / ".ssh" / "config").write_text(
            "Include more/*.conf\n"
            f"Host far\n  HostName 127.0.0.1\n  Port {last.port}\n  HostKeyAlias far-away\n"
            f"  IdentityFile {last.folder}/client_key\n"
            f"  ProxyJump one,127.0.0.1:{second.port}\nHost 127.0.0.1\n  IdentityFile {second.folder}/client_key\n"
        )
        (own_home / ".ssh" / "more").mkdir()
        (own_home / ".ssh" / "more" / "x.conf").write_text(
            f"Host one\n  HostName 127.0.0.1\n  Port {first.port}\n  HostKeyAlias one\n"
            f"  IdentityFile {first.folder}/client_key\n"
        )
        target = boards.Target("far", host="far")
        found = [pins.pin(target) for _ in range(3)]
        assert [key.blob for key in found] == [server.host_key.blob for server in (first, second, last)]
        assert [key.host for key in found] == ["one", f"[127.0.0.1]:{second.port}", "far-away"]
        with boards.connect(target, "me@test", Silent()) as client:
            assert client.hello().root == str(last.home / ".edgepipe")
            assert client.push([(b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")]) == 3


def test_proxy_command_and_endless_jumps_are_refused(own_home):
    config = own_home / ".ssh" / "config"
    config.write_text("Host a\n  ProxyCommand nc %h %p\nHost b\n  ProxyJump c\nHost c\n  ProxyJump b\n")
    with pytest.raises(UsageError, match="ProxyCommand"):
        ssh.open_link(Endpoint("t", parse_address("a")))
    with pytest.raises(UsageError, match="never ends"):
        ssh.open_link(Endpoint("t", parse_address("b")))


@pytest.mark.parametrize("link", ["ssh", "local"])
def test_no_python_on_the_board(link, board, monkeypatch):
    from edgepipe.link import local

    monkeypatch.setattr(local.sys, "executable", "/nowhere/python3")
    target = board.pinned(python="python3-is-not-here", link=link)
    with pytest.raises(BoardError) as caught:
        boards.connect(target, "me@test", Silent())
    assert "no " in caught.value.what or "can't start" in caught.value.what
    assert gone(agents(board.server.home))


def test_old_python_and_chatty_shell(board, tmp_path):
    old = tmp_path / "oldpython"
    old.write_text('#!/bin/sh\necho "Welcome to this board!"\necho \'{"old": "3.6"}\'\n')
    old.chmod(0o755)
    with pytest.raises(BoardError, match=r"Python is 3\.6"):
        boards.connect(board.pinned(python=str(old)), "me@test", Silent())
    chatty = tmp_path / "chatty"
    chatty.write_text(f'#!/bin/sh\necho "Welcome to this board!"\nexec {sys.executable} "$@"\n')
    chatty.chmod(0o755)
    with boards.connect(board.target(python=str(chatty)), "me@test", Silent()) as client:
        assert client.status().releases == []


def test_a_damaged_agent_on_the_board_is_sent_again(board):
    target = board.pinned()
    boards.connect(target, "me@test", Silent()).close()
    (agent,) = (board.server.home / ".edgepipe" / "agent").glob("*.pyz")
    good = agent.read_bytes()
    agent.write_bytes(b"import os; os.abort()")
    with boards.connect(target, "me@test", Silent()) as client:
        assert client.hello().protocol == 1
    assert agent.read_bytes() == good


def test_a_stopped_agent_is_a_missed_deadline(board):
    times = boards.Times(quick=2, stall=2)
    with boards.connect(board.pinned(), "me@test", Silent(), times) as client:
        (pid,) = agents(board.server.home)
        os.kill(pid, signal.SIGSTOP)
        with within(4), pytest.raises(DeadlineError):
            client.status()
        os.kill(pid, signal.SIGCONT)
    assert gone([pid])


def test_a_killed_agent_is_the_boards_fault_and_a_killed_server_the_links(board):
    with boards.connect(board.pinned(), "me@test", Silent()) as client:
        os.kill(agents(board.server.home)[0], signal.SIGKILL)
        with pytest.raises(BoardError):
            client.status()
    with Proxy(board.server.port, [40_000]) as proxy:
        _trust.write_pin(
            "board", _trust.HostKey(f"[127.0.0.1]:{proxy.port}", "ssh-ed25519", board.server.host_key.blob)
        )
        link = link_to(board, port=proxy.port)
        with pytest.raises(LinkError, match="broke"):
            link.run(["cat"], b"x" * 1_000_000, deadline=10)


def test_stderr_and_stdout_are_drained_together(board):
    board.pinned()
    link = link_to(board)
    with within(10):
        done = link.run(["sh", "-c", "head -c 10000000 /dev/zero >&2; head -c 5000000 /dev/zero; exit 3"])
    assert (done.status, len(done.stdout)) == (3, 5_000_000)
    with within(4), pytest.raises(DeadlineError):
        link.run(["sleep", "30"], deadline=2)
    link.close()


def test_two_at_once_share_a_home_and_leave_nothing():
    target = boards.Target("loopback", link="loopback")
    with boards.connect(target, "a@test", Silent()) as one, boards.connect(target, "b@test", Silent()) as two:
        assert one.hello().root == two.hello().root
        running = agents(loopback.paths.data_home())
        assert len(running) == 2
    assert gone(running)
    assert [path.name for path in (loopback.paths.data_home() / "boards" / "loopback").iterdir()] == ["home"]


def test_kill_minus_nine_leaves_no_server_behind(tmp_path):
    code = (
        "from edgepipe import board, targets; from edgepipe.progress import Silent; import time\n"
        "c = board.connect(targets.Target('loopback', link='loopback'), 'me', Silent())\n"
        "print(c._link._server.port, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    port = int(process.stdout.readline())
    folder = loopback.paths.data_home() / "boards" / "loopback"
    running = agents(folder) + [int(pid) for pid in servers(folder)]
    assert len(running) >= 3 and all(map(alive, running))
    process.kill()
    process.wait()
    assert gone(running)
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), 1):
        pass
    assert [path.name for path in folder.iterdir()] == ["home"]


def servers(folder):
    found = subprocess.run(
        ["pgrep", "-f", f"{folder}/sshd-"], capture_output=True, text=True, check=False
    ).stdout.split()
    return [pid for pid in found if alive(int(pid))]


def test_no_openssh_server_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(loopback.shutil, "which", lambda *a, **k: None)
    with pytest.raises(LinkError) as caught:
        loopback.open_link(Endpoint("loopback"))
    assert "apt-get install openssh-server" in caught.value.fix and "--target local" in caught.value.fix
