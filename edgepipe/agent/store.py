"""Blobs by sha256 in the agent's folder on the board, and how they get there: in pieces, resumable, hashed at the end.

root/blobs/<sha256>      complete and verified, never rewritten
root/partial/<sha256>    bytes that arrived so far
root/spool/<sha256>      results waiting to be fetched
root/releases/<id>/      manifest.json and hard links to blobs, see releases.py
root/sites/<runtime>/    a runtime's Python packages as hard links to blobs, see sites.py
root/runs/<id>.<who>     measured runs that the host has not acknowledged, see spool.py
root/tmp/                scratch of child processes
root/current, previous   links to releases
root/lock                who holds the board
"""

from __future__ import annotations

import hashlib
import os
import threading
from typing import Dict, Iterator, List, Optional, Tuple

from edgepipe.agent.disk import Disk, board_error, disk_full, free_bytes
from edgepipe.errors import IntegrityError
from edgepipe.schema import NAME, SHA256

# Kept free when a blob is written, so that manifests, links and logs still fit.
RESERVE_BYTES = 256 * 1024
_CHUNK = 1 << 20
_FOLDERS = ("blobs", "partial", "spool", "releases", "sites", "runs", "tmp")


def sha256_file(path: str) -> str:
    """The sha256 of a file in hex."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def check_sha(text: str) -> str:
    """Return ``text`` if it is 64 hex digits.

    Raises:
        IntegrityError: it is not.
    """
    if not SHA256.match(text):
        raise IntegrityError(f"not a sha256: {text[:80]!r}", "request")
    return text


def check_name(text: str) -> str:
    """Return ``text`` if it may name a file: no slash, no leading dot, at most 64 characters.

    Raises:
        IntegrityError: it may not.
    """
    if not NAME.match(text):
        raise IntegrityError(f"not a file name: {text[:80]!r}", "request")
    return text


class Store:
    """The agent's folder. Every method that writes raises BoardError when the disk is full or fails."""

    def __init__(self, root: str, disk: Optional[Disk] = None) -> None:
        self.root = os.path.abspath(os.path.expanduser(root))
        self.disk = disk or Disk()
        self._prepared = False

    def path(self, *parts: str) -> str:
        """A path below the root."""
        return os.path.join(self.root, *parts)

    def prepare(self) -> None:
        """Make the folders, mode 0700. Once: a push asks for it thousands of times."""
        if self._prepared:
            return
        try:
            os.makedirs(self.root, 0o700, exist_ok=True)
            for name in _FOLDERS:
                if not os.path.isdir(self.path(name)):
                    self.disk.mkdir(self.path(name))
            self._prepared = True
        except OSError as error:
            raise board_error(error, self.root) from None

    def clear_scratch(self) -> None:
        """Remove what children of an agent that was killed left behind. Only for the holder of the lock."""
        for name in os.listdir(self.path("tmp")):
            self.disk.remove(self.path("tmp", name))

    def free_bytes(self) -> int:
        """Bytes free on the file system of the root."""
        return free_bytes(self.root)

    def used_bytes(self) -> int:
        """Bytes of all files below the root; a file with several names counts once."""
        sizes: Dict[Tuple[int, int], int] = {}
        for folder, _, files in os.walk(self.root):
            for name in files:
                try:
                    stat = os.lstat(os.path.join(folder, name))
                except FileNotFoundError:
                    continue
                sizes[stat.st_dev, stat.st_ino] = stat.st_size
        return sum(sizes.values())

    def have(self, sha: str) -> int:
        """Bytes of a blob already here: its size if complete, what arrived so far if not, else 0."""
        check_sha(sha)
        for folder in ("blobs", "partial"):
            size = _size(self.path(folder, sha))
            if size is not None:
                return size
        return 0

    def put(self, sha: str, size: int, offset: int, chunks: Iterator[bytes]) -> Tuple[int, bool]:
        """Append ``chunks`` at ``offset`` of the partial of a blob of ``size`` bytes; complete it when all is there.

        Returns the bytes now here and whether the blob is complete. If it already was, the chunks are not read.

        Raises:
            IntegrityError: the chunks leave a gap or go past the end, or the whole has another hash: it is dropped.
            BoardError: it does not fit on the disk; what arrived before is kept for a resume.
        """
        blob, partial = self.path("blobs", check_sha(sha)), self.path("partial", sha)
        if os.path.exists(blob):
            return os.path.getsize(blob), True
        have = self._start(partial, size, offset)
        try:
            if size - have > free_bytes(self.root) - RESERVE_BYTES:
                raise disk_full(self.root, size - have)
            for chunk in chunks:
                if offset + len(chunk) > size:
                    raise IntegrityError(f"more than the {size} bytes promised", f"blob {sha}")
                self.disk.write(partial, chunk, offset)
                offset += len(chunk)
            if size == 0:
                self.disk.write(partial, b"")
            have = _size(partial) or 0
            if have == size:
                self._complete(sha)
        except OSError as error:
            raise board_error(error, self.root, size - offset) from None
        return have, have == size

    def _start(self, partial: str, size: int, offset: int) -> int:
        """Check an append against what is there; return the bytes there."""
        have = _size(partial) or 0
        if have > size:
            self.disk.unlink(partial)
            have = 0
        if not 0 <= offset <= have:
            raise IntegrityError(
                f"a piece at offset {offset} would leave a gap: {have} bytes are here",
                partial,
                "ask status, then resume",
            )
        return have

    def _complete(self, sha: str) -> None:
        """Verify a full partial and give it its place among the blobs, safe against a power cut."""
        partial = self.path("partial", sha)
        if self._flush_and_hash(partial) != sha:
            self.disk.unlink(partial)
            raise IntegrityError(
                "the bytes that arrived have another hash; they were dropped", f"blob {sha}", "send the blob again"
            )
        self.disk.rename(partial, self.path("blobs", sha))
        self.disk.sync(self.path("blobs"))

    def _flush_and_hash(self, path: str) -> str:
        """Flush a file to the disk and hash it at the same time: on a large blob each takes as long as the other."""
        failures: List[OSError] = []

        def flush() -> None:
            try:
                self.disk.sync(path)
            except OSError as error:
                failures.append(error)

        thread = threading.Thread(target=flush, name="flush")
        thread.start()
        try:
            return sha256_file(path)
        finally:
            thread.join()
            if failures:
                raise failures[0]

    def blob(self, sha: str) -> str:
        """The path of a complete blob.

        A partial that holds all its bytes (the cut came just before it was hashed) is completed here.

        Raises:
            IntegrityError: it is not on the board.
        """
        path = self.path("blobs", check_sha(sha))
        if not os.path.isfile(path):
            partial = self.path("partial", sha)
            if not os.path.isfile(partial) or sha256_file(partial) != sha:
                raise IntegrityError("a blob is not on the board", f"blob {sha}", "push it, then try again")
            self._complete(sha)
        return path

    def verified(self, sha: str) -> str:
        """The path of a blob whose bytes were hashed just now. A corrupt one is removed, so that it can be sent again.

        Raises:
            IntegrityError: it is absent, or its bytes changed on the disk.
        """
        path = self.blob(sha)
        if sha256_file(path) != sha:
            self.disk.unlink(path)
            self.disk.sync(self.path("blobs"))
            raise IntegrityError(
                "a blob changed on the board's disk; it was dropped",
                f"blob {sha}",
                "run the same command again: it sends the blob anew. If it comes back, check the board's disk",
            )
        return path

    def spool(self, path: str) -> str:
        """Move a finished file of scratch into the spool; returns its sha256."""
        sha = sha256_file(path)
        self.disk.sync(path)
        self.disk.rename(path, self.path("spool", sha))
        self.disk.sync(self.path("spool"))
        return sha

    def fetch(self, sha: str) -> str:
        """The path of a spooled file or blob.

        Raises:
            IntegrityError: neither is here.
        """
        spooled = self.path("spool", check_sha(sha))
        return spooled if os.path.isfile(spooled) else self.blob(sha)

    def listing(self, folder: str) -> List[str]:
        """Names in a folder of the root, sorted, without hidden ones."""
        return sorted(name for name in os.listdir(self.path(folder)) if not name.startswith("."))


def _size(path: str) -> Optional[int]:
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return None
