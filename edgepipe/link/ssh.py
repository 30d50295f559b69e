"""A board over SSH, on paramiko, with only the algorithms a modern OpenSSH prefers and with pinned host keys."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import socket
import threading
import time
from typing import Any

from edgepipe.errors import BoardError, DeadlineError, EdgepipeError, HostKeyError, LinkError, UsageError
from edgepipe.link import Endpoint, Result, quote
from edgepipe.link._hops import Hop, resolve
from edgepipe.link._keys import login
from edgepipe.link._stream import Stream, collect
from edgepipe.link._trust import HostKey, check, trusted

HANDSHAKE_SECONDS = 15.0
_WINDOW = 4 << 20
_PACKET = 32 << 10
_MIN_RSA_BITS = 2048
# AES-GCM first: one pass for cipher and integrity, and the fastest that paramiko offers.
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr")
_MACS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512")
_KEX = ("mlkem768x25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256", "ecdh-sha2-nistp384")
_KEYS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)


class SshLink:
    """An authenticated connection. ``transports`` are those of the jump hosts and, last, the board's."""

    def __init__(self, transports: list[Any], hops: list[Hop], endpoint: Endpoint) -> None:
        self.python = endpoint.python
        self.root = endpoint.root
        self._transports = transports
        self._hops = hops

    def open(self, argv: list[str]) -> Stream:
        """Start a command.

        Raises:
            LinkError: the connection is gone, or the server grants no session.
        """
        command = quote(argv)
        try:
            channel = self._transports[-1].open_session(_WINDOW, _PACKET, timeout=HANDSHAKE_SECONDS)
            channel.settimeout(HANDSHAKE_SECONDS)
            channel.exec_command(command)
        except Exception as error:
            raise LinkError(
                f"no session at {self.describe()}: {error or 'closed'}", self.describe(), "try again"
            ) from None
        return Stream(_Session(channel, self._transports[-1], self.describe()))

    def run(self, argv: list[str], stdin: bytes = b"", deadline: float = 30.0) -> Result:
        """Run a command to its end."""
        return collect(self.open(argv), stdin, deadline)

    def describe(self) -> str:
        """Say where this leads."""
        return str(self._hops[-1])

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the host key that the board showed."""
        return _host_key(self._hops[-1], self._transports[-1].get_remote_server_key()).fingerprint

    def close(self) -> None:
        """Close the connection, the last hop first."""
        _close(self._transports)


class _Session:
    """A `Pipe` over an SSH session channel."""

    def __init__(self, channel: Any, transport: Any, where: str) -> None:
        self._channel = channel
        self._transport = transport
        self.where = where
        channel.settimeout(None)

    def recv(self, count: int, timeout: float) -> bytes | None:
        # The time-out is the channel's, not the call's: the writer and stderr threads just go round once more.
        self._channel.settimeout(max(timeout, 0.02))
        try:
            return bytes(self._channel.recv(count))
        except TimeoutError:
            return None
        finally:
            self._channel.settimeout(None)

    def recv_error(self, count: int) -> bytes:
        while True:
            with contextlib.suppress(TimeoutError):
                return bytes(self._channel.recv_stderr(count))

    def write(self, data: bytes) -> None:
        # Slices of one packet: paramiko would copy the whole rest of a larger buffer for every packet it sends.
        view = memoryview(data)
        while view:
            with contextlib.suppress(TimeoutError):
                sent = self._channel.send(bytes(view[: _PACKET - 64]))
                if not sent:
                    raise EOFError
                view = view[sent:]

    def close_write(self) -> None:
        self._channel.shutdown_write()

    def wait(self, timeout: float) -> int | None:
        # Not recv_exit_status(): it ignores time-outs (paramiko issue 1815).
        if not self._channel.status_event.wait(timeout):
            return None
        if self._channel.exit_status < 0 and not self._channel.eof_received:
            raise self.ended("")
        return int(self._channel.exit_status)

    def ended(self, tail: str) -> EdgepipeError:
        said = f": {tail}" if tail else ""
        if self._channel.eof_received:
            status = self.wait(1.0)
            return BoardError(f"the command on the board ended (status {status}){said}", self.where)
        return LinkError(f"the connection broke{said}", self.where, "check the network and that the board is up")

    def kill(self) -> None:
        # Closing sends a message; on a dead network that may block, so it must not be the caller who waits.
        closer = threading.Thread(target=self._close, name="edgepipe-close", daemon=True)
        closer.start()
        closer.join(0.5)
        if closer.is_alive():
            self._transport.packetizer.close()

    def _close(self) -> None:
        with contextlib.suppress(Exception):
            self._channel.close()


def open_link(endpoint: Endpoint) -> SshLink:
    """Connect to the endpoint's address, by way of the jump hosts that ``~/.ssh/config`` names.

    Raises:
        UsageError: no address, or a configuration that can't be honoured.
        HostKeyError: a host key that is unknown or not the pinned one.
        LinkError: no connection or no login. DeadlineError: no answer in time.
    """
    if endpoint.address is None:
        raise UsageError(
            f"target {endpoint.target} has no address", f"target {endpoint.target}", "add --host [user@]name[:port]"
        )
    hops = resolve(endpoint.address)
    if endpoint.identity:
        hops[-1] = dataclasses.replace(hops[-1], identities=(endpoint.identity,), identities_only=True)
    hint = f" --host {endpoint.address}"
    return SshLink(connect(hops, endpoint.target, hint), hops, endpoint)


def connect(
    hops: list[Hop], target: str, hint: str = "", host_key: HostKey | None = None, key: Any = None
) -> list[Any]:
    """Connect and log in, hop by hop; ``host_key`` and ``key`` fix what the last hop must show and be shown."""
    transports: list[Any] = []
    try:
        for hop in hops:
            last = hop is hops[-1]
            expected = [host_key] if last and host_key else trusted(target, hop.key_name)
            transport, found = handshake(hop, transports, expected)
            transports.append(transport)
            _judge(target, hop, found, host_key if last else None, hint)
            login(transport, hop, time.monotonic() + HANDSHAKE_SECONDS, key if last else None)
            transport.set_keepalive(10)
        return transports
    except BaseException:
        _close(transports)
        raise


def probe(hops: list[Hop], target: str) -> HostKey:
    """Return the first host key on the way that is not trusted, else the board's own, without logging in there."""
    transports: list[Any] = []
    try:
        for hop in hops:
            transport, found = handshake(hop, transports, trusted(target, hop.key_name))
            transports.append(transport)
            known = any(one.blob == found.blob for one in trusted(target, hop.key_name))
            if hop is hops[-1] or not known:
                return found
            login(transport, hop, time.monotonic() + HANDSHAKE_SECONDS)
        raise UsageError("no address", f"target {target}")
    finally:
        _close(transports)


