"""Pin the host key of a board, or look at it: the only ways a key becomes trusted."""

from __future__ import annotations

from typing import Protocol

from edgepipe.errors import HostKeyError, UsageError
from edgepipe.link import Endpoint, _trust
from edgepipe.link._trust import HostKey


class Place(Protocol):
    """What has an endpoint: a target."""

    def endpoint(self) -> Endpoint:
        """Return the endpoint, or raise UsageError where there is no address."""


def scan(place: Place) -> HostKey:
    """Return the first host key on the way that is not trusted yet, else the board's own.

    Logs in at jump hosts that are trusted already, and nowhere else.

    Raises:
        UsageError: no address. LinkError, DeadlineError: the board can't be asked.
    """
    from edgepipe.link._hops import resolve
    from edgepipe.link.ssh import probe

    endpoint = place.endpoint()
    if endpoint.address is None:
        raise UsageError(
            f"target {endpoint.target} has no host key to pin", f"target {endpoint.target}", "it is this machine"
        )
    return probe(resolve(endpoint.address), endpoint.target)


def pin(place: Place, fingerprint: str | None = None) -> HostKey:
    """Trust the key that `scan` finds, if it has ``fingerprint`` (any, if None). A key that changed is refused.

    Raises:
        HostKeyError: another fingerprint than expected, or another key is pinned already.
    """
    endpoint = place.endpoint()
    key = scan(place)
    known = _trust.trusted(endpoint.target, key.host)
    if known and all(one.blob != key.blob for one in known):
        raise _trust.changed(endpoint.target, key, known, f" --host {endpoint.address}")
    return _write(endpoint.target, key, fingerprint)


def re_pin(place: Place, fingerprint: str | None = None) -> tuple[str, HostKey]:
    """Trust the key that `scan` finds in place of the one pinned before; returns the old fingerprints and the new key.

    Raises:
        HostKeyError: another fingerprint than expected.
    """
    endpoint = place.endpoint()
    key = scan(place)
    old = ", ".join(str(one) for one in _trust.trusted(endpoint.target, key.host)) or "none"
    return old, _write(endpoint.target, key, fingerprint)


def _write(target: str, key: HostKey, fingerprint: str | None) -> HostKey:
    if fingerprint is not None and fingerprint != key.fingerprint:
        raise HostKeyError(
            f"{key.host} shows {key.fingerprint}, not the expected {fingerprint[:80]}",
            f"target {target}",
            "nothing was pinned; read the fingerprint again on the board itself",
        )
    _trust.write_pin(target, key)
    return key
