from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgepipe import pack
from edgepipe.link import pins
from edgepipe.link.loopback import Sshd
from edgepipe.targets import Target

FAKE = Path(__file__).with_name("fake_agent.py")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of the user's is read or written: neither ~/.ssh nor the data folder nor an ssh-agent."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("EDGEPIPE_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return home


@pytest.fixture
def fake_agent(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make boards run the fake agent in a mode of misbehaviour."""

    def use(mode: str) -> None:
        content = f"MODE = {mode!r}\n".encode() + FAKE.read_bytes()
        monkeypatch.setattr(pack, "agent_zipapp", lambda: (content, hashlib.sha256(content).hexdigest()))

    return use


class OpenSshd(Sshd):
    """The loopback server with lines of its own in front of its configuration."""

    def __init__(self, home: Path, extra: str = "") -> None:
        super().__init__(home)
        self.extra = extra

    def _config(self) -> str:
        return self.extra + super()._config()


@dataclass
class Board:
    """A running server and what it takes to log in there."""

    server: Sshd
    home: Path

    def target(self, port: int = 0, **more: object) -> Target:
        return Target("board", host=f"127.0.0.1:{port or self.server.port}", **more)  # type: ignore[arg-type]

    def pinned(self, port: int = 0, **more: object) -> Target:
        target = self.target(port, **more)
        pins.pin(target)
        return target


@pytest.fixture
def board(own_home: Path, tmp_path: Path) -> Iterator[Board]:
    """A real OpenSSH server; ~/.ssh/config names the key it accepts."""
    with OpenSshd(tmp_path / "boards" / "home") as server:
        (own_home / ".ssh" / "config").write_text(f"Host *\n  IdentityFile {server.folder}/client_key\n")
        yield Board(server, own_home)