def handshake(hop: Hop, before: list[Any], known: list[HostKey]) -> tuple[Any, HostKey]:
    """Agree on keys with one server and return its transport and host key. Nothing secret has been sent yet.

    Raises:
        LinkError: unreachable, not an SSH server, or one without modern algorithms. DeadlineError: it stays silent.
    """
    sock = _tunnel(before[-1], hop) if before else _dial(hop)
    done = threading.Event()
    transport = _transport_class()(sock, default_window_size=_WINDOW, default_max_packet_size=_PACKET)
    transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = HANDSHAKE_SECONDS
    transport.prefer({one.kind for one in known})
    try:
        transport.start_client(event=done)
        if not done.wait(HANDSHAKE_SECONDS):
            raise DeadlineError(
                f"{hop} does not speak SSH within {HANDSHAKE_SECONDS:.0f} s",
                str(hop),
                "check the port, and that the board is not hung",
            )
        # Asking for the exception also forgets it, so it is asked for once.
        error = transport.get_exception()
        if error or not transport.is_active():
            raise _no_agreement(hop, error)
        shown = transport.get_remote_server_key()
    except BaseException:
        transport.close()
        sock.close()
        raise
    return transport, _host_key(hop, shown)


def _host_key(hop: Hop, shown: Any) -> HostKey:
    if shown.get_name() == "ssh-rsa" and shown.get_bits() < _MIN_RSA_BITS:
        raise HostKeyError(
            f"{hop} has a weak host key: RSA, {shown.get_bits()} bits", str(hop), "give the board an ed25519 host key"
        )
    return HostKey(hop.key_name, shown.get_name(), shown.asbytes())


