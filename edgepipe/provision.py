"""Give a board the runtimes it lacks: wheels are resolved on this host for the board's own Python, and pushed as files.

The board needs no network, no pip and no compiler. Each runtime gets a folder of its own, since they need different
versions of numpy.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from edgepipe import paths, plugins
from edgepipe.codec import canonical, from_dict, to_dict
from edgepipe.errors import BoardError, EdgepipeError, LinkError, UsageError
from edgepipe.link._stream import printable
from edgepipe.link.local import LocalLink
from edgepipe.schema import Board, FileRef

if TYPE_CHECKING:
    from edgepipe.board import BoardClient
    from edgepipe.progress import Progress
    from edgepipe.targets import Target

_PIP_SECONDS = 1800.0
_LIST = "files.json"
# A board runs the packages, it does not test, type-check or compile against them: a third of numpy's files.
_LEFT_OUT_FOLDERS = {"tests", "__pycache__", "bin"}
_LEFT_OUT_SUFFIXES = {".pyc", ".pyi", ".h", ".a", ".lib"}
# The oldest glibc that PEP 600 tags exist for, by machine; PEP 513, 571 and 599 gave names to three of them.
_OLDEST_GLIBC = {"x86_64": 5, "aarch64": 17, "armv7l": 17}
_LEGACY = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}


@dataclass(frozen=True)
class Provisioned:
    """What became of one runtime: ``state`` is "installed", "unchanged", "present" or "none" (with its reason)."""

    runtime: str
    state: str
    version: str = ""
    files: int = 0
    bytes: int = 0
    bytes_sent: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Platform:
    """What wheels must fit: the board's machine name, its Python as (major, minor), its glibc's minor version."""

    machine: str
    python: tuple[int, int]
    glibc: int

    def tags(self) -> list[str]:
        """Every platform tag that fits, newest first: pip takes each literally and expands none."""
        found = []
        for minor in range(self.glibc, _OLDEST_GLIBC.get(self.machine, 17) - 1, -1):
            found.append(f"manylinux_2_{minor}_{self.machine}")
            if minor in _LEGACY and (minor == 17 or self.machine == "x86_64"):  # noqa: PLR2004 - PEP 599 added machines
                found.append(f"{_LEGACY[minor]}_{self.machine}")
        return [*found, f"linux_{self.machine}"]

    def __str__(self) -> str:
        """Render for people."""
        return f"Python {self.python[0]}.{self.python[1]}, {self.machine}, glibc 2.{self.glibc}"


def provision(target: Target, client: BoardClient, runtimes: list[str] | None, progress: Progress) -> list[Provisioned]:
    """Give the board these runtimes; all that fit it if None. Does nothing where they are in place already.

    Raises:
        UsageError: no such runtime, or this environment has no pip.
        BoardError: a runtime that was asked for by name has no wheel for this board, or does not show up on it.
        LinkError: the package index or the board can't be reached.
    """
    facts = client.hello().board
    done = []
    for name in runtimes or plugins.names("agent.runtimes"):
        plugin = plugins.load("agent.runtimes", name)
        if not plugin.PACKAGES:
            continue
        result = _one(name, plugin, target, client, facts, progress)
        if result.state == "none" and runtimes:
            raise BoardError(
                f"no {name} for this board: {result.reason}", f"target {target.name}", "choose another format"
            )
        progress.note(f"{name}: {result.state} {result.version}{': ' if result.reason else ''}{result.reason}")
        done.append(result)
    return done


def _one(
    name: str, plugin: ModuleType, target: Target, client: BoardClient, facts: Board, progress: Progress
) -> Provisioned:
    have = next((one for one in facts.runtimes if one.name == name and one.version), None)
    if have and not have.site:
        return Provisioned(name, "present", have.version or "", reason="installed in the board's own Python")
    if target.link == "local":
        fix = f"pip install {plugin.PACKAGES[0]}"
        return Provisioned(name, "none", reason=f"not in edgepipe's own environment, which is this board ({fix})")
    platform = platform_of(facts)
    wanted = plugin.requirements(platform.python, platform.machine)
    if not wanted:
        return Provisioned(name, "none", reason=f"nobody publishes it for {platform}")
    try:
        with progress.task(f"resolve {name} for {platform}"):
            folder, files = resolve(wanted, platform)
    except BoardError as error:
        return Provisioned(name, "none", reason=error.what)
    version = _version(files, plugin.PACKAGES)
    sent = client.push([(folder / file.name, file) for file in files])
    site = client.site(name, files, version)
    _check(client, name, target)
    state = "unchanged" if have and not sent else "installed"
    return Provisioned(name, state, version, site.files, site.bytes, sent)


def _check(client: BoardClient, name: str, target: Target) -> None:
    found = next((one for one in client.refresh().board.runtimes if one.name == name), None)
    if not found or not found.version:
        reason = f": {found.reason}" if found and found.reason else ""
        raise BoardError(f"{name} was put on the board, which does not find it{reason}", f"target {target.name}")


def platform_of(board: Board) -> Platform:
    """What wheels for a board must fit, from what its agent says.

    Raises:
        BoardError: the board does not run Linux with glibc, or says nothing usable.
    """
    digits = board.python.split(".")
    libc, _, version = board.libc.partition(" ")
    minor = version.partition(".")[2].partition(".")[0]
    if libc.lower() != "glibc" or not minor.isdigit() or len(digits) < 2 or not all(d.isdigit() for d in digits[:2]):  # noqa: PLR2004
        raise BoardError(
            f"wheels need Linux with glibc, and the board says {board.libc or 'nothing'!r}, Python {board.python!r}",
            board.hostname or "the board",
            "install the runtime on the board by its own means",
        )
    return Platform(board.arch, (int(digits[0]), int(digits[1])), int(minor))


def resolve(requirements: list[str], platform: Platform) -> tuple[Path, list[FileRef]]:
    """Return a folder with the packages as a board needs them, and its files. Made once, then taken from the cache.

    Raises:
        BoardError: no set of wheels fits. LinkError: the index can't be reached. UsageError: there is no pip.
    """
    key = hashlib.sha256(canonical([sorted(requirements), list(platform.python), platform.tags()])).hexdigest()[:32]
    folder = paths.cache_home() / "sites" / key
    found = _cached(folder)
    if found is not None:
        return folder, found
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        _pip(requirements, platform, scratch / "site")
        files = sorted(_files(scratch / "site"), key=lambda file: file.name)
        (scratch / "site" / _LIST).write_bytes(canonical([to_dict(file) for file in files]))
        shutil.rmtree(folder, ignore_errors=True)
        (scratch / "site").rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder, files


def _cached(folder: Path) -> list[FileRef] | None:
    try:
        return [from_dict(FileRef, item) for item in json.loads((folder / _LIST).read_bytes())]
    except (OSError, ValueError, EdgepipeError):
        return None


def _files(folder: Path) -> Iterator[FileRef]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _LEFT_OUT_FOLDERS]
        for name in names:
            path = Path(parent) / name
            if path.suffix in _LEFT_OUT_SUFFIXES or path.is_symlink():
                continue
            data = path.read_bytes()
            yield FileRef(path.relative_to(folder).as_posix(), hashlib.sha256(data).hexdigest(), len(data))


def _version(files: list[FileRef], packages: tuple[str, ...]) -> str:
    """Name the distribution that provides the runtime, e.g. "onnxruntime 1.31.1", by its dist-info folder."""
    folders = {file.name.partition("/")[0] for file in files}
    for package in packages:
        for folder in sorted(folders):
            name, _, version = folder.removesuffix(".dist-info").rpartition("-")
            if folder.endswith(".dist-info") and name.lower().replace("_", "-") == package.lower().replace("_", "-"):
                return f"{package} {version}"
    return ""


def _pip(requirements: list[str], platform: Platform, folder: Path) -> None:
    argv = [sys.executable, "-m", "pip", "install", "--target", str(folder), "--no-compile", "--only-binary=:all:"]
    argv += ["--implementation", "cp", "--python-version", f"{platform.python[0]}.{platform.python[1]}"]
    argv += [part for tag in platform.tags() for part in ("--platform", tag)]
    argv += ["--no-input", "--disable-pip-version-check", "--no-warn-script-location", "--quiet", "--retries", "2"]
    done = LocalLink(sys.executable, "").run([*argv, "--", *requirements], deadline=_PIP_SECONDS)
    if done.status:
        raise _pip_error(done.stderr.decode("utf-8", "replace"), requirements, platform)


def _pip_error(said: str, requirements: list[str], platform: Platform) -> EdgepipeError:
    text = printable(said).strip()
    last = next((line for line in reversed(text.splitlines()) if line.startswith("ERROR")), text[-300:])
    if "No module named pip" in text:
        return UsageError("this environment has no pip", sys.executable, f"{sys.executable} -m ensurepip")
    if any(
        sign in text for sign in ("Retrying (", "ConnectionError", "NewConnectionError", "ReadTimeoutError", "SSLError")
    ):
        return LinkError(
            "this machine can't reach its Python package index", "pip", "check its network and pip's settings"
        )
    if "No matching distribution" in text or "ResolutionImpossible" in text or "Could not find a version" in text:
        return BoardError(f"no wheels of {', '.join(requirements)} fit {platform}", "pip", last[:300])
    return BoardError(f"pip failed: {last[:300]}", "pip", "run the same with pip by hand")
