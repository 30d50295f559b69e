"""How a test reports the figure of a guarantee, and how hard it tries."""

from __future__ import annotations

import json
import os
from pathlib import Path

FILE = "EDGEPIPE_FIGURES"  # where `python -m tests.guarantees` wants the figures; unset in a plain run of the tests
FULL = "EDGEPIPE_FULL"
FULL_FORM = bool(os.environ.get(FULL))  # whether all is tried that the figures ask for


def scale(small: int, full: int) -> int:
    """How often to try: ``small`` in a plain run, ``full`` where all is asked for."""
    return full if FULL_FORM else small


def report(row: int, reached: str, *, ok: bool) -> None:
    """Write down what was reached for a row of the table, and fail the test if that is not enough."""
    if path := os.environ.get(FILE):
        with Path(path).open("a") as file:
            file.write(json.dumps({"row": row, "reached": reached, "ok": ok}) + "\n")
    assert ok, f"guarantee {row}: {reached}"
