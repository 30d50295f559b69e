"""A board without hardware: a private OpenSSH server on this machine with throw-away keys, gone with the link."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgepipe import paths
from edgepipe.errors import LinkError, UsageError
from edgepipe.link import Endpoint
from edgepipe.link._hops import Hop
from edgepipe.link._trust import HostKey
from edgepipe.link.ssh import SshLink, connect

_START_SECONDS = 10.0
_PLACES = "/usr/sbin:/sbin:/usr/local/sbin:/opt/homebrew/sbin:/usr/lib/ssh"
# A shell guards the server: when edgepipe's end of its stdin closes, however that happens, the server is ended.
_GUARD = 'dir=$1; shift; "$@" </dev/null & pid=$!; read -r _; kill -TERM $pid; wait $pid; rm -rf -- "$dir"'
_MARK = "EDGEPIPE_LOOPBACK"


class Sshd:
    """The server: ``with Sshd() as server``. It listens on 127.0.0.1 alone and lets in one key, made for it.

    ``home`` stays between runs, so that a second deploy finds what the first one sent.
    """

    def __init__(self, home: Path | None = None) -> None:
        self.home = home or paths.data_home() / "boards" / "loopback" / "home"
        self.port = 0
        self.folder = Path()
        self.client_key: Any = None
        self.host_key: HostKey | None = None
        self._token = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Sshd:
        """Start the server.

        Raises:
            LinkError: OpenSSH's server is not installed, or does not start.
        """
        program = shutil.which("sshd", path=os.environ.get("PATH", "") + os.pathsep + _PLACES)
        if not program:
            raise LinkError(
                "target loopback needs OpenSSH's server, and this machine has none",
                "loopback",
                "install it (Debian, Ubuntu: apt-get install openssh-server), or use --target local",
            )
        if any(char in str(self.home) for char in '"\n\\'):
            raise UsageError(
                "the data folder's name has a quote or backslash", str(self.home), "set EDGEPIPE_HOME to another"
            )
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = Path(tempfile.mkdtemp(prefix="sshd-", dir=self.home.parent))
        try:
            self._make_keys()
            self._start(program)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """Stop the server and all it started."""
        self.stop()

    def hop(self) -> Hop:
        """Describe the server as the last hop of a connection."""
        assert self.host_key
        return Hop("127.0.0.1", self.port, getpass.getuser(), self.host_key.host)

    def stop(self) -> None:
        """End the server, its sessions and whatever they started, and remove its keys."""
        process, self._process = self._process, None
        family = descendants(process.pid) if process else []
        if process and process.stdin:
            with contextlib.suppress(OSError):
                process.stdin.close()
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(3)
        for pid in {*(pid for pid in family if _is_sshd(pid)), *marked(self._token)}:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if self.folder != Path():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _make_keys(self) -> None:
        import paramiko
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519

        for name in ("host", "client"):
            key = ed25519.Ed25519PrivateKey.generate()
            private = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            )
            path = self.folder / f"{name}_key"
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123
                file.write(private)
            loaded = paramiko.Ed25519Key(filename=str(path))
            (self.folder / f"{name}_key.pub").write_text(f"ssh-ed25519 {loaded.get_base64()}\n", "ascii")
            if name == "host":
                self.host_key = HostKey("edgepipe-loopback", "ssh-ed25519", loaded.asbytes())
            else:
                self.client_key = loaded

    def _start(self, program: str) -> None:
        if os.geteuid() == 0:
            # sshd insists on its privilege-separation folder when it runs as root.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        for _ in range(5):
            self.port = _free_port()
            (self.folder / "sshd_config").write_text(self._config(), "utf-8")
            log = self.folder / "log"
            with log.open("wb") as err:
                self._process = subprocess.Popen(
                    [
                        "/bin/sh",
                        "-c",
                        _GUARD,
                        "sh",
                        str(self.folder),
                        program,
                        "-D",
                        "-e",
                        "-f",
                        str(self.folder / "sshd_config"),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=err,
                    start_new_session=True,
                )
            if self._listens(log):
                return
            assert self._process.stdin
            self._process.kill()
            self._process.wait(3)
            self._process.stdin.close()
        said = (self.folder / "log").read_text("utf-8", "replace").strip()[-500:]
        raise LinkError(f"the private SSH server does not start: {said}", "loopback", "use --target local meanwhile")

    def _listens(self, log: Path) -> bool:
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until:
            said = log.read_bytes()
            if b"Server listening" in said:
                return True
            if b"error:" in said or b"fatal:" in said or b"Bad configuration" in said or b"Cannot bind" in said:
                return False
            time.sleep(0.003)
        return False

    def _config(self) -> str:
        folder = f'"{self.folder}'
        return f"""\
ListenAddress 127.0.0.1
Port {self.port}
HostKey {folder}/host_key"
AuthorizedKeysFile {folder}/client_key.pub"
PidFile none
UsePAM no
StrictModes no
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowTcpForwarding no
AllowAgentForwarding no
X11Forwarding no
PermitTTY no
PermitUserRC no
PermitUserEnvironment no
PrintMotd no
PrintLastLog no
UseDNS no
LoginGraceTime 30
MaxStartups 100
LogLevel INFO
SetEnv "HOME={self.home}" {_MARK}={self._token}
Subsystem sftp internal-sftp
"""


class LoopbackLink(SshLink):
    """An SSH link that owns the server it talks to."""

    def __init__(self, server: Sshd, transports: list[Any], endpoint: Endpoint) -> None:
        super().__init__(transports, [server.hop()], endpoint)
        # Outside edgepipe's own environment, as a board's interpreter would be.
        self.python = getattr(sys, "_base_executable", "") or sys.executable
        self._server = server

    def describe(self) -> str:
        """Say where this leads."""
        return "loopback (a private SSH server on this machine)"

    def close(self) -> None:
        """Close the connection, then stop the server."""
        try:
            super().close()
        finally:
            self._server.stop()


def open_link(endpoint: Endpoint) -> LoopbackLink:
    """Start a private server and connect to it.

    Raises:
        LinkError: there is no OpenSSH server on this machine, or it does not start.
    """
    server = Sshd().__enter__()
    try:
        transports = connect([server.hop()], "loopback", host_key=server.host_key, key=server.client_key)
        return LoopbackLink(server, transports, endpoint)
    except BaseException:
        server.stop()
        raise


def marked(token: str) -> list[int]:
    """List the processes that a server with this token started, wherever they moved: their environment tells."""
    needle = f"{_MARK}={token}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if needle in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


def descendants(pid: int) -> list[int]:
    """List the children of a process, their children and so on; sessions of the server are among them."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parent = int((entry / "stat").read_text("ascii", "replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found = list(children.get(pid, []))
    for each in found:
        found += children.get(each, [])
    return found


def _is_sshd(pid: int) -> bool:
    """Tell whether a process seen a moment ago still is a server's: its number may belong to another by now."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text("ascii", "replace").startswith("sshd")
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
