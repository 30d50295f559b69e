"""A key with a forced command: the agent starts, nothing else does. On a real sshd, with the playbook's gate."""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from pathlib import Path

import paramiko
import pytest

from edgepipe import pack
from edgepipe.errors import BoardError
from edgepipe.link import Endpoint
from edgepipe.link._bootstrap import start_agent
from edgepipe.link.loopback import Sshd
from edgepipe.link.ssh import SshLink, connect
from tests.guarantees.figure import report

ROOT = Path(__file__).parents[2]
AGENT = pack.agent_zipapp()


def soon():
    return time.monotonic() + 30


class Gated(Sshd):
    """The private server, whose one key has the options of the playbook's line."""

    agents = ""

    def _make_keys(self):
        super()._make_keys()
        library = self.home / "edgepipe"
        library.mkdir(exist_ok=True)
        shutil.copy(ROOT / "ansible/roles/user/files/gate.py", library / "gate.py")
        shutil.copy(ROOT / "edgepipe/link/start.txt", library / "start.py")
        command = f"{sys.executable} -I -S {library}/gate.py {self.home}/root{self.agents}"
        key = self.folder / "client_key.pub"
        key.write_text(f'restrict,command="{command}" {key.read_text()}')

    def _config(self):
        # What this server forbids of itself, so that the key's own options are what is tested.
        text = super()._config()
        for option in ("AllowTcpForwarding", "AllowAgentForwarding", "PermitTTY", "X11Forwarding", "PermitUserRC"):
            text = text.replace(f"{option} no", f"{option} yes")
        return text


@pytest.fixture
def gated(tmp_path):
    if not shutil.which("sshd", path="/usr/sbin:/sbin:/usr/local/sbin"):
        pytest.skip("no sshd on this machine")
    opened = []

    def begin(agents=""):
        server = Gated(tmp_path / "boards" / "home")
        server.agents = agents
        server.home.parent.mkdir(exist_ok=True)
        server.__enter__()
        transports = connect([server.hop()], "loopback", host_key=server.host_key, key=server.client_key)
        link = SshLink(transports, [server.hop()], Endpoint("loopback", None, "python3", "~/elsewhere"))
        opened.append((server, link))
        return server, link

    yield begin
    for server, link in opened:
        link.close()
        server.stop()


def test_the_agent_starts_in_the_folder_of_the_board(gated):
    server, link = gated()
    for _ in range(2):  # sent first, found the second time
        channel = start_agent(link, *AGENT, 60)
        channel.send(b'{"verb": "hello", "args": {"owner": "me@host"}}\n', soon())
        assert b'"protocol":1' in channel.line(soon(), 1 << 20)
        channel.close()
    # The folder is the board's choice, not the host's.
    assert (server.home / "root" / "agent" / f"{AGENT[1]}.pyz").is_file() and not (server.home / "elsewhere").exists()


@pytest.mark.guarantee
@pytest.mark.parametrize(
    "argv",
    [
        ["sh", "-c", "id"],
        ["id"],
        ["/usr/lib/openssh/sftp-server"],
        ["scp", "-t", "/tmp"],
        ["python3", "-c", "print(1)"],
        ["python3", "-I", "-S", "-c", "print(1)", "~/.edgepipe", "not a hash"],
        ["python3", "-I", "-S", "-c", "print(1)", "~/.edgepipe", "0" * 64, "more"],
        ["sudo", "-n", "true"],
    ],
)
def test_anything_else_is_refused(gated, argv):
    _, link = gated()
    done = link.run(argv, b"ls\n")
    refused = done.status == 1 and not done.stdout and b"nothing else" in done.stderr
    report(20, "shells, sftp, scp, other programs and sudo refused", ok=refused)


def test_code_that_the_host_sends_is_not_run(gated, tmp_path):
    _, link = gated()
    witness = tmp_path / "witness"
    channel = link.open(["python3", "-I", "-S", "-c", f"open({str(witness)!r}, 'w')", "/tmp/x", AGENT[1]])
    assert channel.line(soon(), 1000) == b'{"need": "%s"}' % AGENT[1].encode() and not witness.exists()
    channel.close()


@pytest.mark.guarantee
def test_neither_shell_nor_terminal_nor_forwarding_nor_sftp(gated):
    _, link = gated()
    transport = link._transports[-1]
    shell = transport.open_session()
    shell.invoke_shell()
    assert b"nothing else" in shell.recv_stderr(1000) and shell.recv_exit_status() == 1
    with pytest.raises(paramiko.SSHException):
        transport.open_session().get_pty()
    with pytest.raises(paramiko.ChannelException):
        transport.open_channel("direct-tcpip", ("127.0.0.1", 9), ("127.0.0.1", 0), timeout=5)
    with pytest.raises(paramiko.SSHException):
        transport.request_port_forward("127.0.0.1", 0)
    with pytest.raises((paramiko.SSHException, EOFError)):
        paramiko.SFTPClient.from_transport(transport)
    report(20, "no terminal, no forwarding either way", ok=True)


def test_only_agents_that_the_board_knows(gated):
    _, link = gated(f" {AGENT[1]}")
    start_agent(link, *AGENT, 60).close()
    _, strict = gated(f" {'0' * 64}")
    with pytest.raises(BoardError, match="does not accept that version of the agent"):
        start_agent(strict, *AGENT, 60)


def test_the_playbook_ships_the_very_program_the_host_sends():
    from edgepipe.link import _bootstrap

    text = (ROOT / "edgepipe/link/start.txt").read_text()
    assert compile(text, "start", "exec").co_code == compile(_bootstrap.start_code(), "start", "exec").co_code
    assert hashlib.sha256(AGENT[0]).hexdigest() == AGENT[1]
