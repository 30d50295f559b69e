"""The runtime that does the least possible: a file of output shapes in, zeros out. All else can be tested through it.

The file is JSON: ``{"outputs": [[shape without batch], ...], "sleep_s": 0.0}``. It needs no numpy to be measured.
"""

from __future__ import annotations

import json
import time
from typing import Any, Callable, Dict, List, Tuple

from edgepipe.agent.advice import Arithmetic, Crash, Wheel
from edgepipe.agent.precision import unknown
from edgepipe.schema import Artifact, OpTime, RunOptions

FORMATS: Tuple[str, ...] = ("null",)
PACKAGES: Tuple[str, ...] = ()
WHEELS: Tuple[Wheel, ...] = ()
CRASHES: Tuple[Crash, ...] = ()
NEEDS_NUMPY = False
_VERSION = "1"


def arithmetic(machine: str, isa: List[str], package: str) -> Arithmetic:  # noqa: ARG001 - as all runtimes
    """It computes nothing."""
    return Arithmetic("green", "none", "none")


def version() -> str:
    """The version of this file's format."""
    return _VERSION


def prepare_empty() -> Callable[[], object]:
    """A closure that does nothing: what the timing loop itself costs is measured with it."""

    def empty() -> None:
        return None

    return empty


class NullSession:
    """A model that returns zeros after ``sleep_s`` seconds."""

    def __init__(self, shapes: List[List[int]], sleep_s: float, batch: int) -> None:
        self._shapes = [[batch, *shape] for shape in shapes]
        self._sleep = sleep_s

    def run(self, feeds: List[Any]) -> List[Any]:
        """Zeros: numpy arrays where numpy is installed, else nested lists."""
        self.prepare(feeds)()
        batch = len(feeds[0]) if feeds else None
        shapes = [[batch or shape[0], *shape[1:]] for shape in self._shapes]
        try:
            import numpy as np
        except ImportError:
            return [_zeros(shape) for shape in shapes]
        return [np.zeros(shape, np.float32) for shape in shapes]

    def prepare(self, feeds: List[Any]) -> Callable[[], object]:  # noqa: ARG002 - as all sessions
        """A closure that sleeps, or does nothing at all."""
        if self._sleep <= 0:
            return prepare_empty()
        seconds, sleep = self._sleep, time.sleep
        return lambda: sleep(seconds)

    def executed(self) -> Dict[str, Any]:
        """Nothing ran."""
        return dict(unknown("null"), precision="none")

    def profile(self, runs: int) -> List[OpTime]:  # noqa: ARG002 - as all sessions
        """It has no nodes."""
        return []

    def close(self) -> None:
        """Nothing is held."""


def load(path: str, options: RunOptions, artifact: Artifact) -> NullSession:  # noqa: ARG001 - as all runtimes
    """Read the file. Raises ValueError, KeyError or TypeError if it is not what is described above."""
    with open(path, encoding="utf-8") as file:
        data = json.load(file)
    shapes = [[int(size) for size in shape] for shape in data["outputs"]]
    return NullSession(shapes, float(data.get("sleep_s", 0.0)), options.batch)


def _zeros(shape: List[int]) -> Any:
    return [_zeros(shape[1:]) for _ in range(shape[0])] if shape else 0.0
