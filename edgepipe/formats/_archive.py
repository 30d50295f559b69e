"""Zip archives that come from anywhere: what several formats check before they open one."""

from __future__ import annotations

import stat
import zipfile

from edgepipe.errors import IntegrityError

_RATIO = 100  # times that an archive may grow: weights hardly shrink, and descriptions are small
_FREE = 64 << 20  # bytes that any archive may unpack to
_ENTRIES = 100_000


def check_zip(path: str) -> list[str]:
    """The names in an archive that is sound, unpacks to a sane size and keeps to flat relative names.

    Raises:
        IntegrityError: it is or does none of that.
    """
    fix = "get the file again, or save it again"
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            packed = sum(info.compress_size for info in infos)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise IntegrityError(f"not a sound archive: {str(error)[:150]}", path, fix) from None
    total = sum(info.file_size for info in infos)
    if len(infos) > _ENTRIES or total > _RATIO * packed + _FREE:
        raise IntegrityError(f"it would unpack to {total:,} bytes in {len(infos):,} files", path, fix)
    for info in infos:
        parts = info.filename.split("/")
        if info.filename.startswith("/") or ".." in parts or "\\" in info.filename or "\0" in info.filename:
            raise IntegrityError(f"an entry leaves the archive: {info.filename[:80]!r}", path, fix)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise IntegrityError(f"an entry is a link: {info.filename[:80]!r}", path, fix)
    if len({info.filename for info in infos}) != len(infos):
        raise IntegrityError("two entries have one name", path, fix)
    return [info.filename for info in infos]
