"""Coverage-guided fuzzing of the protocol's two readers, by atheris: ``python -m tests.fuzz agent|host MESSAGES``.

The agent's: whatever a host sends is answered by a result or a typed error, in step. The host's: whatever a board says
is a result of the type asked for, or a typed error. Inputs that reached new code are kept in ``corpus/``, one a line in
base64; ``KEEP=1`` adds those of this run. Ends with a line of JSON: messages, and by how much the memory grew.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["edgepipe.agent", "edgepipe.codec", "edgepipe.link._protocol"]):
    from tests.fuzz import readers

CORPUS = Path(__file__).with_name("corpus")
_MOST_INPUT = 4096
_MOST_KEPT = 400
# Python's own caches and the fuzzer's tables fill up first; memory is compared from this share of the run on.
_WARM = 0.1


class Run:
    """Counts the messages, and watches the memory of this process."""

    def __init__(self, read: readers.Reader, messages: int, result: Path) -> None:
        self._read, self._messages, self._result = read, messages, result
        self._count, self._warm, self._most = 0, 0, 0

    def one(self, data: bytes) -> None:
        """Let the reader have one input."""
        self._read(data)
        self._count += 1
        if self._count == int(self._messages * _WARM):
            self._warm = self._most = rss_bytes()
        elif self._count % 1000 == 0 or self._count >= self._messages:
            self._most = max(self._most, rss_bytes())
        if self._count >= self._messages:
            grown = self._most - self._warm
            self._result.write_text(json.dumps({"messages": self._count, "grown_bytes": grown}))


def rss_bytes() -> int:
    """The resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Fuzz; never returns, as libFuzzer ends the process."""
    name, messages = sys.argv[1], int(sys.argv[2])
    kept = CORPUS / f"{name}.txt"
    with tempfile.TemporaryDirectory(prefix="edgepipe-fuzz-") as folder:
        inputs, result = Path(folder) / "inputs", Path(folder) / "result"
        inputs.mkdir()
        seeds = [base64.b64decode(line) for line in kept.read_text().split()] if kept.exists() else []
        for number, data in enumerate([*readers.SEEDS[name], *seeds]):
            (inputs / f"{number:04}").write_bytes(data)
        words = Path(folder) / "words"
        words.write_text("".join(f'"\\"{word}\\""\n' for word in readers.WORDS))
        child = os.fork()
        if not child:
            run = Run(readers.READERS[name], messages, result)
            limits = [f"-max_len={_MOST_INPUT}", "-rss_limit_mb=2048", "-timeout=20"]
            places = [f"-dict={words}", f"-artifact_prefix={folder}/", str(inputs)]
            atheris.Setup([sys.argv[0], f"-runs={messages}", *limits, *places], run.one)
            atheris.Fuzz()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            for path in Path(folder).glob("crash-*"):
                print(f"this input broke it: {base64.b64encode(path.read_bytes()).decode()}", file=sys.stderr)
            sys.exit(code)
        if os.environ.get("KEEP"):
            smallest = sorted({path.read_bytes() for path in inputs.iterdir()}, key=lambda data: (len(data), data))
            kept.write_text("".join(base64.b64encode(data).decode() + "\n" for data in smallest[:_MOST_KEPT]))
        print(result.read_text())


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
