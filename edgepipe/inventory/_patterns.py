"""Ansible's host patterns: names, groups, wildcards, ``~regex`` and ``group[0:2]``, joined by ``:`` or ``,``.

As in Ansible the unions come first, then the intersections (``&``), then the exclusions (``!``), however
they are ordered.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from typing import Any

from edgepipe import plugins
from edgepipe.errors import UsageError

_SLICE = re.compile(r"(.*)\[(-?\d+)(?:(:)(-?\d*))?\]\Z")
_SEPARATOR = re.compile(r"[:,](?![^\[]*\])")


def select(pattern: str, hosts: Sequence[str], groups: dict[str, tuple[str, ...]], where: str) -> set[str]:
    """Return the names of the hosts chosen.

    Raises:
        UsageError: a part that names nothing, or nothing left in the end.
    """
    parts = [part.strip() for part in _SEPARATOR.split(pattern) if part.strip()]
    unions = [part for part in parts if part[0] not in "&!"] or ["all"]
    chosen: set[str] = set()
    for part in unions:
        chosen |= _one(part, hosts, groups)
    for part in parts:
        if part[0] == "&":
            chosen &= _one(part[1:], hosts, groups)
    for part in parts:
        if part[0] == "!":
            chosen -= _one(part[1:], hosts, groups)
    if not chosen:
        raise UsageError(f"no host is chosen by {pattern[:80]!r}", where, "edgepipe fleet run --dry-run shows who is")
    return chosen


def _one(part: str, hosts: Sequence[str], groups: dict[str, tuple[str, ...]]) -> set[str]:
    if part.startswith("~"):
        return _matching(re.compile(_regex(part[1:])).match, part, hosts, groups)
    sliced = _SLICE.match(part)
    name = sliced[1] if sliced else part
    if any(sign in name for sign in "*?"):
        found = _matching(lambda text: fnmatch.fnmatchcase(text, name), part, hosts, groups)
        ordered = [host for host in hosts if host in found]
    elif name in groups:
        ordered = list(groups[name])
    elif name in hosts:
        ordered = [name]
    else:
        raise plugins.unknown("host or group", name, [*groups, *hosts])
    return set(_cut(ordered, sliced[2], sliced[3], sliced[4])) if sliced else set(ordered)


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise UsageError(f"not a regular expression: {error}", f"--limit ~{text[:80]}", "correct it") from None
    return text


def _matching(
    matches: Callable[[str], Any], part: str, hosts: Sequence[str], groups: dict[str, tuple[str, ...]]
) -> set[str]:
    found = {host for host in hosts if matches(host)}
    for name, members in groups.items():
        if matches(name):
            found |= set(members)
    if not found:
        raise plugins.unknown("host or group", part, [*groups, *hosts])
    return found


def _cut(ordered: list[str], first: str, colon: str | None, last: str | None) -> list[str]:
    """``group[0]`` is one host, ``group[0:2]`` three of them (both ends are in, as with Ansible)."""
    start = int(first)
    if not colon:
        return ordered[start:][:1] if -len(ordered) <= start < len(ordered) else []
    end = int(last) if last else len(ordered) - 1
    return ordered[start:] if end == -1 else ordered[start : end + 1]
