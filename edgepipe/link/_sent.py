"""Copies of what was sent to boards, by sha256: what a later version of a file can be told against.

They can all be spared. Only the newest `_FILES` are kept, and `_BYTES` of them, in the folder of the work cache.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

from edgepipe import paths

_FILES = 32
_BYTES = 2_000_000_000


def find(sha256: str) -> Path | None:
    """The copy that was kept under a hash, if there is one. Whether it still has that hash is for the caller to see."""
    path = _folder() / sha256
    return path if path.is_file() else None


def keep(source: Path, sha256: str) -> None:
    """Keep a file. Never raises: without it the next file goes whole.

    What is read-only (all files of the work cache are) gets a second name; what its owner may write over gets a copy.
    """
    final = _folder() / sha256
    with contextlib.suppress(OSError):
        if final.exists():
            os.utime(final)
            return
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=final.parent, prefix=".new-") as scratch:
            made = Path(scratch) / sha256
            if source.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) or not _linked(source, made):
                shutil.copyfile(source, made)
            os.utime(made)  # by it the newest are known
            made.replace(final)
        trim(_BYTES, _FILES)


def trim(most_bytes: int, most_files: int = _FILES) -> int:
    """Remove the oldest copies, until no more than this is left; returns the bytes removed."""
    found, removed = [], 0
    for path in _folder().glob("[0-9a-f]*"):
        with contextlib.suppress(OSError):
            found.append((path.stat().st_mtime, path.stat().st_size, path))
    total = 0
    for count, (_, size, path) in enumerate(sorted(found, reverse=True), 1):
        total += size
        if count > most_files or total > most_bytes:
            path.unlink(missing_ok=True)
            removed += size
    return removed


def _linked(source: Path, made: Path) -> bool:
    try:
        made.hardlink_to(source)
    except OSError:  # another file system
        return False
    return True


def _folder() -> Path:
    return paths.cache_home() / "sent"
