"""Logging in with keys: those an ssh-agent holds and key files. Never a password, never a passphrase."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgepipe.errors import DeadlineError, LinkError
from edgepipe.link import Refused
from edgepipe.link._hops import Hop

_DEFAULTS = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")


def login(transport: Any, hop: Hop, until: float, key: Any = None) -> None:
    """Authenticate ``hop.user``; ``key`` alone is tried where given.

    Raises:
        LinkError: the server accepts none of the keys.
        DeadlineError: it does not answer in time.
    """
    tried: list[str] = []
    locked: list[str] = []
    for name, candidate in [("its own key", key)] if key else _candidates(hop, locked):
        tried.append(name)
        done = threading.Event()
        try:
            transport.auth_publickey(hop.user, candidate, event=done)
            waited = done.wait(max(0.0, until - time.monotonic()))
        except Exception as error:
            raise LinkError(f"the login at {hop} broke off: {error or type(error).__name__}", str(hop)) from None
        if not waited:
            raise DeadlineError(
                f"the login at {hop} was not answered in time", str(hop), "check that the board is not overloaded"
            )
        if transport.is_authenticated():
            return
        if not transport.is_active():
            break
    raise _refused(hop, tried, locked)


def _refused(hop: Hop, tried: list[str], locked: list[str]) -> Refused:
    what = f"{hop} accepts none of the keys" + (f" (tried {', '.join(tried)})" if tried else " (there was none to try)")
    if locked:
        names = " ".join(locked)
        return Refused(
            f"{what}; encrypted and not in an ssh-agent: {names}",
            str(hop),
            f"unlock it for this session: ssh-add {names}",
        )
    fix = f"install a key there: ssh-copy-id {f'-p {hop.port} ' if hop.port != 22 else ''}{hop.user}@{hop.host}"  # noqa: PLR2004
    return Refused(what, str(hop), f"{fix}; or name one: targets add --identity FILE, or IdentityFile in ~/.ssh/config")


def _candidates(hop: Hop, locked: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield (name, key): the files the configuration names, the agent's keys, then the usual files."""
    agent = _agent_keys()
    offered: set[bytes] = set()
    names = hop.identities or ()
    for name in names:
        yield from _from_file(name, agent, offered, locked)
    if not (hop.identities_only and names):
        for key in agent:
            if key.asbytes() not in offered:
                offered.add(key.asbytes())
                yield "a key of the ssh-agent", key
    if not names:
        for name in _DEFAULTS:
            yield from _from_file(name, agent, offered, locked)


def _from_file(name: str, agent: list[Any], offered: set[bytes], locked: list[str]) -> Iterator[tuple[str, Any]]:
    path = Path(name).expanduser()
    key = _load(path)
    if key is _LOCKED:
        public = _public_blob(path)
        key = next((one for one in agent if public and one.asbytes() == public), None)
        if key is None and public not in offered:
            locked.append(name)
    if key is not None and key.asbytes() not in offered:
        offered.add(key.asbytes())
        yield name, key


_LOCKED = object()


def _load(path: Path) -> Any:
    """Load a private key file: None where there is none that works, `_LOCKED` where it is encrypted."""
    import paramiko

    if not path.is_file():
        return None
    try:
        return paramiko.PKey.from_path(path)
    except (TypeError, paramiko.PasswordRequiredException):
        return _LOCKED
    except Exception as error:
        # cryptography says it in words only, and differently for each format.
        return _LOCKED if "encrypted" in str(error) or "password" in str(error).lower() else None


def _public_blob(path: Path) -> bytes:
    import base64

    with contextlib.suppress(OSError, ValueError, IndexError):
        return base64.b64decode(path.with_name(path.name + ".pub").read_text("utf-8").split()[1])
    return b""


def _agent_keys() -> list[Any]:
    """List the keys of the ssh-agent; one that does not answer within 2 s counts as none."""
    import os

    import paramiko

    if not os.environ.get("SSH_AUTH_SOCK"):
        return []
    found: list[Any] = []

    def ask() -> None:
        with contextlib.suppress(Exception):
            found.extend(paramiko.Agent().get_keys())

    thread = threading.Thread(target=ask, name="edgepipe-agent", daemon=True)
    thread.start()
    thread.join(2.0)
    return list(found)
