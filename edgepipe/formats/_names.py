"""Names of nodes in an error: the first few, and how many more there are."""

from __future__ import annotations

_MOST = 5


def some(names: list[str]) -> str:
    """The names as a list in words: ``a, b, c, d, e and 7 more``."""
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more
