"""The way to a Dask cluster: its address, TLS, and what went wrong in the words of the user; and a gateway of it."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from edgepipe.errors import EdgepipeError, LinkError, UsageError
from edgepipe.fleet.engines import Options
from edgepipe.fleet.engines._gateway import SITE, SPARE

_CONNECT = 10  # s
_START = "dask scheduler --port 8786 --no-dashboard --tls-ca-file CA --tls-cert CERT --tls-key KEY"


def library() -> ModuleType:
    """Dask distributed, told to be quiet: what goes wrong is told by us.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import distributed
    except ImportError as error:
        fix = "pip install 'edgepipe[dask]', on the host and on each gateway"
        raise UsageError(f"Dask distributed is not installed ({error})", "--engine dask", fix) from None
    for name in ("distributed", *(name for name in logging.root.manager.loggerDict if name.startswith("distributed."))):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    module: ModuleType = distributed
    return module


def address(options: Options) -> str:
    """Where the scheduler is, by the flag or by Dask's own configuration.

    Raises:
        UsageError: nobody says, or it is open to others and has no TLS.
    """
    import dask

    found = options.scheduler or dask.config.get("scheduler-address", None) or ""
    parts = urlsplit(found)
    fix = f"--scheduler tls://HOST:8786; start one: {_START}"
    if not found:
        raise UsageError("which scheduler?", "--engine dask", fix)
    if parts.scheme not in ("tls", "tcp") or not parts.hostname:
        raise UsageError(f"not the address of a scheduler: {found[:80]}", "--scheduler", fix)
    if parts.scheme == "tcp" and not _loopback(parts.hostname):
        what = f"{found} is not encrypted, and whoever reaches a scheduler can run code on all of its gateways"
        raise UsageError(what, "--scheduler", fix)
    return str(found)


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def security(options: Options) -> Any:
    """The certificates, by flags or by Dask's own configuration (``distributed.comm.tls``).

    Raises:
        UsageError: one is missing, can't be read, or its time is over.
    """
    import distributed

    files = {"--tls-ca": options.tls_ca, "--tls-cert": options.tls_cert, "--tls-key": options.tls_key}
    missing = [flag for flag, name in files.items() if not name]
    if missing and len(missing) < len(files):
        raise UsageError(f"{', '.join(missing)} is missing", "--engine dask", "give all three: CA, certificate and key")
    if missing:
        found = distributed.Security()
    else:
        more = {
            f"tls_{role}_{part}": files[f"--tls-{part}"] for role in ("client", "worker") for part in ("cert", "key")
        }
        found = distributed.Security(tls_ca_file=options.tls_ca, require_encryption=True, **more)
    for name in (found.tls_ca_file, found.tls_client_cert):
        if name:
            _check_dates(str(name))
    return found


def _check_dates(path: str) -> None:
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificates(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"not a certificate: {error}", path, "name a PEM file") from None
    now = datetime.now(UTC)
    for each in found:
        if now > each.not_valid_after_utc:
            when = f"{each.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
            raise UsageError(f"the certificate has expired: {when}", path, "make a new one, or set this host's clock")
        if now < each.not_valid_before_utc:
            when = f"{each.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
            raise UsageError(f"the certificate is not valid before {when}", path, "set this host's clock")


def unreachable(where: str, error: BaseException) -> LinkError:
    """The error for a scheduler that does not answer or does not trust us, by what caused it."""
    causes = list(_causes(error))
    said = " ".join(str(each) for each in causes)
    broken = next((each for each in causes if isinstance(each, ssl.SSLError)), None)
    if "certificate has expired" in said or "CERTIFICATE_EXPIRED" in said.upper().replace(" ", "_"):
        return LinkError(
            "the certificate of the scheduler, or ours as it sees it, has expired", where, "make a new one"
        )
    if broken or "[ssl" in said.lower():
        what = f"no trust between this host and the scheduler ({_short(broken or error)})"
        return LinkError(what, where, "use certificates of one CA: --tls-ca, --tls-cert, --tls-key")
    return LinkError(f"the scheduler can't be reached ({_short(causes[-1])})", where, f"check the address; {_START}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _short(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:160]


async def probe(where: str, trust: Any) -> None:
    """Connect once, for the sake of a clear error.

    Raises:
        LinkError: nobody is there, or one of the two does not trust the other.
    """
    from distributed.core import connect

    try:
        comm = await connect(where, timeout=_CONNECT, **trust.get_connection_args("client"))
        await comm.close()
    except (OSError, TimeoutError, RuntimeError, TypeError, ValueError) as error:
        raise unreachable(where, error) from None


def open_client(options: Options) -> Any:
    """A client of the cluster.

    Raises:
        UsageError: as `library`, `address`, `security`. LinkError: the scheduler can't be reached.
    """
    distributed = library()
    where, trust = address(options), security(options)
    asyncio.run(probe(where, trust))
    try:
        return distributed.Client(
            where, security=trust, timeout=_CONNECT, set_as_default=False, direct_to_workers=False, name="edgepipe"
        )
    except (OSError, TimeoutError) as error:
        raise unreachable(where, error) from None


def run_gateway(options: Options, sites: list[str], note: Callable[[str], None]) -> None:
    """Be a gateway to the boards of these sites, so many at a time, until it is told to end.

    Raises:
        UsageError: as `open_client`. LinkError: the scheduler can't be reached, or is gone.
    """
    library()
    where, trust = address(options), security(options)
    asyncio.run(_gateway(where, trust, sites, options.parallel, note))


async def _gateway(where: str, trust: Any, sites: list[str], parallel: int, note: Callable[[str], None]) -> None:
    import distributed

    await probe(where, trust)
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    name = f"{socket.gethostname()}-{os.getpid()}"
    worker = distributed.Worker(
        where, security=trust, name=name, nthreads=parallel + SPARE, memory_limit=0, dashboard=False,
        resources={SITE + site: parallel for site in sites}, death_timeout=6 * _CONNECT,
    )  # fmt: skip
    try:
        await worker
    except (OSError, TimeoutError) as error:
        raise unreachable(where, error) from None
    note(f"gateway {name} serves {', '.join(sites)}, {parallel} boards at a time; {where}")
    ends = {asyncio.ensure_future(told.wait()), asyncio.ensure_future(worker.finished())}
    _, waiting = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for each in waiting:
        each.cancel()
    if not told.is_set():
        raise LinkError("the scheduler is gone", where, "start it, then this gateway; edgepipe fleet resume goes on")
    await worker.close(executor_wait=False)


def lost(error: EdgepipeError | BaseException, where: str) -> LinkError:
    """The error of a run whose scheduler went away."""
    fix = "start the scheduler and its gateways, then: edgepipe fleet resume"
    return LinkError(f"the scheduler is gone ({_short(error)})", where, fix)
