"""Small files of the kernel, read as numbers."""

from __future__ import annotations

import glob
import os
from typing import Dict, List

_MOST_BYTES = 64


def number(*path: str) -> float:
    """The number in a small file.

    Raises:
        OSError: it can't be read. ValueError: it is empty, or no number.
    """
    name = os.path.join(*path)
    with open(name, "rb") as file:
        text = file.read(_MOST_BYTES)
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} holds {text[:20]!r}, which is no number") from None


def text(*path: str) -> str:
    """The stripped text of a small file, or nothing where there is none."""
    try:
        with open(os.path.join(*path), "rb") as file:
            return file.read(_MOST_BYTES).decode("utf-8", "replace").strip("\x00 \n\t")
    except OSError:
        return ""


def folders(sysfs_root: str, *patterns: str) -> List[str]:
    """Folders below the root that match one of the patterns, sorted, each once however many links lead to it."""
    found: Dict[str, str] = {}
    for pattern in patterns:
        for path in sorted(glob.glob(os.path.join(sysfs_root, pattern))):
            found.setdefault(os.path.realpath(path), path)
    return sorted(found.values())


def rate_hz(most: float, *path: str) -> float:
    """How often a sensor is worth asking: by its conversion time in ms in a file, where there is one, at most ``most``.

    JetPack 4 writes the unit behind the number.
    """
    words = text(*path).split()
    try:
        return min(most, 1000 / float(words[0])) if words else most
    except (ValueError, ZeroDivisionError):
        return most
