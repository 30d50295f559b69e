"""Work that need not be done twice: folders kept by the hash of everything that went into them.

An entry appears whole or not at all: it is filled in a temporary folder, flushed to disk, then renamed. What is read
back is hashed again, so an entry damaged on disk is thrown away and made anew. Makers of the same entry wait for each
other; makers of different entries don't. Beyond `LIMIT` bytes the entries go that were not used for longest.
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
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgepipe import paths
from edgepipe.codec import canonical
from edgepipe.errors import EdgepipeError, UsageError

LIMIT = 20_000_000_000  # bytes; EDGEPIPE_CACHE_LIMIT sets another bound
_DAY, _HOUR = 86400.0, 3600.0  # what was used so recently may still be in use, and is kept whatever the bound
_INDEX = ".entry.json"
_BLOCK = 1 << 20
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


_bounded: set[Path] = set()


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


@dataclass(frozen=True)
class Trimmed:
    """What `Cache.trim` removed, and how many bytes of entries are left."""

    entries: int
    freed_bytes: int
    left_bytes: int


def limit() -> int:
    """The bound in bytes: EDGEPIPE_CACHE_LIMIT, or `LIMIT`.

    Raises:
        UsageError: it is no size.
    """
    return size(os.environ.get("EDGEPIPE_CACHE_LIMIT", str(LIMIT)), "EDGEPIPE_CACHE_LIMIT")


def size(text: str, where: str) -> int:
    """Read ``500M``, ``20G`` or a number as bytes.

    Raises:
        UsageError: none of these.
    """
    units = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    number, factor = (text[:-1], units[text[-1]]) if text and text[-1] in units else (text, 1)
    if not number.isdecimal():
        raise UsageError(f"not a size: {text}", where, "write it as 500M, 20G or a number of bytes")
    return int(number) * factor


class Cache:
    """The work cache below ``root`` (by default below the user's cache folder)."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or paths.cache_home() / "work"

    def get(self, entry: str) -> Path | None:
        """The folder of an entry if it is there and every byte of it is as it was published, else None."""
        folder = self._folder(entry)
        if not (folder.is_dir() and _intact(folder)):
            return None
        with contextlib.suppress(OSError):
            os.utime(folder)  # when it was last used
        return folder

    def trim(self, most: int, keep_seconds: float = _HOUR) -> Trimmed:
        """Remove the entries not used for longest until ``most`` bytes are left, and what dead makers left behind.

        What was used within ``keep_seconds`` stays, and what somebody is making. A file counts as it does in the index.
        """
        found = sorted(_rows(self.root / "entries"))
        left, newest = sum(bytes_ for _, bytes_, _ in found), time.time() - keep_seconds
        removed = freed = 0
        for used, bytes_, folder in found:
            if left <= most or used > newest:
                break
            if self._remove(folder):
                removed, freed, left = removed + 1, freed + bytes_, left - bytes_
        for stale in (self.root / "tmp").glob("*"):
            with self._locked(stale.name.partition("-")[0], wait=False) as free:
                if free:
                    shutil.rmtree(stale, ignore_errors=True)
        return Trimmed(removed, freed, left)

    def _remove(self, folder: Path) -> bool:
        """Take an entry away by a rename, so that nobody meets half of it; False where it is being made anew."""
        (self.root / "tmp").mkdir(parents=True, exist_ok=True)
        gone = self.root / "tmp" / f"{folder.name}-removed"
        with self._locked(folder.name, wait=False) as free:
            if not free:
                return False
            try:
                folder.rename(gone)
            except OSError:  # somebody else removed it
                return False
            shutil.rmtree(gone, ignore_errors=True)
            return True

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
                made = self._make_locked(entry, maker)
            if self.root not in _bounded:  # once in a process is often enough
                _bounded.add(self.root)
                self.trim(limit(), _DAY)
            return made
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
    def _locked(self, entry: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold an entry's lock; yields False, without it, where another holds it and ``wait`` is false."""
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / entry).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True


def _rows(entries: Path) -> Iterator[tuple[float, int, Path]]:
    """When each entry was last used, its bytes, and its folder."""
    for folder in entries.glob("*/*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            index = json.loads((folder / _INDEX).read_bytes())
            yield folder.stat().st_mtime, sum(int(item["bytes"]) for item in index.values()), folder


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
