"""Give a board the runtimes it lacks: wheels are resolved on this host for the board's own Python, and pushed as files.

The board needs no network, no pip and no compiler. Each runtime gets a folder of its own, since they need different
versions of numpy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe import plugins, wheelhouse, wheels
from edgepipe.errors import BoardError
from edgepipe.wheelhouse import Pinned, Resolved
from edgepipe.wheels import Advice, Platform

if TYPE_CHECKING:
    from edgepipe.agent.health import Health
    from edgepipe.board import BoardClient
    from edgepipe.progress import Progress
    from edgepipe.schema import Board, FileRef
    from edgepipe.targets import Target

_ASK = 8000  # blobs in one question, whose line may have 1 MiB
_BLOCK = 4096  # what a file takes on the board's disk is rounded up to this
_SPARE = 1 << 20  # for lists, links and the agent's own needs


@dataclass(frozen=True)
class Provisioned:
    """What became of one runtime.

    ``state`` is "installed", "would install" (dry run), "unchanged", "present" or "none" (with its reason). ``wheels``
    is all it is made of. ``bytes_missing`` is what the board lacked of it, ``bytes_sent`` what was sent.
    """

    runtime: str
    state: str
    version: str = ""
    files: int = 0
    bytes: int = 0
    bytes_missing: int = 0
    bytes_sent: int = 0
    reason: str = ""
    wheels: list[Pinned] = field(default_factory=list)


@dataclass(frozen=True)
class Order:
    """How to provision: ``check`` changes nothing on the board; ``source`` is a folder of wheels, not the index."""

    check: bool = False
    source: Path | None = None


def provision(
    target: Target, client: BoardClient, runtimes: list[str] | None, progress: Progress, order: Order | None = None
) -> list[Provisioned]:
    """Give the board these runtimes; all that fit it if None. Does nothing where they are in place already.

    Raises:
        UsageError: no such runtime, this environment has no pip, or there is no such folder.
        BoardError: there is no room on the board; a runtime that was asked for by name has no wheel for it; or one does
            not show up there.
        LinkError: the package index or the board can't be reached.
    """
    job = _Job(target, client, progress, order or Order(), strict=bool(runtimes))
    done = []
    for name in runtimes or plugins.names("agent.runtimes"):
        if not plugins.load("agent.runtimes", name).PACKAGES:
            continue
        result = job.one(name)
        if result.state == "none" and runtimes:
            raise BoardError(
                f"no {name} for this board: {result.reason}", f"target {target.name}", "choose another format"
            )
        progress.note(f"{name}: {result.state} {result.version}{': ' if result.reason else ''}{result.reason}")
        done.append(result)
    return done


class _Job:
    """One board and what it said of itself. With ``strict`` a runtime that does not fit is an error."""

    def __init__(self, target: Target, client: BoardClient, progress: Progress, order: Order, *, strict: bool) -> None:
        self._target, self._client, self._progress, self._order = target, client, progress, order
        self._strict = strict
        self._board: Board = client.hello().board
        with progress.task("look at the board"):
            self._health: Health = client.doctor()

    def one(self, name: str) -> Provisioned:
        """Give the board one runtime."""
        have = next((trial for trial in self._health.trials if trial.runtime == name), None)
        site = any(runtime.site for runtime in self._board.runtimes if runtime.name == name)
        if have and have.imports and not site:
            return Provisioned(name, "present", have.version, reason="installed in the board's own Python")
        if self._target.link == "local":
            package = plugins.load("agent.runtimes", name).PACKAGES[0]
            fix = f"pip install {package}"
            return Provisioned(name, "none", reason=f"not in edgepipe's own environment, which is this board ({fix})")
        platform = wheels.platform_of(self._board, self._health.libstdcxx)
        advice = wheels.advise(name, platform, self._board.isa, wheels.crashed_there(self._health))
        if advice.wheel is None:
            return Provisioned(name, "none", reason=advice.reason)
        if lacking := wheels.missing(advice, self._health):
            return Provisioned(name, "none", reason=lacking)
        try:
            resolved = self._resolve(advice, platform)
        except BoardError as error:
            if self._strict:
                raise
            return Provisioned(name, "none", reason=error.what)
        return self._install(name, resolved)

    def _resolve(self, advice: Advice, platform: Platform) -> Resolved:
        assert advice.wheel
        wanted = advice.requirements
        if self._order.source:
            # Whatever tested version lies there will do.
            wanted = [advice.tested, *wanted[1:]]
        with self._progress.task(f"resolve {advice.runtime} for {platform}"):
            resolved = wheelhouse.resolve(wanted, platform, self._order.source, alone=bool(advice.from_board))
        for wheel in resolved.wheels:
            package, _, version = wheel.name.partition(" ")
            if why := wheels.crash(advice.runtime, package, version, self._board.arch, self._board.isa):
                raise BoardError(f"{wheel.file} would not run on {self._board.cpu}: {why}", self._target.name)
        return resolved

    def _install(self, name: str, resolved: Resolved) -> Provisioned:
        version = _version(name, resolved)
        files, client = resolved.files, self._client
        missing = self._room(name, files)
        size = sum(file.bytes for file in files)
        if self._order.check:
            state = "would install" if client.site(name, files, version, dry_run=True).changed else "unchanged"
            return Provisioned(name, state, version, len(files), size, missing, wheels=resolved.wheels)
        sent = client.push([(resolved.folder / file.name, file) for file in files])
        site = client.site(name, files, version)
        self._confirm(name)
        state = "installed" if site.changed else "unchanged"
        return Provisioned(name, state, version, site.files, site.bytes, missing, sent, wheels=resolved.wheels)

    def _room(self, name: str, files: list[FileRef]) -> int:
        """Bytes the board lacks of these files.

        Raises:
            BoardError: they don't fit on its disk.
        """
        blobs = {file.sha256: file.bytes for file in files}
        have: dict[str, int] = {}
        free = 0
        hashes = list(blobs)
        for first in range(0, len(hashes), _ASK):
            status = self._client.status(hashes[first : first + _ASK])
            have.update(status.have)
            free = status.free_bytes
        lacking = {sha: size - have.get(sha, 0) for sha, size in blobs.items() if have.get(sha, 0) < size}
        taken = sum(-(-size // _BLOCK) * _BLOCK for size in lacking.values()) + _SPARE
        if lacking and taken > free:
            raise BoardError(
                f"no room for {name}: it needs {taken / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free",
                f"target {self._target.name}",
                f"edgepipe gc --target {self._target.name}, free space by hand, or choose fewer: --runtime NAME",
            )
        return sum(lacking.values())

    def _confirm(self, name: str) -> None:
        found = next((one for one in self._client.refresh().board.runtimes if one.name == name), None)
        if not found or not found.version:
            reason = f": {found.reason}" if found and found.reason else ""
            raise BoardError(
                f"{name} was put on the board, which does not find it{reason}", f"target {self._target.name}"
            )


def _version(runtime: str, resolved: Resolved) -> str:
    """Name the distribution that provides the runtime, e.g. "onnxruntime 1.31.1"."""
    packages = plugins.load("agent.runtimes", runtime).PACKAGES
    return next((wheel.name for wheel in resolved.wheels if wheel.name.partition(" ")[0] in packages), "")
