"""A disk that may lose power: what the agent did to it is recorded, and every state a cut could leave is built.

Files and folders have what programs see and what is safe on the medium; `sync` makes the one the other. A cut leaves

* ``lost``: only what was synced,
* ``kept``: all of it, the last write half done,
* ``torn``: names are there, but what was not synced of a file's content is half zeros (a journal of names alone),
* ``reordered``: of the changes to a folder that were not synced, only the last one.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepipe.agent.disk import Disk

MODES = ("lost", "kept", "torn", "reordered")


@dataclass
class File:
    """Content as programs see it, and as it is on the medium."""

    content: bytes = b""
    safe: bytes = b""


@dataclass
class Folder:
    """Entries by name: a File, a Folder, or the text of a symbolic link."""

    entries: dict[str, Any] = field(default_factory=dict)
    safe: dict[str, Any] = field(default_factory=dict)
    pending: list[tuple[str, Any]] = field(default_factory=list)  # (name, new entry or None) since the last sync

    def put(self, name: str, entry: Any) -> None:
        self.entries[name] = entry
        self.pending.append((name, entry))

    def drop(self, name: str) -> Any:
        self.pending.append((name, None))
        return self.entries.pop(name)


class Recorder(Disk):
    """The real disk below ``root``, and a list of all that was done to it."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.done: list[tuple[str, ...]] = []

    def _note(self, verb: str, *rest: Any) -> None:
        self.done.append((verb, *rest))

    def _in(self, path: str) -> str:
        return os.path.relpath(path, self.root)

    def mkdir(self, path):
        super().mkdir(path)
        self._note("mkdir", self._in(path))

    def write(self, path, data, offset=0):
        super().write(path, data, offset)
        self._note("write", self._in(path), bytes(data), offset)

    def sync(self, path):
        super().sync(path)
        self._note("sync", self._in(path))

    def rename(self, old, new):
        super().rename(old, new)
        self._note("rename", self._in(old), self._in(new))

    def link(self, old, new):
        super().link(old, new)
        self._note("link", self._in(old), self._in(new))

    def symlink(self, target, path):
        super().symlink(target, path)
        self._note("symlink", target, self._in(path))

    def unlink(self, path):
        super().unlink(path)
        self._note("unlink", self._in(path))

    def rmdir(self, path):
        super().rmdir(path)
        self._note("rmdir", self._in(path))

    def acknowledge(self, what: str) -> None:
        """The agent told the host so: from here on it must survive a cut."""
        self._note("acknowledge", what)


class Model:
    """The state of the disk after some of the recorded operations."""

    def __init__(self, folders: tuple[str, ...]) -> None:
        self.top = Folder()
        for name in folders:
            self.top.entries[name] = self.top.safe[name] = Folder()
        self.acknowledged: list[str] = []

    def _at(self, path: str) -> tuple[Folder, str]:
        *parents, name = [part for part in path.split("/") if part != "."] or [""]
        folder = self.top
        for part in parents:
            folder = folder.entries[part]
        return folder, name

    def _node(self, path: str) -> Any:
        folder, name = self._at(path)
        return folder.entries[name] if name else folder

    def do(self, operation: tuple[Any, ...]) -> None:
        verb, *rest = operation
        getattr(self, f"_{verb}")(*rest)

    def _acknowledge(self, what: str) -> None:
        self.acknowledged.append(what)

    def _mkdir(self, path: str) -> None:
        folder, name = self._at(path)
        folder.put(name, Folder())

    def _write(self, path: str, data: bytes, offset: int) -> None:
        folder, name = self._at(path)
        if name not in folder.entries:
            folder.put(name, File())
        file = folder.entries[name]
        padded = file.content.ljust(offset, b"\0")
        file.content = padded[:offset] + data + padded[offset + len(data) :]

    def _sync(self, path: str) -> None:
        node = self._node(path)
        if isinstance(node, File):
            node.safe = node.content
        else:
            node.safe, node.pending = dict(node.entries), []

    def _rename(self, old: str, new: str) -> None:
        (source, name), (target, other) = self._at(old), self._at(new)
        target.put(other, source.drop(name))

    def _link(self, old: str, new: str) -> None:
        folder, name = self._at(new)
        folder.put(name, self._node(old))

    def _symlink(self, target: str, path: str) -> None:
        folder, name = self._at(path)
        folder.put(name, target)

    def _unlink(self, path: str) -> None:
        folder, name = self._at(path)
        folder.drop(name)

    _rmdir = _unlink

    def after_cut(self, mode: str, place: Path) -> None:
        """Build below ``place`` what a cut in ``mode`` leaves."""
        self._build(self.top, place, mode, {})

    def _build(self, folder: Folder, place: Path, mode: str, made: dict[int, Path]) -> None:
        place.mkdir(parents=True, exist_ok=True)
        for name, entry in _survivors(folder, mode).items():
            path = place / name
            if isinstance(entry, Folder):
                self._build(entry, path, mode, made)
            elif isinstance(entry, str):
                path.symlink_to(entry)
            elif id(entry) in made:
                path.hardlink_to(made[id(entry)])
            else:
                path.write_bytes(_content(entry, mode))
                made[id(entry)] = path


def _survivors(folder: Folder, mode: str) -> dict[str, Any]:
    if mode in ("kept", "torn"):
        return folder.entries
    left = dict(folder.safe)
    if mode == "reordered" and folder.pending:
        name, entry = folder.pending[-1]
        left.pop(name, None)
        if entry is not None:
            left[name] = entry
    return left


def _content(file: File, mode: str) -> bytes:
    if mode in ("lost", "reordered"):
        return file.safe
    if mode == "torn" and file.content != file.safe:
        pairs = enumerate(zip(file.content, file.safe, strict=False))
        start = next((at for at, (one, other) in pairs if one != other), min(len(file.content), len(file.safe)))
        half = start + (len(file.content) - start) // 2
        return file.content[:half].ljust(len(file.content), b"\0")
    return file.content


def cuts(
    folders: tuple[str, ...], done: list[tuple[Any, ...]], skip: int | None = None
) -> Iterator[tuple[int, str, Model]]:
    """Every state a cut could find: after each operation, in each mode, and inside each write.

    ``skip`` leaves one operation out, as if the program had forgotten it.
    """
    model = Model(folders)
    for at, operation in enumerate(done):
        if at != skip:
            if operation[0] == "write":  # the cut falls inside the write
                halfway = copy.deepcopy(model)
                halfway.do(("write", operation[1], operation[2][: len(operation[2]) // 2], operation[3]))
                for mode in MODES:
                    yield at, mode, halfway
            model.do(operation)
        for mode in MODES:
            yield at, mode, model


def syncs(done: list[tuple[Any, ...]], where: Callable[[str], bool] = lambda path: True) -> list[int]:
    """Positions of the syncs among the operations."""
    return [at for at, operation in enumerate(done) if operation[0] == "sync" and where(operation[1])]
