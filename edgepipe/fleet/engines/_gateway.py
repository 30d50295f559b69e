"""What runs at a gateway, a Dask worker near its boards: a fleet's session there, its files, and its jobs.

A session and a package are results that the gateway holds for the host. When the host goes, however it goes, the
scheduler has them dropped: the connections of the session are closed, and the files are removed.
"""

from __future__ import annotations

import pickle
import shutil
import tempfile
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import edgepipe
from edgepipe.errors import UsageError
from edgepipe.fleet import work
from edgepipe.fleet.work import Package
from edgepipe.link._push import Source
from edgepipe.schema import FileRef

SITE = "site:"
ANY = "*"  # a gateway of this site takes boards of all sites that have no gateway of their own
SPARE = 2  # threads for what is no board's job: sessions and files


class Session:
    """A fleet at this gateway. The connections to its boards are closed when nobody holds it any more."""

    def __init__(self, name: str) -> None:
        self.name = name
        weakref.finalize(self, work.close_all, name)

    def __reduce__(self) -> tuple[type[Session], tuple[str]]:
        return Session, (self.name,)


class Landed:
    """A package whose files lie in a folder of this gateway for as long as somebody holds it."""

    def __init__(self, package: Package) -> None:
        self.carried = package
        folder = Path(tempfile.mkdtemp(prefix="edgepipe-gateway-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        files = [(_land(folder, content, ref), ref) for content, ref in package.files]
        self.package = replace(package, files=files)
        if package.artifact:
            path = folder / Path(package.artifact.path).name
            self.package = replace(self.package, artifact=replace(package.artifact, path=str(path)))

    def __reduce__(self) -> tuple[type[Landed], tuple[Package]]:
        return Landed, (self.carried,)


def carried(package: Package) -> Package:
    """A package that needs no file of this host: the bytes stand where the paths were."""
    files: list[Source] = [
        (content.read_bytes() if isinstance(content, Path) else content, ref) for content, ref in package.files
    ]
    return replace(package, files=files)


def _land(folder: Path, content: Path | bytes, ref: FileRef | str) -> Path | bytes:
    """Write a named file; what has a hash alone stays in memory."""
    if isinstance(ref, str):
        return content
    path = folder / ref.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return path


def enter(name: str, version: str) -> Session:
    """Begin a session.

    Raises:
        UsageError: the host is of another version.
    """
    if version != edgepipe.__version__:
        what = f"the gateway has edgepipe {edgepipe.__version__}, the host {version}"
        raise UsageError(what, "the gateway", "install the same version on both")
    return Session(name)


def act(session: Session, landed: Landed | None, order: bytes) -> Any:
    """Do a job on a board: ``order`` holds it, where, and its arguments after the package, if it has one."""
    job, where, rest = pickle.loads(order)  # noqa: S301 - whoever the certificates let in may run code anyway
    package = (landed.package,) if landed else ()
    return job(replace(where, session=session.name), *package, *rest)


def hang_up(session: str, boards: list[str]) -> None:
    """Close connections without waiting for it: a job that hangs on one gets an error."""
    for board in boards:
        threading.Thread(target=work.close, args=(session, board), daemon=True).start()
