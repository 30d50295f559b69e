"""A board's packages, resolved on this host: wheels for its exact Python, ABI and C library, checked, then unpacked.

pip checks each wheel against the index's hash when it comes in; its own hash is kept and checked again when it is
unpacked; what lies in it is checked against the board by the bytes of its libraries.
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

from edgepipe import elf, paths
from edgepipe.codec import canonical, from_dict, to_dict
from edgepipe.errors import BoardError, EdgepipeError, LinkError, UsageError
from edgepipe.link._stream import printable
from edgepipe.link.local import LocalLink
from edgepipe.schema import FileRef
from edgepipe.wheels import Platform

_PIP_SECONDS = 1800.0
_LIST = "site.json"
_LOCK = "wheels.json"
# A board runs the packages, it does not test, type-check or compile against them: a third of numpy's files.
_LEFT_OUT_FOLDERS = {"tests", "__pycache__", "bin"}
_LEFT_OUT_SUFFIXES = {".pyc", ".pyi", ".h", ".a", ".lib"}


@dataclass(frozen=True)
class Pinned:
    """A wheel of a resolved set, by the name of its file and its sha256."""

    file: str
    sha256: str

    @property
    def name(self) -> str:
        """Name and version of the distribution, e.g. "onnxruntime 1.31.1"."""
        name, version, *_ = self.file.split("-")
        return f"{name.lower().replace('_', '-')} {version}"


@dataclass(frozen=True)
class Resolved:
    """A folder with the packages as a board needs them, its files, and the wheels they came from."""

    folder: Path
    files: list[FileRef]
    wheels: list[Pinned]


def resolve(
    requirements: list[str], platform: Platform, source: Path | None = None, *, alone: bool = False
) -> Resolved:
    """Return the packages a board needs, made once and then taken from the cache.

    Wheels come from the index pip is set up for, or from the folder ``source`` alone. ``alone`` leaves the dependencies
    to the board.

    Raises:
        BoardError: no set of wheels fits, or one is not what its name says. LinkError: the index can't be reached.
        UsageError: there is no pip, or no such folder.
    """
    if source is not None and not source.is_dir():
        raise UsageError(f"no such folder: {source}", "--wheelhouse", "name a folder with wheels")
    asked = [sorted(requirements), list(platform.python), platform.tags(), alone, _contents(source)]
    folder = paths.cache_home() / "sites" / hashlib.sha256(canonical(asked)).hexdigest()[:32]
    if found := _cached(folder):
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        wheels = _download(requirements, platform, scratch / "wheels", source, alone)
        _unpack(wheels, platform, scratch)
        _check_libraries(scratch / "site", platform)
        files = sorted(_files(scratch / "site"), key=lambda file: file.name)
        (scratch / "site" / _LOCK).write_bytes(canonical([to_dict(wheel) for wheel in wheels]))
        (scratch / "site" / _LIST).write_bytes(canonical([to_dict(file) for file in files]))
        shutil.rmtree(folder, ignore_errors=True)
        (scratch / "site").rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Resolved(folder, files, wheels)


def _contents(source: Path | None) -> list[list[str | int]]:
    """Names, sizes and times of the wheels in a folder, so that a changed one is resolved anew."""
    found = sorted(source.glob("*.whl")) if source else []
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in found]


def _cached(folder: Path) -> Resolved | None:
    try:
        files = [from_dict(FileRef, item) for item in json.loads((folder / _LIST).read_bytes())]
        return Resolved(folder, files, [from_dict(Pinned, item) for item in json.loads((folder / _LOCK).read_bytes())])
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


def _download(
    requirements: list[str], platform: Platform, folder: Path, source: Path | None, alone: bool
) -> list[Pinned]:
    """Fetch the wheels, all of which fit the platform by their names."""
    argv = ["download", "--dest", str(folder), "--quiet", "--retries", "2", *_target(platform)]
    argv += ["--no-index", "--find-links", str(source.resolve())] if source else []
    argv += ["--no-deps"] if alone else []
    try:
        _pip([*argv, "--", *requirements], requirements, platform)
    except BoardError as error:
        raise _misfit(requirements, platform, source) or error from None
    return [Pinned(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(folder.glob("*.whl"))]


def _misfit(requirements: list[str], platform: Platform, source: Path | None) -> BoardError | None:
    """The error for a wheel that lies in the folder, but is for another Python or machine."""
    from packaging.requirements import Requirement
    from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

    wanted = {canonicalize_name(Requirement(each).name) for each in requirements}
    for path in sorted(source.glob("*.whl")) if source else ():
        try:
            name, *_, tags = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        if name in wanted and not tags & platform.accepted():
            return BoardError(
                f"{path.name} is not for this board, which has {platform}",
                str(source),
                f"get the wheel for cp{platform.python[0]}{platform.python[1]} and {platform.machine}",
            )
    return None


def _unpack(wheels: list[Pinned], platform: Platform, scratch: Path) -> None:
    """Unpack exactly these wheels: pip refuses one whose hash is another."""
    lock = scratch / "lock.txt"
    # By name, not by path: else pip would write this host's path into what the board gets.
    lines = (f"{wheel.name.replace(' ', '==')} --hash=sha256:{wheel.sha256}" for wheel in wheels)
    lock.write_text("\n".join(lines) + "\n", "utf-8")
    argv = ["install", "--target", str(scratch / "site"), "--no-compile", "--no-deps", "--require-hashes"]
    # Unpacking alone judges by this host's Python; what fits the board's was settled when the set was resolved.
    argv += ["--ignore-requires-python"]
    argv += [
        "--no-index",
        "--find-links",
        str(scratch / "wheels"),
        "--no-warn-script-location",
        "--quiet",
        *_target(platform),
    ]
    _pip([*argv, "-r", str(lock)], [wheel.file for wheel in wheels], platform)


def _check_libraries(site: Path, platform: Platform) -> None:
    """Hold each library's own header against the board.

    Raises:
        BoardError: one is for another machine, or needs a newer C or C++ library, whatever the wheel's name says.
    """
    for path in sorted(site.rglob("*.so*")):
        needs = elf.needs(path.read_bytes()) if path.is_file() else None
        if needs is None:
            continue
        where = path.relative_to(site).as_posix()
        if needs.machine != platform.machine:
            what = f"is for {needs.machine or 'another machine'}, and the board is {platform.machine}"
        elif platform.libc == "glibc" and needs.glibc > platform.glibc:
            what = f"needs glibc 2.{needs.glibc}, and the board has 2.{platform.glibc}"
        elif 0 < platform.libstdcxx < needs.libstdcxx:
            what = f"needs GLIBCXX_3.4.{needs.libstdcxx}, and the board's libstdc++ ends at 3.4.{platform.libstdcxx}"
        else:
            continue
        raise BoardError(f"{where} {what}: its wheel promises more than it holds", where, "take an older version of it")


def _target(platform: Platform) -> list[str]:
    """Options of pip for another machine than this one: all tags, since it expands none but the oldest."""
    options = ["--only-binary=:all:", "--implementation", "cp", "--no-input", "--disable-pip-version-check"]
    options += ["--python-version", f"{platform.python[0]}.{platform.python[1]}"]
    return [*options, *(part for tag in platform.tags() for part in ("--platform", tag))]


def _pip(arguments: list[str], wanted: list[str], platform: Platform) -> None:
    done = LocalLink(sys.executable, "").run([sys.executable, "-m", "pip", *arguments], deadline=_PIP_SECONDS)
    if done.status:
        raise _pip_error(done.stderr.decode("utf-8", "replace"), wanted, platform)


def _pip_error(said: str, wanted: list[str], platform: Platform) -> EdgepipeError:
    text = printable(said).strip()
    last = next((line for line in reversed(text.splitlines()) if line.startswith("ERROR")), text[-300:])
    if "No module named pip" in text:
        return UsageError("this environment has no pip", sys.executable, f"{sys.executable} -m ensurepip")
    if any(
        sign in text for sign in ("Retrying (", "ConnectionError", "NewConnectionError", "ReadTimeoutError", "SSLError")
    ):
        return LinkError(
            "this machine can't reach its Python package index",
            "pip",
            "check its network and pip's settings, or bring the wheels in a folder: --wheelhouse DIR",
        )
    if "No matching distribution" in text or "ResolutionImpossible" in text or "Could not find a version" in text:
        return BoardError(f"no wheels of {', '.join(wanted)} fit {platform}", "pip", last[:300])
    return BoardError(f"pip failed: {last[:300]}", "pip", "run the same with pip by hand")
