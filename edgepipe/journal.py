"""The results kept: an append-only file of JSON lines is the truth, an SQLite index beside it only finds things fast.

Each line is ``{"sum":"<16 hex>","record":{...}}`` where the sum is the head of the sha256 of the record's bytes (see
`edgepipe.lines`). A line is acknowledged after fsync, and is whole or worthless: a torn last line (kill -9, power cut,
full disk) fails its sum, is skipped with a warning, and is cut off by the next append. Writers and readers take a lock
on the file, so processes may share a journal.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from edgepipe import codec, lines, paths
from edgepipe.errors import EdgepipeError, UsageError
from edgepipe.lines import Place, Record
from edgepipe.record import Report
from edgepipe.schema import Caution

_LISTED = 8
_COLUMNS = "id, kind, model, target, status, start, length"
_TABLES = (
    "CREATE TABLE IF NOT EXISTS covered (bytes INTEGER NOT NULL, mark TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS damaged (start INTEGER NOT NULL, length INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS lines (id TEXT PRIMARY KEY, kind TEXT NOT NULL, model TEXT, target TEXT, status TEXT,"
    " start INTEGER NOT NULL, length INTEGER NOT NULL)",
)

T = TypeVar("T")


def new_id(now: float | None = None) -> str:
    """Return an id that sorts by time (UTC), e.g. ``20261122-161405-ab12cd34``."""
    moment = time.gmtime(time.time() if now is None else now)
    return f"{time.strftime('%Y%m%d-%H%M%S', moment)}-{secrets.token_hex(4)}"


class Journal:
    """The results below a folder (default: edgepipe's data folder).

    ``cautions`` collects what was found damaged; nothing damaged is ever returned.
    """

    def __init__(self, home: Path | None = None) -> None:
        self.home = home or paths.data_home()
        self.path = self.home / "journal.jsonl"
        self.index = self.home / "journal.sqlite"
        self.cautions: list[Caution] = []

    def append_report(self, report: Report) -> Report:
        """Keep a report for good and return it with its id and date. It is on the disk when this returns.

        A report may be kept again under its id as more of it becomes known: the latest counts, the earlier ones stay
        in the file. One that says nothing new is not written twice.

        Raises:
            EdgepipeError: the disk is full or can't be written; the journal is as it was.
        """
        created = report.created or datetime.now(UTC).isoformat(timespec="seconds")
        report = dataclasses.replace(report, id=report.id or new_id(), created=created)
        self.append("report", codec.to_dict(report), report.id)
        return report

    def append(self, kind: str, value: dict[str, Any], name: str = "") -> Record:
        """Keep any JSON value as a record of ``kind`` under the id ``name`` (default: a new one).

        Raises:
            EdgepipeError: the disk is full or can't be written; the journal is as it was.
        """
        record = Record(name or new_id(), kind, datetime.now(UTC).isoformat(timespec="seconds"), value)
        line = lines.encode(record)

        def write(handle: int) -> Record:
            end = self._repair(handle)
            known = self._known(handle, record.id) if name else None
            if known and (known.kind, codec.canonical(known.value)) == (kind, codec.canonical(value)):
                return known
            _put(handle, line, end)
            return record

        return self._write(write)

    def append_all(self, found: Iterable[tuple[str, dict[str, Any], str]]) -> None:
        """Keep many records (kind, value, id) with one flush: all of them are on the disk when this returns.

        For whoever has results by the thousand. Unlike `append` it does not look whether a record says anything new.

        Raises:
            EdgepipeError: the disk is full or can't be written; none of them is kept.
        """
        at = datetime.now(UTC).isoformat(timespec="seconds")
        added = b"".join(lines.encode(Record(name or new_id(), kind, at, value)) for kind, value, name in found)
        self._write(lambda handle: _put(handle, added, self._repair(handle)))

    def all(self) -> list[Report]:
        """Return every report kept, oldest first, each as it was kept last."""
        return self.reports()[::-1]

    def records(self, kind: str = "") -> Iterator[Record]:
        """Yield every record of a kind (default: all), oldest first, each checked against its sum."""
        with self._open(fcntl.LOCK_SH) as handle:
            data = _read(handle, 0) if handle is not None else b""
        for (start, length), record in lines.split(data, kind=kind):
            if record is None:
                self._damaged(start, length, torn=start + length == len(data))
            elif kind in ("", record.kind):
                yield record

    def tail(self, start: int, kind: str = "") -> tuple[Iterator[tuple[Place, Record]], int, bool]:
        """Return the whole records of a kind (default: all) from byte ``start`` on, each with its place.

        Also where to go on, and whether all is new: the file is another. For whoever follows it while others write.
        Records are read as they are asked for, so that nobody need hold them all.
        """
        with self._open(fcntl.LOCK_SH) as handle:
            size = os.fstat(handle).st_size if handle is not None else 0
            anew = start > size or (start > 0 and handle is not None and os.pread(handle, 1, start - 1) != b"\n")
            begin = 0 if anew else start
            data = _read(handle, begin) if handle is not None else b""
        end = data.rfind(b"\n") + 1
        each = lines.split(data[:end], begin, kind)
        found = ((place, record) for place, record in each if record and kind in ("", record.kind))
        return found, begin + end, anew

    def at(self, places: Iterable[Place]) -> list[Record | None]:
        """Return the records at places that `tail` told, null where the file is another one since."""
        with self._open(fcntl.LOCK_SH) as handle:
            if handle is None:
                return [None for _ in places]
            return [lines.parse(os.pread(handle, length, start)) for start, length in places]

    def get(self, name: str) -> Record | None:
        """Return the record of any kind with this id, as it was kept last, or None."""
        found = self._query(f"SELECT {_COLUMNS} FROM lines WHERE id = ?", (name,))  # noqa: S608 names are ours
        return found[0] if found else None

    def reports(
        self, model: str | None = None, target: str | None = None, status: str | None = None, limit: int | None = None
    ) -> list[Report]:
        """Return the reports with these exact values (null: any), latest first, at most ``limit``."""
        wanted = {"kind": "report", "model": model, "target": target, "status": status}
        wanted = {name: value for name, value in wanted.items() if value}
        where = " AND ".join(f"{name} = ?" for name in wanted)
        query = f"SELECT {_COLUMNS} FROM lines WHERE {where} ORDER BY start DESC LIMIT ?"  # noqa: S608 names are ours
        rows = self._query(query, (*wanted.values(), -1 if limit is None else limit))
        return [report for record in rows if (report := self._report(record))]

    def find(self, prefix: str) -> Report:
        """Return the one report whose id begins so.

        Raises:
            UsageError: none does, or several do (they are listed).
        """
        query = f"SELECT {_COLUMNS} FROM lines WHERE kind = 'report' AND substr(id, 1, ?) = ? ORDER BY start DESC"  # noqa: S608
        found = self._query(query, (len(prefix), prefix))
        if not found:
            raise UsageError(f"no such run: {prefix}", str(self.path), "edgepipe runs list shows what is kept")
        exact = [record for record in found if record.id == prefix]
        if len(found) > 1 and not exact:
            listed = ", ".join(record.id for record in found[:_LISTED]) + (", ..." if len(found) > _LISTED else "")
            raise UsageError(f"{prefix!r} begins {len(found)} runs", str(self.path), f"write more of one of: {listed}")
        report = self._report((exact or found)[0])
        if report is None:
            raise UsageError(f"run {prefix} was written by another version", str(self.path), "read its line yourself")
        return report

    # Writing

    def _write(self, act: Callable[[int], T]) -> T:
        """Act on the locked file; the folder is flushed too where the file is new."""
        try:
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh = not self.path.exists()
            with self._open(fcntl.LOCK_EX) as handle:
                assert handle is not None
                result = act(handle)
                if fresh:
                    _sync_folder(self.home)
                return result
        except OSError as error:
            raise EdgepipeError(
                f"the result can't be kept: {error.strerror}", str(self.path), "free some space, or set EDGEPIPE_HOME"
            ) from error

    def _repair(self, handle: int) -> int:
        """Finish or cut off a torn last line; return the file's end. Only what was never acknowledged can be torn."""
        size = os.fstat(handle).st_size
        data = _read(handle, 0) if size and os.pread(handle, 1, size - 1) != b"\n" else b""
        if not data:
            return size
        start = data.rfind(b"\n") + 1
        if lines.parse(data[start:]):  # only its newline is missing
            os.write(handle, b"\n")
            return size + 1
        os.ftruncate(handle, start)
        self._caution("torn_line", f"the last line was torn ({size - start:,} bytes); it was cut off")
        return start

    # Reading

    @contextmanager
    def _open(self, lock: int) -> Iterator[int | None]:
        """The locked file, or null for a reader where there is none."""
        reading = lock == fcntl.LOCK_SH
        flags = os.O_RDONLY if reading else os.O_RDWR | os.O_APPEND | os.O_CREAT
        try:
            handle = os.open(self.path, flags | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            yield None
            return
        except OSError as error:
            raise EdgepipeError(f"the journal can't be opened: {error.strerror}", str(self.path)) from error
        try:
            fcntl.flock(handle, lock)
            yield handle
        finally:
            os.close(handle)

    def _damaged(self, start: int, length: int, *, torn: bool = False) -> None:
        code = "torn_line" if torn else "damaged_line"
        self._caution(code, f"a line of {length:,} bytes at byte {start:,} is damaged and was skipped")

    def _caution(self, code: str, text: str) -> None:
        caution = Caution(code, f"{text}: {self.path}")
        if caution not in self.cautions:
            self.cautions.append(caution)

    def _report(self, record: Record) -> Report | None:
        try:
            return codec.from_dict(Report, record.value)
        except EdgepipeError as error:
            self._caution("other_version", f"run {record.id} can't be read ({error.what})")
            return None

    # The index

    def _query(self, query: str, values: tuple[Any, ...]) -> list[Record]:
        with self._open(fcntl.LOCK_SH) as handle:
            if handle is None:
                return []

            def read(index: sqlite3.Connection) -> list[Record | None]:
                self._update(index, handle)
                rows = index.execute(query, values).fetchall()
                return [lines.parse(os.pread(handle, row[6], row[5])) for row in rows]

            found = self._with_index(read)
            if None in found:  # the index speaks of another file
                self.index.unlink(missing_ok=True)
                found = self._with_index(read)
            return [record for record in found if record]

    def _known(self, handle: int, name: str) -> Record | None:
        """The record that has this id already."""

        def read(index: sqlite3.Connection) -> Record | None:
            self._update(index, handle)
            row = index.execute("SELECT start, length FROM lines WHERE id = ?", (name,)).fetchone()
            return lines.parse(os.pread(handle, row[1], row[0])) if row else None

        return self._with_index(read)

    def _with_index(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """Run with the index; a corrupt one is thrown away and made again, an unwritable one is kept in memory."""
        for place in (self.index, self.index, ":memory:"):
            try:
                with closing(sqlite3.connect(place, timeout=30, isolation_level=None)) as index:
                    index.execute("BEGIN IMMEDIATE")
                    for table in _TABLES:
                        index.execute(table)
                    result = act(index)
                    index.execute("COMMIT")
                    return result
            except sqlite3.OperationalError:  # read-only folder, full disk: the index is a convenience
                continue
            except sqlite3.DatabaseError:
                self.index.unlink(missing_ok=True)
        raise EdgepipeError("the journal can't be indexed", str(self.index), "check that the disk is not full")

    def _update(self, index: sqlite3.Connection, handle: int) -> None:
        """Add the lines the index has not seen; begin anew when the file is not the one it knew."""
        size, row = os.fstat(handle).st_size, index.execute("SELECT bytes, mark FROM covered").fetchone()
        covered, mark = row or (0, "")
        if covered > size or mark != _fingerprint(handle, covered):
            covered = 0
            index.execute("DELETE FROM lines")
            index.execute("DELETE FROM damaged")
        data = _read(handle, covered)
        data = data[: data.rfind(b"\n") + 1]  # a torn tail is not covered: it may be finished later
        for (start, length), record in lines.split(data, covered):
            if record is None:
                index.execute("INSERT INTO damaged VALUES (?, ?)", (start, length))
            else:
                index.execute("INSERT OR REPLACE INTO lines VALUES (?, ?, ?, ?, ?, ?, ?)", _row(record, start, length))
        for start, length in index.execute("SELECT start, length FROM damaged"):
            self._damaged(start, length)
        covered += len(data)
        index.execute("DELETE FROM covered")
        index.execute("INSERT INTO covered VALUES (?, ?)", (covered, _fingerprint(handle, covered)))


def _put(handle: int, line: bytes, end: int) -> None:
    """Write one line and fsync; on any failure the file is cut back to where it was."""
    try:
        written = 0
        while written < len(line):
            written += os.write(handle, line[written:])
        os.fsync(handle)
    except BaseException:
        os.ftruncate(handle, end)
        raise


def _row(record: Record, start: int, length: int) -> tuple[Any, ...]:
    def inner(*keys: str) -> str | None:
        value: Any = record.value
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value if isinstance(value, str) else None

    model, target, status = inner("model", "name"), inner("board", "target"), inner("measurement", "status")
    return record.id, record.kind, model, target, status, start, length


def _read(handle: int, start: int) -> bytes:
    """All bytes from ``start``."""
    parts = []
    while part := os.pread(handle, 1 << 24, start):
        parts.append(part)
        start += len(part)
    return b"".join(parts)


def _fingerprint(handle: int, covered: int) -> str:
    """A mark of the file's content up to ``covered``: its last 4 KiB."""
    tail = min(covered, 4096)
    return hashlib.sha256(os.pread(handle, tail, covered - tail)).hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
