"""The HTTP side: one page, its data, server-sent events and Prometheus' text. It answers GET alone and writes nothing.

On a loopback address no token is asked for, but the Host header must name one, so that no web page elsewhere can read
it by rebinding its name. On any other address a token is needed: as ``Authorization: Bearer``, or once as ``?token=``,
which becomes a cookie.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import ipaddress
import json
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

from edgepipe.errors import UsageError
from edgepipe.serve import prometheus
from edgepipe.serve.state import State

_EVERY = 0.1  # s between messages: what comes faster goes together
_QUIET = 15.0  # s without a message after which one is sent all the same, so that a dead client is noticed
_STREAMS = 32
_COOKIE = "edgepipe"


class Server(ThreadingHTTPServer):
    """Serves a `State` that a thread of its own keeps up to date."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, host: str, port: int, state: State, token: str = "") -> None:
        """Bind. Raises UsageError where the address can't be had, or is open to others and there is no token."""
        self.state, self.token = state, token
        self.loopback = is_loopback(host)
        if not self.loopback and not token:
            fix = "set EDGEPIPE_TOKEN, or let edgepipe serve make one"
            raise UsageError(f"{host} is open to others, and there is no token", "--host", fix)
        self.page, self.policy = _page()
        self.changed = threading.Condition()
        self.news: list[tuple[int, set[str]]] = []
        self.version = 0
        self.streams = threading.Semaphore(_STREAMS)
        self._ending = threading.Event()
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            fix = "choose another --port, or --host"
            raise UsageError(f"can't listen: {error.strerror}", f"{host}:{port}", fix) from error
        threading.Thread(target=self._follow, name="edgepipe-journal", daemon=True).start()

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}/"

    def server_close(self) -> None:
        """End."""
        self._ending.set()
        super().server_close()

    def _follow(self) -> None:
        """Read what the journal got, and wake whoever waits for it."""
        while not self._ending.wait(_EVERY):
            boards = self.state.refresh()
            if boards:
                with self.changed:
                    self.version += 1
                    self.news = [*self.news[-100:], (self.version, boards)]
                    self.changed.notify_all()

    def since(self, version: int) -> tuple[int, set[str]]:
        """Wait for news after ``version``; the newest version and the boards that changed, none after a quiet while."""
        with self.changed:
            self.changed.wait_for(lambda: self.version > version or self._ending.is_set(), _QUIET)
            return self.version, set().union(*(boards for at, boards in self.news if at > version))


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    server_version, sys_version = "edgepipe", ""
    timeout = 60

    def do_GET(self) -> None:
        """Answer."""
        split = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(split.query).items()}
        if not self._named_here():
            self._send(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", b"this server goes by a loopback address alone\n")
            return
        if not self._allowed(query):
            self._send(HTTPStatus.UNAUTHORIZED, "text/plain", b"a token is needed: ?token=... or a Bearer header\n")
            return
        act = {"/": self._index, "/events": self._events, "/metrics": self._metrics, **self._documents(query)}.get(
            split.path
        )
        if act is None:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"no such page\n")
            return
        with contextlib.suppress(ConnectionError):  # the browser went on to something else
            act()

    def _documents(self, query: dict[str, str]) -> dict[str, Callable[[], None]]:
        state = self.server.state

        def whole() -> dict[str, Any]:
            found = {"runs": state.runs()[:50], "boards": state.boards(query.get("run", "")), "models": state.models()}
            return {**found, "tradeoffs": state.tradeoffs(), "rollouts": state.rollouts()[:20]}

        return {
            "/api/state": lambda: self._json(whole()),
            "/api/history": lambda: self._json(state.history(query.get("board", ""), query.get("model", ""))),
            "/api/regressions": lambda: self._json(state.regressions()),
        }

    def _index(self) -> None:
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)

    def _metrics(self) -> None:
        text = prometheus.text(self.server.state)
        self._send(HTTPStatus.OK, "text/plain; version=0.0.4; charset=utf-8", text.encode())

    def _json(self, value: Any) -> None:
        data = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
        self._send(HTTPStatus.OK, "application/json", data)

    def _events(self) -> None:
        """Send what changes until the client goes."""
        if not self.server.streams.acquire(blocking=False):
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"too many live pages\n")
            return
        try:
            self._head(HTTPStatus.OK, "text/event-stream")
            self.end_headers()
            version = self.server.version
            while not self.server._ending.is_set():
                version, boards = self.server.since(version)
                state = self.server.state
                news = {"boards": state.boards(only=boards), "runs": state.runs()[:1]} if boards else {}
                self.wfile.write(b"data: " + json.dumps(news, separators=(",", ":")).encode() + b"\n\n")
                self.wfile.flush()
                time.sleep(_EVERY)
        except OSError:
            pass
        finally:
            self.server.streams.release()

    def _named_here(self) -> bool:
        """Whether the Host header is one that a page elsewhere can't have."""
        if not self.server.loopback:
            return True
        return is_loopback(urlsplit(f"//{self.headers.get('Host', '')}").hostname or "")

    def _allowed(self, query: dict[str, str]) -> bool:
        if self.server.loopback and not self.server.token:
            return True
        header = self.headers.get("Authorization", "").removeprefix("Bearer ")
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(_COOKIE)
        except CookieError:
            cookie = None
        given = [query.get("token", ""), header, cookie.value if cookie else ""]
        wanted = self.server.token.encode()
        return any(hmac.compare_digest(each.encode(), wanted) for each in given)

    def _head(self, status: HTTPStatus, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Content-Security-Policy", self.server.policy)
        if self.server.token and "token=" in self.path and status == HTTPStatus.OK:
            self.send_header("Set-Cookie", f"{_COOKIE}={self.server.token}; HttpOnly; SameSite=Strict; Path=/")

    def _send(self, status: HTTPStatus, kind: str, data: bytes) -> None:
        self._head(status, kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Say nothing: a request line may bear the token."""


def is_loopback(host: str) -> bool:
    """Whether an address is one that only this machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _page() -> tuple[bytes, str]:
    """The page, whole, and the policy that lets its own script and style run and nothing else."""
    parts = {
        name: resources.files("edgepipe.serve").joinpath(f"page.{name}").read_text() for name in ("html", "css", "js")
    }
    hashes = {name: base64.b64encode(hashlib.sha256(parts[name].encode()).digest()).decode() for name in ("css", "js")}
    text = parts["html"].replace("/*css*/", parts["css"]).replace("/*js*/", parts["js"])
    policy = f"default-src 'none'; style-src 'sha256-{hashes['css']}'; script-src 'sha256-{hashes['js']}'; "
    policy += "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return text.encode(), policy
