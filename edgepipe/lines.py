"""One record, one line of the journal: ``{"sum":"<16 hex>","record":{...}}``, whole by its sum or worthless."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgepipe import codec

Place = tuple[int, int]  # where a line begins, and its length without the newline; bytes
_HEAD, _MIDDLE, _TAIL = b'{"sum":"', b'","record":', b"}"
_SUM = 16


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


@dataclass(frozen=True)
class Record:
    """One line: ``at`` is UTC (ISO 8601), ``kind`` what ``value`` is, e.g. "report"."""

    id: str
    kind: str
    at: str
    value: dict[str, Any]


def encode(record: Record) -> bytes:
    """The line of a record, with its newline."""
    data = codec.canonical(dict(vars(record)))  # its value is plain data already: no copy of it is needed
    return _HEAD + _sum(data) + _MIDDLE + data + _TAIL + b"\n"


def parse(line: bytes) -> Record | None:
    """The record of one whole line (without its newline), or null where it is torn, damaged or foreign."""
    if not whole(line):
        return None
    try:
        found = Record(**_DECODER.decode(_content(line).decode()))
    except (TypeError, ValueError, RecursionError):
        return None
    # What is in a value is for its reader to check: most look at a little of it.
    named = all(type(each) is str for each in (found.id, found.kind, found.at))
    return found if named and type(found.value) is dict else None


def whole(line: bytes) -> bool:
    """Whether a line's sum is right."""
    data = _content(line)
    return line == _HEAD + _sum(data) + _MIDDLE + data + _TAIL


def split(data: bytes, start: int = 0, kind: str = "") -> Iterator[tuple[Place, Record | None]]:
    """Place and record of each line of ``data``, which begins at byte ``start``; null where the line is damaged.

    With a ``kind``, whole lines that can't be of it are left out: the bytes tell, without reading their values.
    """
    mark = json.dumps({"kind": kind}, separators=(",", ":"), ensure_ascii=False)[1:-1].encode() if kind else b""
    for line in data.split(b"\n"):
        if line and (mark in line or not whole(line)):
            yield (start, len(line)), parse(line)
        start += len(line) + 1


def _content(line: bytes) -> bytes:
    return line[len(_HEAD) + _SUM + len(_MIDDLE) : -len(_TAIL)]


def _sum(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest()[:_SUM].encode()