def _judge(target: str, hop: Hop, found: HostKey, fixed: HostKey | None, hint: str) -> None:
    if fixed is None:
        check(target, found, hint)
    elif fixed.blob != found.blob:
        raise HostKeyError(
            f"{hop} shows another host key than the one made for it: {found.fingerprint}", str(hop), "try again"
        )


def _no_agreement(hop: Hop, error: Exception | None) -> EdgepipeError:
    import paramiko

    if isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
        return LinkError(
            f"{hop} offers only outdated SSH algorithms: {error}",
            str(hop),
            "update its SSH server to OpenSSH 7.4 or newer",
        )
    return LinkError(
        f"no SSH connection to {hop}: {error or 'it hung up'}",
        str(hop),
        "check that an SSH server listens on that port",
    )


def _dial(hop: Hop) -> socket.socket:
    """Connect by TCP. The name is looked up in a thread of its own, since the resolver knows no deadline."""
    outcome: list[Any] = []

    def attempt() -> None:
        try:
            outcome.append(socket.create_connection((hop.host, hop.port), hop.timeout))
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=attempt, name="edgepipe-dial", daemon=True)
    thread.start()
    thread.join(hop.timeout + 1)
    found = outcome[0] if outcome else TimeoutError()
    if isinstance(found, OSError):
        raise _unreachable(hop, found)
    assert isinstance(found, socket.socket)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # A peer that vanished is noticed after 30 s of unacknowledged data (keep-alives are sent every 10 s).
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
    return found


def _unreachable(hop: Hop, error: OSError) -> LinkError:
    if isinstance(error, TimeoutError):
        why = f"no answer within {hop.timeout:.0f} s"
    elif isinstance(error, socket.gaierror):
        why = "no such host name"
    else:
        why = (error.strerror or str(error)).lower()
    return LinkError(
        f"can't reach {hop.host} port {hop.port}: {why}", str(hop), "check --host, the network and that the board is up"
    )


def _tunnel(transport: Any, hop: Hop) -> Any:
    try:
        return transport.open_channel(
            "direct-tcpip", (hop.host, hop.port), ("127.0.0.1", 0), _WINDOW, _PACKET, hop.timeout
        )
    except Exception as error:
        raise LinkError(
            f"the jump host can't reach {hop.host} port {hop.port}: {error}", str(hop), "check ProxyJump"
        ) from None


def _close(transports: list[Any]) -> None:
    for transport in reversed(transports):
        with contextlib.suppress(Exception):
            transport.close()


@functools.cache
def _transport_class() -> Any:
    """Make the transport class on first use, since paramiko takes a third of a second to import."""
    import paramiko

    # Without a handler of its own, paramiko's logger would print stack traces on stderr.
    logging.getLogger("paramiko").addHandler(logging.NullHandler())

    class Transport(paramiko.Transport):  # type: ignore[misc]
        _preferred_keys: tuple[str, ...] = _KEYS
        _preferred_ciphers = _CIPHERS
        _preferred_macs = _MACS
        _preferred_kex = tuple(name for name in _KEX if name in paramiko.Transport._kex_info)
        _preferred_pubkeys = _KEYS

        def prefer(self, kinds: set[str]) -> None:
            """Ask for the host key types that are known first, as OpenSSH does, so that a pin of RSA stays usable."""
            names = {
                name
                for kind in kinds
                for name in _KEYS
                if name == kind or (kind == "ssh-rsa" and name.startswith("rsa"))
            }
            self._preferred_keys = tuple(sorted(_KEYS, key=lambda name: name not in names))

        @property
        def preferred_keys(self) -> tuple[str, ...]:
            """Plain keys alone: host certificates are not checked here, so none is asked for."""
            return tuple(self._preferred_keys)

    return Transport
