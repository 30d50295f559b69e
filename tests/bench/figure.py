"""What a figure is, and how two commands are timed against each other."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One line of the table: what is asked, and what was reached in this run."""

    name: str
    asked: str
    reached: str
    ok: bool | None  # None where it could not be measured; ``reached`` then says why


def at_most(name: str, value: float, limit: float, unit: str = "x", detail: str = "") -> Figure:
    """A figure that must not exceed ``limit``."""
    return Figure(name, f"<= {limit:g} {unit}", f"{value:.3g} {unit} {detail}".strip(), value <= limit)


def at_least(name: str, value: float, limit: float, unit: str = "x", detail: str = "") -> Figure:
    """A figure that must reach ``limit``."""
    return Figure(name, f">= {limit:g} {unit}", f"{value:.3g} {unit} {detail}".strip(), value >= limit)


def within(name: str, ratio: float, share: float, detail: str = "") -> Figure:
    """A ratio that must be 1 give or take ``share``."""
    return Figure(name, f"within {share:.0%}", f"{ratio - 1:+.2%} {detail}".strip(), abs(ratio - 1) <= share)


def missing(name: str, why: str) -> Figure:
    """A figure that can't be measured here."""
    return Figure(name, "", f"not measured: {why}", None)


def interleaved(first: Callable[[], float], second: Callable[[], float], rounds: int) -> tuple[float, float, float]:
    """Measure A B A B ...; return both medians and the median of the ratios A / B of neighbours.

    Neighbours share whatever else the machine was doing, so their ratio holds where the absolute figures wander.
    """
    pairs = [(first(), second()) for _ in range(rounds)]
    ratio = statistics.median(a / b for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio


def seconds(command: Sequence[str], **more: object) -> float:
    """The wall time of a command that must succeed."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)  # type: ignore[call-overload]
    return time.perf_counter() - started
