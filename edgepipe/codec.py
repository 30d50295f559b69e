"""Dataclass <-> JSON, strictly. Loadable on Python 3.8 without third-party packages: the board uses it too.

Whatever arrives from a board or a disk is hostile until proven otherwise: unknown keys, missing keys, wrong types and
numbers that are not finite are refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from typing import Any, Dict, Tuple, Type, TypeVar

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
    if isinstance(value, (list, tuple)):
        return type(value)([item if type(item) in _SIMPLE else _inner(item) for item in value])
    if isinstance(value, dict):
        return {key: item if type(item) in _SIMPLE else _inner(item) for key, item in value.items()}
    return to_dict(value)


def canonical(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8, no NaN. Two equal values give equal bytes."""
    text = json.dumps(to_dict(value), sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.encode("utf-8")


def from_dict(kind: Type[T], data: Any, where: str = "") -> T:
    """Build the dataclass ``kind`` from JSON values, strictly.

    Raises:
        IntegrityError: an unknown key, a missing one, a wrong type or a number that is not finite.
    """
    where = where or kind.__name__
    if not isinstance(data, dict):
        raise IntegrityError("expected an object", where)
    hints = _hints(kind)
    extra = sorted(set(data) - set(hints))
    if extra:
        raise IntegrityError(f"unknown key {str(extra[0])[:64]!r}", where)
    values = {key: _read(hints[key], value, f"{where}.{key}") for key, value in data.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise IntegrityError(str(error)[:200], where) from None


_CACHE: Dict[type, Dict[str, Any]] = {}


def _hints(kind: type) -> Dict[str, Any]:
    if kind not in _CACHE:
        _CACHE[kind] = typing.get_type_hints(kind)
    return _CACHE[kind]


def _read(hint: Any, value: Any, where: str) -> Any:
    origin = getattr(hint, "__origin__", None)
    args: Any = getattr(hint, "__args__", ())
    if hint is Any:
        return _plain(value, where, 0)
    if origin is typing.Union:
        return None if value is None else _read(args[0], value, where)
    if origin is list:
        if not isinstance(value, list):
            raise IntegrityError("expected a list", where)
        return [_read(args[0], item, where) for item in value]
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise IntegrityError("expected an object", where)
        return {key: _read(args[1], item, where) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        raise IntegrityError(f"expected {getattr(hint, '__name__', hint)}, not {type(value).__name__}", where)
    if hint is float and not math.isfinite(value):
        raise IntegrityError("expected a finite number", where)
    return value


def _plain(value: Any, where: str, depth: int) -> Any:
    """Check a free-form JSON value: finite numbers, bounded depth."""
    if depth > MAX_DEPTH:
        raise IntegrityError("nested too deeply", where)
    kind = type(value)
    if kind is str or kind is int:
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise IntegrityError("expected a finite number", where)
    if isinstance(value, dict):
        return {str(key): _plain(item, where, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, where, depth + 1) for item in value]
    return value
