"""One way to say which precision ran, for all runtimes."""

from __future__ import annotations

from typing import Dict


def describe(kernels: Dict[str, int]) -> str:
    """From kernels counted by precision to words, the most frequent first, e.g. ``int8 (12 of 14 kernels; 2 float32)``.

    Nothing counted is ``unknown``: it is not guessed from the file's name.
    """
    counted = sorted(((count, name) for name, count in kernels.items() if count > 0), reverse=True)
    if not counted:
        return "unknown"
    total = sum(count for count, _ in counted)
    most, name = counted[0]
    others = "".join(f"; {count} {kind}" for count, kind in counted[1:])
    return f"{name} ({most} of {total} kernels{others})"
