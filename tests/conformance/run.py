"""Drive the worker: a case that kills or hangs it is a verdict, and the next one gets a new worker."""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conformance.corpus import name_of

DEADLINE = 300.0


@dataclass
class Tally:
    """Verdicts of one kind of file in one format: how often, and every case that is neither right nor excused."""

    kind: str
    format: str
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def attempted(self) -> int:
        """Cases that the source's own runtime runs."""
        return sum(count for verdict, count in self.counts.items() if verdict != "source")

    def add(self, name: str, verdict: str, why: str) -> None:
        """Count a case."""
        self.counts[verdict] += 1
        if verdict == "refused":
            self.reasons[why] += 1
        elif verdict in ("wrong", "unexplained"):
            self.bad.append((name, verdict, why))
            print(f"{name} to {self.format}: {verdict}: {why}", file=sys.stderr, flush=True)


class Worker:
    """A process that answers cases; started again where it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, case: dict[str, Any]) -> tuple[str, str]:
        """The verdict of one case."""
        process = self._process = self._process or self._start()
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(json.dumps(case) + "\n")
            process.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                line = process.stdout.readline() if selector.select(DEADLINE) else None
        except BrokenPipeError:
            line = ""
        if line:
            verdict, why = json.loads(line)
            return verdict, why
        self.close()
        return "unexplained", "it took too long" if line is None else "the converter or the runtime crashed"

    @staticmethod
    def _start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.conformance.worker"]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def close(self) -> None:
        """End the process."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


def convert_all(kind: str, files: Iterable[Path], format_name: str) -> Tally:
    """Convert every file to one format, and hold what it computes against the source's runtime."""
    tally, worker = Tally(kind, format_name), Worker()
    try:
        for path in files:
            tally.add(name_of(path), *worker.ask({"path": str(path), "format": format_name}))
    finally:
        worker.close()
    return tally
