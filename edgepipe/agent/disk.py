"""Every change the agent makes to a file system goes through this one class.

A test replaces it to record the operations, or to fail one of them.
"""

from __future__ import annotations

import errno
import os

from edgepipe.errors import BoardError


class Disk:
    """The primitives of the store. All raise OSError; none but `sync` promises that a change survives a power cut."""

    def mkdir(self, path: str) -> None:
        """Make one folder, mode 0700."""
        os.mkdir(path, 0o700)

    def write(self, path: str, data: bytes, offset: int = 0) -> None:
        """Write ``data`` at ``offset`` of a file, made if absent. A full disk may leave the first part."""
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                done = os.pwrite(handle, view, offset)
                view, offset = view[done:], offset + done
        finally:
            os.close(handle)

    def sync(self, path: str) -> None:
        """Flush a file, or the entries of a folder, to the disk."""
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, old: str, new: str) -> None:
        """Move within the file system, replacing ``new`` in one step."""
        os.replace(old, new)

    def link(self, old: str, new: str) -> None:
        """Give a file a second name."""
        os.link(old, new)

    def symlink(self, target: str, path: str) -> None:
        """Make a symbolic link at ``path``."""
        os.symlink(target, path)

    def unlink(self, path: str) -> None:
        """Remove a file or link."""
        os.unlink(path)

    def rmdir(self, path: str) -> None:
        """Remove an empty folder."""
        os.rmdir(path)

    def remove(self, path: str) -> None:
        """Remove a file, a link or a whole folder; links are never followed. Nothing happens if it is absent."""
        if not os.path.lexists(path):
            return
        if os.path.islink(path) or not os.path.isdir(path):
            self.unlink(path)
            return
        with os.scandir(path) as entries:
            names = [entry.path for entry in entries]
        for name in names:
            self.remove(name)
        self.rmdir(path)


def free_bytes(path: str) -> int:
    """Bytes an ordinary user may still write on the file system of ``path``."""
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize


def board_error(error: OSError, root: str, needed: int = 0) -> BoardError:
    """The typed error for an OSError of the board's disk; a full disk says how much is needed and free."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(root, needed)
    what = f"the board's disk failed: {error.strerror or error}"
    return BoardError(
        what, where=str(error.filename or root)[:300], fix="check the disk and its permissions on the board"
    )


def disk_full(root: str, needed: int = 0) -> BoardError:
    """The error for a disk that is, or would be, too full. ``needed`` is in bytes, 0 if unknown."""
    try:
        free = f"{free_bytes(root)} bytes free"
    except OSError:
        free = "free space unknown"
    need = f", {needed} bytes needed" if needed else ""
    return BoardError(
        f"disk full on the board{need}, {free}", where=root, fix="edgepipe gc --target T, or free space by hand"
    )
