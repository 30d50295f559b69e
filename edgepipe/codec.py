"""Dataclass <-> JSON, strictly. Loadable on Python 3.8 without third-party packages: the board uses it too.

Whatever arrives from a board or a disk is hostile until proven otherwise: unknown keys, missing keys, wrong types and
numbers that are not finite are refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from typing import Any, Callable, Dict, List, Tuple, Type, TypeVar

from edgepipe.errors import IntegrityError

T = TypeVar("T")
MAX_DEPTH = 8  # of free-form values: deeper nesting is an attack, not a parameter


def to_dict(value: Any) -> Any:
    """Turn a dataclass (or a list or dict of them) into plain JSON values."""
    return _object(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


_SIMPLE = frozenset({int, float, str, bool, type(None)})
_NAMES: Dict[type, Tuple[str, ...]] = {}


def _object(value: Any) -> Dict[str, Any]:
    """As `dataclasses.asdict`, which looks the fields up anew each time: a planner writes reports by the thousand."""
    kind = type(value)
    if kind not in _NAMES:
        _NAMES[kind] = tuple(each.name for each in dataclasses.fields(kind))
    found = {}
    for name in _NAMES[kind]:
        inner = getattr(value, name)
        found[name] = inner if type(inner) in _SIMPLE else _inner(inner)
    return found


def _inner(value: Any) -> Any:
    """A value inside of a dataclass: containers are copied, so that no two results share one."""
    if type(value) in _NAMES:
        return _object(value)
    if isinstance(value, (list, tuple)):
        return type(value)([item if type(item) in _SIMPLE else _inner(item) for item in value])
    if isinstance(value, dict):
        return {key: item if type(item) in _SIMPLE else _inner(item) for key, item in value.items()}
    return to_dict(value)


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def canonical(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8, no NaN. Two equal values give equal bytes."""
    return _CANONICAL.encode(to_dict(value)).encode("utf-8")


def from_dict(kind: Type[T], data: Any, where: str = "") -> T:
    """Build the dataclass ``kind`` from JSON values, strictly.

    Raises:
        IntegrityError: an unknown key, a missing one, a wrong type or a number that is not finite.
    """
    try:
        return _reader(kind)(data)  # type: ignore[no-any-return]
    except _WrongError as wrong:
        raise IntegrityError(wrong.what, ".".join([where or kind.__name__, *reversed(wrong.path)])) from None


class _WrongError(Exception):
    """What is wrong, and the keys that lead there from the inside out: nobody pays for a path that nobody reads."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what
        self.path: List[str] = []


_Read = Callable[[Any], Any]
_READERS: Dict[type, _Read] = {}


def _reader(kind: type) -> _Read:
    """How a dataclass is read. Found once for each: boards' answers and journals are read by the thousand."""
    if kind not in _READERS:
        _READERS[kind] = _Fields(kind)
    return _READERS[kind]


class _Fields:
    """Reads one dataclass, field by field."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self._fields: Dict[str, Tuple[Any, _Read]] = {}

    def __call__(self, data: Any) -> Any:
        if not isinstance(data, dict):
            raise _WrongError("expected an object")
        if not self._fields:  # not at the beginning: a dataclass may hold others of its kind
            hints = typing.get_type_hints(self.kind)
            self._fields = {name: (hint if hint in _EXACT else None, _how(hint)) for name, hint in hints.items()}
        fields, values, key = self._fields, {}, ""
        try:
            for key, value in data.items():
                exact, read = fields[key] if key in fields else self._unknown(data)
                values[key] = value if type(value) is exact else read(value)
        except _WrongError as wrong:
            if key in fields:
                wrong.path.append(key)
            raise
        try:
            return self.kind(**values)
        except TypeError as error:
            raise _WrongError(str(error)[:200]) from None

    def _unknown(self, data: Dict[Any, Any]) -> Tuple[Any, _Read]:
        extra = sorted(set(data) - set(self._fields))
        raise _WrongError(f"unknown key {str(extra[0])[:64]!r}")


_EXACT = frozenset({int, str, bool})


def _how(hint: Any) -> _Read:
    """How a value of this type is read."""
    origin = getattr(hint, "__origin__", None)
    args: Any = getattr(hint, "__args__", ())
    if hint is Any:
        return lambda value: _plain(value, 0)
    if origin is typing.Union:
        inner = _how(args[0])
        return lambda value: None if value is None else inner(value)
    if origin is list:
        return _list_of(args[0])
    if origin is dict:
        return _dict_of(_how(args[1]))
    if dataclasses.is_dataclass(hint):
        return _reader(hint)  # type: ignore[arg-type]
    return lambda value: _scalar(hint, value)


def _list_of(hint: Any) -> _Read:
    exact, inner = hint if hint in _EXACT else None, _how(hint)

    def read(value: Any) -> Any:
        if not isinstance(value, list):
            raise _WrongError("expected a list")
        return [item if type(item) is exact else inner(item) for item in value]

    return read


def _dict_of(inner: _Read) -> _Read:
    def read(value: Any) -> Any:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise _WrongError("expected an object")
        return {key: inner(item) for key, item in value.items()}

    return read


def _scalar(hint: Any, value: Any) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        raise _WrongError(f"expected {getattr(hint, '__name__', hint)}, not {type(value).__name__}")
    if hint is float and not math.isfinite(value):
        raise _WrongError("expected a finite number")
    return value


def _plain(value: Any, depth: int) -> Any:
    """Check a free-form JSON value: finite numbers, bounded depth."""
    if depth > MAX_DEPTH:
        raise _WrongError("nested too deeply")
    kind = type(value)
    if kind is str or kind is int:
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise _WrongError("expected a finite number")
    if isinstance(value, dict):
        return {
            str(key): item if type(item) in _EXACT and depth < MAX_DEPTH else _plain(item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [item if type(item) in _EXACT and depth < MAX_DEPTH else _plain(item, depth + 1) for item in value]
    return value
