"""JSON from a device on the local network: no proxies, no redirects, bounded answers, and no password in any error."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from decimal import Decimal
from typing import Any

_SECONDS = 3.0
_MOST_BYTES = 64 << 10


class Device:
    """A device that answers GET with JSON. A password goes along at once, or with ``digest`` answers a challenge.

    Raises:
        ValueError: an address that is no HTTP one.
    """

    def __init__(self, address: str, user: str = "", password: str = "", *, digest: bool = False) -> None:
        parts = urllib.parse.urlsplit(address if "://" in address else f"http://{address}")
        if parts.scheme not in {"http", "https"} or parts.path.strip("/"):
            raise ValueError("its address is no host[:port]")
        self._base = f"{parts.scheme}://{parts.netloc}"
        self._headers = {}
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _NoRedirect()]
        if password and digest:
            known = urllib.request.HTTPPasswordMgrWithDefaultRealm()
            known.add_password(None, self._base, user, password)
            handlers.append(_Digest(known))
        elif password:
            pair = base64.b64encode(f"{user}:{password}".encode()).decode()
            self._headers["Authorization"] = f"Basic {pair}"
        self._opener = urllib.request.build_opener(*handlers)

    def get(self, path: str, query: dict[str, str] | None = None) -> Any:
        """Return the JSON at a path; fractions come as Decimal, which keeps the digits that were sent.

        Raises:
            PermissionError: it wants a password, or another one. OSError: no answer. ValueError: no JSON.
        """
        line = f"{path}?{urllib.parse.urlencode(query)}" if query else path
        request = urllib.request.Request(self._base + line, headers=self._headers)  # noqa: S310 - the scheme was checked
        try:
            with self._opener.open(request, timeout=_SECONDS) as reply:
                data = reply.read(_MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in {401, 403}:
                raise PermissionError("it wants a password, or another one") from None
            raise OSError(f"it answers {path} with HTTP status {error.code}") from None
        except urllib.error.URLError as error:
            raise OSError(f"it can't be reached: {error.reason}") from None
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(f"it does not speak HTTP as expected: {type(error).__name__}") from None
        if len(data) > _MOST_BYTES:
            raise ValueError(f"an answer of more than {_MOST_BYTES} bytes")
        try:
            return json.loads(data, parse_float=Decimal)
        except (ValueError, RecursionError):
            raise ValueError("an answer that is not JSON") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow none: a meter has no reason to send anybody elsewhere."""


class _Digest(urllib.request.HTTPDigestAuthHandler):
    """Digest access with SHA-256 too (RFC 7616), which Python's own learns in 3.14 only."""

    def get_algorithm_impls(self, algorithm: str) -> Any:
        """Return the hash of a text, and that of a secret with data."""
        if algorithm.upper() != "SHA-256":
            return super().get_algorithm_impls(algorithm)

        def hashed(text: str) -> str:
            return hashlib.sha256(text.encode()).hexdigest()

        def keyed(secret: str, data: str) -> str:
            return hashed(f"{secret}:{data}")

        return hashed, keyed
