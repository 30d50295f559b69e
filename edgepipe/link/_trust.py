"""Which host keys are trusted: those pinned for a target, then the user's own ``known_hosts``. Never an unseen one."""

from __future__ import annotations

import base64
import binascii
import contextlib
import fnmatch
import hashlib
import hmac
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgepipe import paths
from edgepipe.errors import HostKeyError, UsageError
from edgepipe.schema import NAME

_SSH_PORT = 22
_MAX_FILE = 4 << 20


@dataclass(frozen=True)
class HostKey:
    """A server's public key: the name it is kept under (``host`` or ``[host]:port``), its type and its wire form."""

    host: str
    kind: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """The fingerprint as ``ssh-keygen -l`` prints it."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    def __str__(self) -> str:
        """Render for people."""
        return f"{self.host} {self.kind} {self.fingerprint}"

    def line(self) -> str:
        """Render as a line of a known_hosts file."""
        return f"{self.host} {self.kind} {base64.b64encode(self.blob).decode()}\n"


def host_id(host: str, port: int) -> str:
    """Name a server the way OpenSSH's known_hosts does."""
    return host.lower() if port in (0, _SSH_PORT) else f"[{host.lower()}]:{port}"


def pin_file(target: str) -> Path:
    """The file that holds the pins of one target, in the known_hosts format."""
    if not NAME.match(target) or target.startswith("."):
        raise UsageError(
            f"not a target name: {target[:64]!r}", "targets", "use letters, digits, dot, dash and underscore"
        )
    return paths.data_home() / "known_hosts" / target


def trusted(target: str, host: str) -> list[HostKey]:
    """Return the keys trusted for ``host``: the target's pins if it has any, else those of ``~/.ssh/known_hosts``."""
    return list(_lookup(pin_file(target), host)) or list(_lookup(_user_file(), host))


def check(target: str, key: HostKey, hint: str = "") -> None:
    """Pass if the key is trusted; stop otherwise. ``hint`` is what to add to the command that pins it.

    Raises:
        HostKeyError: the key is unknown, not the pinned one, or revoked.
    """
    revoked = {found.blob for found in _lookup(_user_file(), key.host, "@revoked")}
    if key.blob in revoked:
        raise HostKeyError(
            f"the host key of {key.host} is marked as revoked: {key.kind} {key.fingerprint}",
            str(_user_file()),
            "do not use this board until you know why its key was revoked",
        )
    known = trusted(target, key.host)
    if any(hmac.compare_digest(found.blob, key.blob) for found in known):
        return
    if known:
        raise changed(target, key, known, hint)
    raise HostKeyError(
        f"the host key of {key.host} is not known: {key.kind} {key.fingerprint}",
        f"target {target}",
        "compare it with the board's own (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub there), then: "
        f"edgepipe targets pin {target}{hint} --fingerprint {key.fingerprint}",
    )


def changed(target: str, key: HostKey, known: list[HostKey], hint: str = "") -> HostKeyError:
    """The error for a key that is not the pinned one."""
    pinned = ", ".join(f"{found.kind} {found.fingerprint}" for found in known)
    return HostKeyError(
        f"THE HOST KEY OF {key.host} HAS CHANGED: it is {key.kind} {key.fingerprint}, but {pinned} is pinned",
        f"target {target}",
        "somebody may stand in between; only if you know why it changed (e.g. a new SD card): "
        f"edgepipe targets re-pin {target}{hint} --fingerprint {key.fingerprint}",
    )


def write_pin(target: str, key: HostKey) -> None:
    """Pin ``key`` for its host, in place of what was pinned for that host before. Atomic."""
    path = pin_file(target)
    kept = [found for found in _read(path) if found.host != key.host]
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".pin-")
    try:
        with os.fdopen(handle, "w", encoding="ascii") as out:
            out.writelines(found.line() for found in [*kept, key])
            out.flush()
            os.fsync(out.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def _user_file() -> Path:
    return Path.home() / ".ssh" / "known_hosts"


def _read(path: Path) -> Iterator[HostKey]:
    for _, names, kind, blob in _lines(path):
        yield HostKey(names, kind, blob)


def _lookup(path: Path, host: str, marker: str = "") -> Iterator[HostKey]:
    for found, names, kind, blob in _lines(path):
        if found == marker and _matches(names, host):
            yield HostKey(host, kind, blob)


def _lines(path: Path) -> Iterator[tuple[str, str, str, bytes]]:
    """Yield (marker, names, kind, blob); lines that are not keys are skipped, as OpenSSH does."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE).decode("utf-8", "replace")
    except OSError:
        return
    for line in text.splitlines():
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        marker = parts.pop(0) if parts[0].startswith("@") else ""
        if len(parts) < 3:  # noqa: PLR2004 - names, kind, key
            continue
        with contextlib.suppress(binascii.Error, ValueError):
            yield marker, parts[0], parts[1], base64.b64decode(parts[2], validate=True)


def _matches(names: str, host: str) -> bool:
    if names.startswith("|1|"):
        return _matches_hash(names, host)
    found = False
    for pattern in names.lower().split(","):
        # Brackets belong to the name ([host]:port), they are not a character class.
        plain = pattern.lstrip("!").replace("[", "[[]")
        if fnmatch.fnmatchcase(host, plain):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def _matches_hash(names: str, host: str) -> bool:
    try:
        _, _, salt, digest = names.split("|")
        expected = base64.b64decode(digest)
        # The format is OpenSSH's HashKnownHosts: HMAC-SHA1 of the name under the salt.
        found = hmac.new(base64.b64decode(salt), host.encode(), hashlib.sha1).digest()
    except (ValueError, binascii.Error):
        return False
    return hmac.compare_digest(expected, found)
