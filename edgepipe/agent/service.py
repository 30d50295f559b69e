"""The user's own service, which runs the active release: restarted when that changes, and asked whether it is well.

ROOT/service.json names it. Whoever sets the board up puts it there; no message writes it, so no host can name a unit or
a command. See docs/adr/0012.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import time
from dataclasses import dataclass, field
from typing import Dict, List, Optional

from edgepipe.agent.store import Store
from edgepipe.codec import from_dict
from edgepipe.errors import BoardError, DeadlineError, EdgepipeError, UsageError
from edgepipe.schema import ServiceState

PENDING, WELL = "pending", "well"
_FILE = "service.json"
_MOST_BYTES = 64 << 10
_UNIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9@._:-]{0,127}\.(service|target)\Z")
_HERE = ("127.0.0.1", "localhost", "::1")
_MOST_SECONDS = 120.0
_RESTART_SECONDS = 60.0
_CHECK_SECONDS = 10.0
_POLL_SECONDS = 0.5
# A service that dies at once is active for a moment, so one good answer proves nothing.
_GOOD_ANSWERS = 2


@dataclass(frozen=True)
class Service:
    """A systemd ``unit`` of the agent's ``user`` or of the ``system``, and how to ask whether it is well.

    Well means: active, and ``command`` (if any) exits 0, and ``http`` (if any, on this board) answers 2xx.
    """

    unit: str
    scope: str = "user"
    command: List[str] = field(default_factory=list)
    http: str = ""
    deadline_seconds: float = 30.0


def read(store: Store) -> Optional[Service]:
    """The board's service; None where there is none.

    Raises:
        UsageError: the file is not as it should be, or others may write it.
    """
    path = store.path(_FILE)
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            text = file.read(_MOST_BYTES)
    except FileNotFoundError:
        return None
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError("others may write the file that names the service", path, f"chmod 644 {path}")
    try:
        service = from_dict(Service, json.loads(text.decode()))
    except (ValueError, RecursionError, EdgepipeError) as error:
        raise UsageError(f"the file that names the service can't be read: {str(error)[:200]}", path) from None
    if wrong := _wrong(service):
        raise UsageError(wrong, path, "correct the file on the board; docs/services.md says what it holds")
    return service


def _wrong(service: Service) -> str:
    """What is wrong with it; empty if nothing is."""
    if not _UNIT.match(service.unit):
        return f"not a unit of systemd: {service.unit[:64]!r}"
    if service.scope not in ("user", "system"):
        return f"scope is user or system, not {service.scope[:64]!r}"
    if not 1 <= service.deadline_seconds <= _MOST_SECONDS:
        return f"deadline_seconds lies in 1 to {_MOST_SECONDS:g}"
    if service.command and not os.path.isabs(service.command[0]):
        return "command is a list that starts with an absolute path"
    from urllib.parse import urlsplit

    try:
        url = urlsplit(service.http)
        here = not service.http or (url.scheme == "http" and url.hostname in _HERE and url.port != 0)
    except ValueError:
        here = False
    return "" if here else "http is an address of this board, as http://127.0.0.1:8080/health"


def restart(service: Service) -> ServiceState:
    """Restart it, and wait until it is well.

    Raises:
        BoardError: it can't be restarted. DeadlineError: it was not well in time.
    """
    began = time.monotonic()
    code = _run(_systemctl(service, "restart", as_root=service.scope == "system"), _RESTART_SECONDS)
    if code:
        user = "--user " if service.scope == "user" else ""
        raise BoardError(
            f"{service.unit} can't be restarted: systemctl ended with {code if code > 0 else 'a deadline'}",
            f"service {service.unit}",
            f"on the board: systemctl {user}status {service.unit}",
        )
    until, good, said = time.monotonic() + service.deadline_seconds, 0, ""
    while good < _GOOD_ANSWERS:
        said = _ill(service, until)
        good = 0 if said else good + 1
        if time.monotonic() > until and good < _GOOD_ANSWERS:
            raise DeadlineError(
                f"{service.unit} was not well within {service.deadline_seconds:g} s: {said or 'it answered too late'}",
                f"service {service.unit}",
                f"on the board: journalctl -u {service.unit}",
            )
        if good < _GOOD_ANSWERS:
            time.sleep(_POLL_SECONDS)
    return ServiceState(service.unit, round(time.monotonic() - began, 3))


def _ill(service: Service, until: float) -> str:
    """Why it is not well now; empty if it is."""
    left = max(1.0, min(_CHECK_SECONDS, until - time.monotonic()))
    if _run([*_systemctl(service, "is-active")], left):
        return "it is not active"
    if service.command and (code := _run(service.command, left)):
        return f"its health command ended with {code}" if code > 0 else "its health command did not end"
    return _http(service.http, left) if service.http else ""


def _http(address: str, seconds: float) -> str:
    # Here and not above: with ssl and email they take 3 MB, which an agent that only waits should not.
    import http.client
    from urllib.parse import urlsplit

    url = urlsplit(address)
    connection = http.client.HTTPConnection(url.hostname or "", url.port or 80, timeout=seconds)
    try:
        connection.request("GET", (url.path or "/") + (f"?{url.query}" if url.query else ""))
        status = connection.getresponse().status
        return "" if 200 <= status < 300 else f"its health page answers {status}"  # noqa: PLR2004  2xx is good
    except (OSError, http.client.HTTPException) as error:
        return f"its health page does not answer ({type(error).__name__})"
    finally:
        connection.close()


def _systemctl(service: Service, verb: str, *, as_root: bool = False) -> List[str]:
    program = shutil.which("systemctl", path=os.environ.get("PATH", "") + os.pathsep + "/usr/bin:/bin")
    if not program:
        raise BoardError("the board has no systemctl", f"service {service.unit}", "remove service.json on the board")
    # Exactly what the board's sudoers file lists: the path, the verb, the unit.
    user = ["--user"] if service.scope == "user" else []
    return [*(["sudo", "-n"] if as_root else []), program, *user, verb, service.unit]


def _run(command: List[str], seconds: float) -> int:
    """The exit code, -1 if it takes too long or is killed. What it prints is nobody's."""
    environment: Dict[str, str] = dict(os.environ)
    # A session without a login has no such variable, and systemctl --user needs it.
    environment.setdefault("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    quiet = subprocess.DEVNULL
    try:
        process = subprocess.Popen(
            command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True, env=environment
        )
    except OSError:
        return 127
    try:
        return max(-1, process.wait(seconds))
    except subprocess.TimeoutExpired:
        return -1
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
