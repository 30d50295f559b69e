"""Asks a Raspberry Pi's firmware, by its own tool ``vcgencmd``."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Optional

_SECONDS = 2.0


def path(sysfs_root: str = "/") -> Optional[str]:
    """Where the tool is; below another root than the machine's own, only what lies there counts."""
    own = os.path.abspath(sysfs_root) == "/"
    return shutil.which("vcgencmd", path=None if own else os.path.join(sysfs_root, "usr/bin"))


def ask(question: str, sysfs_root: str = "/") -> str:
    """What the firmware answers, e.g. to ``get_throttled``.

    Raises:
        OSError: the tool is missing, may not open /dev/vcio, fails, hangs, or says ``error=...`` (with exit status 0).
    """
    tool = path(sysfs_root)
    if not tool:
        raise FileNotFoundError("no vcgencmd on this board")
    try:
        done = subprocess.run(
            [tool, question],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"vcgencmd {question} gave no answer in {_SECONDS:g} s") from None
    said = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode or said.startswith("error="):
        words = said or done.stderr.decode("utf-8", "replace").strip() or f"exit status {done.returncode}"
        first = words.split("\n", 1)[0]
        raise OSError(f"vcgencmd {question}: {first}")
    return said
