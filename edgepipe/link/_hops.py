"""What ``~/.ssh/config`` says of an address: the chain of servers to pass, the last of them being the board."""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepipe.errors import UsageError
from edgepipe.link import Address, parse_address
from edgepipe.link._trust import host_id

_MAX_HOPS = 8
_MAX_INCLUDES = 16
_SSH_PORT = 22


@dataclass(frozen=True)
class Hop:
    """One server: where it listens, who logs in, under which name its host key is kept, and which keys to try."""

    host: str
    port: int
    user: str
    key_name: str
    identities: tuple[str, ...] = ()
    identities_only: bool = False
    timeout: float = 10.0

    def __str__(self) -> str:
        """Render for people."""
        return f"{self.user}@{host_id(self.host, self.port)}"


def resolve(address: Address) -> list[Hop]:
    """Return the hops to ``address``, jump hosts first.

    Raises:
        UsageError: the configuration can't be read, asks for a ProxyCommand, or its jumps never end.
    """
    return _resolve(_config(), address, ())


def _resolve(config: Any, address: Address, seen: tuple[str, ...]) -> list[Hop]:
    if address.host in seen or len(seen) >= _MAX_HOPS:
        raise UsageError("the ProxyJump chain never ends", "~/.ssh/config", f"look at the entries of {', '.join(seen)}")
    found = _lookup(config, address.host)
    if found.get("proxycommand"):
        raise UsageError(
            f"ProxyCommand is not supported (host {address.host})",
            "~/.ssh/config",
            "use ProxyJump, which does the same",
        )
    jump = str(found.get("proxyjump", "none"))
    hops: list[Hop] = []
    if jump.lower() != "none":
        first, *others = [parse_address(part.removeprefix("ssh://")) for part in jump.split(",")]
        # As with OpenSSH, a jump named in a list is reached by the one before it, not by a ProxyJump of its own.
        hops = _resolve(config, first, (*seen, address.host)) + [_hop(_lookup(config, one.host), one) for one in others]
    return [*hops, _hop(found, address)]


def _hop(found: dict[str, Any], address: Address) -> Hop:
    host = str(found.get("hostname", address.host))
    try:
        port = address.port or int(found.get("port", _SSH_PORT))
        timeout = float(found.get("connecttimeout", 10))
    except ValueError as error:
        raise UsageError(f"not a number: {error}", "~/.ssh/config", "correct Port or ConnectTimeout") from None
    alias = found.get("hostkeyalias")
    return Hop(
        host=host,
        port=port,
        user=address.user or str(found.get("user", "")) or getpass.getuser(),
        key_name=str(alias).lower() if alias else host_id(host, port),
        identities=tuple(found.get("identityfile", ())),
        identities_only=str(found.get("identitiesonly", "no")).lower() == "yes",
        timeout=timeout,
    )


def _lookup(config: Any, host: str) -> dict[str, Any]:
    from paramiko.ssh_exception import ConfigParseError, CouldNotCanonicalize

    try:
        return dict(config.lookup(host))
    except (ConfigParseError, CouldNotCanonicalize, ImportError, KeyError, ValueError) as error:
        raise UsageError(f"can't apply the ssh configuration: {error}", "~/.ssh/config", "correct the entry") from None


def _config() -> Any:
    from paramiko.config import SSHConfig
    from paramiko.ssh_exception import ConfigParseError

    path = Path.home() / ".ssh" / "config"
    try:
        return SSHConfig.from_text("\n".join(_expand(path, 0)))
    except ConfigParseError as error:
        raise UsageError(f"can't read the ssh configuration: {error}", str(path), "correct the line") from None


def _expand(path: Path, depth: int) -> list[str]:
    """Read a configuration with its ``Include`` lines replaced by the files they name, since paramiko skips them."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines, block = [], "Host *"
    for line in text.splitlines():
        words = line.replace("=", " ", 1).split()
        word = words[0].lower() if words else ""
        if word in {"host", "match"}:
            block = line
        if word == "include" and depth < _MAX_INCLUDES:
            for pattern in words[1:]:
                for found in _glob(pattern.strip('"')):
                    lines += _expand(found, depth + 1)
            lines.append(block)
        else:
            lines.append(line)
    return lines


def _glob(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    base = Path(path.anchor) if path.is_absolute() else Path.home() / ".ssh"
    relative = path.relative_to(path.anchor) if path.is_absolute() else path
    return sorted(base.glob(str(relative)))
