"""What runs a fleet's jobs, as flags; and `edgepipe fleet gateway`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgepipe.cli import console
from edgepipe.errors import UsageError

if TYPE_CHECKING:
    from edgepipe.fleet.engines import Choice

Engine = Annotated[str, typer.Option("--engine", help="What runs the jobs: thread, or dask for more than this host.")]
Scheduler = Annotated[str, typer.Option("--scheduler", help="Dask's scheduler, tls://HOST:8786; else by Dask's files.")]
Ca = Annotated[str, typer.Option("--tls-ca", help="The CA that host, scheduler and gateways trust (PEM).")]
Cert = Annotated[str, typer.Option("--tls-cert", help="This host's certificate (PEM).")]
Key = Annotated[str, typer.Option("--tls-key", help="Its private key (PEM).")]


def choice(engine: str, scheduler: str, ca: str, cert: str, key: str) -> Choice:
    """The engine that flags choose.

    Raises:
        UsageError: flags of another engine.
    """
    from edgepipe.fleet.engines import Choice, Options

    if engine == "thread" and (scheduler or ca or cert or key):
        what = "threads of this process have no scheduler or certificates"
        raise UsageError(what, "--engine thread", "--engine dask")
    return Choice(engine, Options(scheduler=scheduler, tls_ca=ca, tls_cert=cert, tls_key=key))


def gateway(
    site: Annotated[str, typer.Option("--site", help="Sites whose boards are reached from here; * for any.")] = "*",
    parallel: Annotated[int, typer.Option("--parallel", min=1, help="Boards at a time through here.")] = 32,
    scheduler: Scheduler = "",
    tls_ca: Ca = "",
    tls_cert: Cert = "",
    tls_key: Key = "",
) -> None:
    """Run the jobs of fleets on the boards of a site, near them: `fleet run --engine dask` hands them over."""
    from edgepipe.cli import options
    from edgepipe.fleet.engines import Options, _cluster

    def note(text: str) -> None:
        console.stderr().print(text, markup=False)

    told = Options(parallel, scheduler, tls_ca, tls_cert, tls_key)
    _cluster.run_gateway(told, list(options.names(site, "--site")), note)
