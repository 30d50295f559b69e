"""Drive two workers: a case that kills or hangs one is a verdict, and the next one gets a new worker.

Verdicts are kept by the hash of the case, of the code that converts and of the libraries: a stopped run goes on.
"""

from __future__ import annotations

import json
import queue
import selectors
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepipe import formats, paths
from edgepipe.cache import code, hash_file, key, versions
from tests.conformance import worker as judge
from tests.conformance.corpus import name_of

DEADLINE = 300.0
WORKERS = 2
_CONCERNED = {"openvino": ("onnx", "openvino"), "tflite": ("onnx", "torch", "tflite")}
_TOLD = 50  # cases between two words of how far it is


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
    tally, cases = Tally(kind, format_name), list(files)
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    workers = [Worker() for _ in range(WORKERS)]
    for each in workers:
        idle.put(each)
    stamp = _stamp(format_name)

    def verdict(path: Path) -> tuple[str, str]:
        kept = _kept(path, stamp)
        if kept.is_file():
            answer = json.loads(kept.read_text(encoding="utf-8"))
            return answer[0], answer[1]
        one = idle.get()
        try:
            answer = one.ask({"path": str(path), "format": format_name})
        finally:
            idle.put(one)
        part = kept.with_suffix(".part")
        part.write_text(json.dumps(answer), encoding="utf-8")
        part.replace(kept)
        return answer

    try:
        with ThreadPoolExecutor(WORKERS) as pool:
            for place, (path, found) in enumerate(zip(cases, pool.map(verdict, cases), strict=True), 1):
                tally.add(name_of(path), *found)
                if place % _TOLD == 0:
                    print(f"{kind} to {format_name}: {place} of {len(cases)}", file=sys.stderr, flush=True)
    finally:
        for each in workers:
            each.close()
    return tally


def _stamp(format_name: str) -> str:
    """A hash of the code and the libraries that a verdict depends on."""
    root = Path(str(formats.__file__)).parent
    sources = [path for name in _CONCERNED[format_name] for path in sorted((root / name).glob("*.py"))]
    libraries = ("onnx", "onnxruntime", "openvino", "torch", "litert-torch", "litert-converter", "ai-edge-litert")
    return key(
        "conformance",
        format=format_name,
        code=code(*sources, Path(str(judge.__file__)), root.parent / "stages.py"),
        versions=versions(libraries),
    )


def _kept(path: Path, stamp: str) -> Path:
    """Where the verdict of a case is kept."""
    folder = paths.cache_home() / "conformance" / "verdicts"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{key('case', name=name_of(path), file=hash_file(path), stamp=stamp)}.json"
