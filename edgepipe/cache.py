"""Work that need not be done twice: folders kept by the hash of everything that went into them.

An entry appears whole or not at all: it is filled in a temporary folder, flushed to disk, then renamed. What is read
back is hashed again, so an entry damaged on disk is thrown away and made anew. Makers of the same entry wait for each
other; makers of different entries don't.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from edgepipe import paths
from edgepipe.codec import canonical
from edgepipe.errors import EdgepipeError, UsageError

_INDEX = ".entry.json"
_BLOCK = 1 << 20
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class NoRoomError(UsageError):
    """The disk of the cache is full or can't be written: no fault of what was to be made."""


def key(kind: str, **parts: Any) -> str:
    """The sha256 of the canonical JSON of all ``parts``: equal work has an equal key."""
    return hashlib.sha256(canonical({"kind": kind, "parts": parts})).hexdigest()


def hash_file(path: Path) -> str:
    """The sha256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def versions(distributions: tuple[str, ...]) -> dict[str, str | None]:
    """Installed versions by distribution name, without importing anything; null where it is not installed."""
    found: dict[str, str | None] = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def code(*files: str | Path | None) -> str:
    """The sha256 over source files: changed code never meets old results."""
    digest = hashlib.sha256()
    for file in sorted({str(name) for name in files if name}):
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


class Cache:
    """The work cache below ``root`` (by default below the user's cache folder)."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or paths.cache_home() / "work"

    def get(self, entry: str) -> Path | None:
        """The folder of an entry if it is there and every byte of it is as it was published, else None."""
        folder = self._folder(entry)
        return folder if folder.is_dir() and _intact(folder) else None

    def make(self, entry: str, maker: Callable[[Path], None]) -> tuple[Path, bool]:
        """Return the folder of ``entry`` and whether it was there already; if not, ``maker(folder)`` fills it.

        Raises:
            NoRoomError: the disk of the cache is full or can't be written.
            Exception: whatever ``maker`` raises; then nothing is left behind.
        """
        found = self.get(entry)
        if found:
            return found, True
        try:
            with self._locked(entry):
                return self._make_locked(entry, maker)
        except OSError as error:
            if error.errno not in _DISK:
                raise
            raise _disk_error(error, self.root) from error

    def _make_locked(self, entry: str, maker: Callable[[Path], None]) -> tuple[Path, bool]:
        found = self.get(entry)  # another maker may have finished while we waited
        if found:
            return found, True
        temporary = self.root / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        for stale in temporary.glob(f"{entry}-*"):  # we hold the lock, so its maker is dead
            shutil.rmtree(stale, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{entry}-", dir=temporary))
        try:
            maker(folder)
            self._publish(folder, self._folder(entry))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return self._folder(entry), False

    def _publish(self, folder: Path, final: Path) -> None:
        index = {}
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            index[path.name] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        (folder / _INDEX).write_bytes(canonical(index))
        for path in folder.iterdir():
            if path.is_file():
                path.chmod(0o444)
                _sync(path)
        _sync(folder)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():  # a damaged entry: out of the way first, since a folder is not replaced by rename
            damaged = folder.with_name(folder.name + "-damaged")
            final.rename(damaged)
            shutil.rmtree(damaged, ignore_errors=True)
        folder.rename(final)
        _sync(final.parent)

    def _folder(self, entry: str) -> Path:
        return self.root / "entries" / entry[:2] / entry

    @contextlib.contextmanager
    def _locked(self, entry: str) -> Iterator[None]:
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / entry).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _intact(folder: Path) -> bool:
    """Whether a folder holds exactly the files it was published with."""
    try:
        index = json.loads((folder / _INDEX).read_bytes())
        if {path.name for path in folder.iterdir()} != {*index, _INDEX}:
            return False
        return all(
            (folder / name).stat().st_size == item["bytes"] and hash_file(folder / name) == item["sha256"]
            for name, item in index.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_error(error: OSError, root: Path) -> EdgepipeError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = "the disk of the work cache is full" if full else f"the work cache can't be used: {error.strerror or error}"
    return NoRoomError(what, str(error.filename or root), "free space there, or set EDGEPIPE_CACHE to another folder")
