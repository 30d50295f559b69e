"""What a runtime's own file says of its wheels and of CPUs. Data alone: the host draws the conclusions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Tuple


class Wheel(NamedTuple):
    """A way to get the runtime by pip.

    ``requirement`` ends at the newest version edgepipe was tested with, e.g. ``onnxruntime<=1.31.1``; ``also`` is what
    it needs beside it, where the wheel's own metadata says too little.
    """

    requirement: str
    also: Tuple[str, ...] = ()


class Crash(NamedTuple):
    """Versions that die with SIGILL on a CPU of ``machine`` that lacks the /proc/cpuinfo flag ``lacks``."""

    requirement: str
    machine: str
    lacks: str
    source: str


@dataclass(frozen=True)
class Arithmetic:
    """What int8 and int4 would do on a CPU; ``verdict`` is of int8: green (made for it), yellow (measure first)."""

    verdict: str
    int8: str
    int4: str
    fix: str = ""
