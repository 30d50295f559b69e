"""A Dask cluster of processes on loopback, over TLS with certificates made for the occasion."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgepipe.fleet.engines import Choice, Options

ROOT = Path(__file__).parents[1]
QUIET = {"DASK_LOGGING__DISTRIBUTED": "error"}


def certificates(folder: Path, days: float = 1.0) -> dict[str, Path]:
    """A CA, and a certificate of it that ends in so many days (negative: it ended) with its key."""
    folder.mkdir(parents=True, exist_ok=True)
    now, issuer = datetime.now(UTC), ec.generate_private_key(ec.SECP256R1())
    names = {each: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"edgepipe {each}")]) for each in ("ca", "host")}
    own = ec.generate_private_key(ec.SECP256R1())
    files = {}
    for name, key, end in (("ca", issuer, 2.0), ("host", own, days)):
        made = (
            x509.CertificateBuilder()
            .subject_name(names[name])
            .issuer_name(names["ca"])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=9))
            .not_valid_after(now + timedelta(days=end))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .sign(issuer, hashes.SHA256())
        )
        files[name] = folder / f"{name}.pem"
        files[name].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files["key"] = folder / "key.pem"
    files["key"].write_bytes(
        own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


class Cluster:
    """A scheduler, and gateways to boards of the null link that write down what they have measured."""

    def __init__(self, folder: Path, trust: dict[str, Path] | None = None) -> None:
        self.folder, self.trust = folder, trust or certificates(folder / "tls")
        self.benched = folder / "benched.log"
        self.gateways: list[subprocess.Popen] = []
        flags = ["--tls-ca-file", self.trust["ca"], "--tls-cert", self.trust["host"], "--tls-key", self.trust["key"]]
        self.scheduler = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_scheduler", "--protocol", "tls", "--host", "127.0.0.1",
             "--port", "0", "--no-dashboard", "--no-show", *map(str, flags)],
            stderr=(folder / "scheduler.log").open("wb"), cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.address = self._wait(folder / "scheduler.log", r"(tls://127\.0\.0\.1:\d+)")

    @property
    def choice(self) -> Choice:
        """The engine that goes over this cluster."""
        return Choice("dask", self.options)

    @property
    def options(self) -> Options:
        files = {"tls_ca": "ca", "tls_cert": "host", "tls_key": "key"}
        return Options(scheduler=self.address, **{flag: str(self.trust[name]) for flag, name in files.items()})

    @property
    def flags(self) -> list[str]:
        """The same for the command line."""
        o = self.options
        return ["--scheduler", o.scheduler, "--tls-ca", o.tls_ca, "--tls-cert", o.tls_cert, "--tls-key", o.tls_key]

    def gateway(self, site: str, parallel: int = 16) -> subprocess.Popen:
        """Start a gateway of a site by its command line; its boards' link writes to ``benched``."""
        log = self.folder / f"gateway-{len(self.gateways)}.log"
        argv = ["fleet", "gateway", "--site", site, "--parallel", str(parallel), *self.flags]
        code = f"import sys; sys.argv = ['edgepipe', *{argv!r}]; from tests import dask_kit; dask_kit.be_gateway()"
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stderr=log.open("wb"), cwd=ROOT, env=os.environ | QUIET | {"BENCHED": str(self.benched)},
        )  # fmt: skip
        self.gateways.append(process)
        self._wait(log, r"(gateway \S+ serves)")
        return process

    def counts(self) -> Counter:
        """How often each trial was measured to its end."""
        lines = self.benched.read_text().splitlines() if self.benched.exists() else []
        return Counter(json.loads(line)[1] for line in lines)

    def boards_of(self, process: subprocess.Popen) -> set[str]:
        """Boards on which a gateway has measured."""
        lines = self.benched.read_text().splitlines() if self.benched.exists() else []
        return {name for name, _, pid in map(json.loads, lines) if pid == process.pid}

    def close(self) -> None:
        for process in [*self.gateways, self.scheduler]:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _wait(log: Path, pattern: str, seconds: float = 60) -> str:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = re.search(pattern, log.read_text())
            if found:
                return found[1]
            time.sleep(0.05)
        raise AssertionError(log.read_text()[-2000:])


def be_gateway() -> None:
    """Be the gateway that the command line asks for."""
    from edgepipe.cli import main
    from edgepipe.link import null
    from tests import fleet_kit

    class Board(fleet_kit.Sick):
        def answer(self, verb, args, payload):
            result = super().answer(verb, args, payload)
            if verb == "bench":
                line = json.dumps([self.name, args["run"], os.getpid()]) + "\n"
                handle = os.open(os.environ["BENCHED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                os.write(handle, line.encode())
                os.close(handle)
            return result

    class Link(fleet_kit.Link):
        channel = Board

    null.open_link = Link
    sys.exit(main())
