"""How long edgepipe needs before it does anything, and how small the agent is."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from edgepipe.pack import agent_zipapp
from tests.bench.figure import Figure, at_most, interleaved, missing, seconds

ROUNDS = 15


def figures(folder: Path) -> list[Figure]:
    """`--help` against importing the command-line library alone; the agent's size and memory."""
    script = Path(sys.executable).parent / "edgepipe"
    command = [str(script)] if script.exists() else [sys.executable, "-c", "from edgepipe.cli import main; main()"]
    ours, library, ratio = interleaved(
        lambda: seconds([*command, "--help"]), lambda: seconds([sys.executable, "-c", "import typer"]), ROUNDS
    )
    content, _ = agent_zipapp()
    archive = folder / "agent.pyz"
    archive.write_bytes(content)
    return [
        at_most("edgepipe --help / import typer", ratio, 1.5, "x", f"({ours * 1e3:.0f} / {library * 1e3:.0f} ms)"),
        at_most("agent zipapp", len(content) / 1e3, 100, "kB"),
        _memory(archive, folder),
    ]


def _memory(archive: Path, folder: Path) -> Figure:
    """The agent's resident memory after it said hello, with no runtime loaded."""
    name = "agent's memory without a runtime"
    process = subprocess.Popen(
        [sys.executable, str(archive), "serve", "--root", str(folder / "root")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b'{"verb": "hello", "args": {"owner": "bench@host"}}\n')
        process.stdin.flush()
        process.stdout.readline()
        time.sleep(0.2)
        status = Path(f"/proc/{process.pid}/status")
        if not status.exists():
            return missing(name, "no /proc on this machine")
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmRSS")]
        return at_most(name, int(line.split()[1]) * 1024 / 1e6, 25, "MB")
    finally:
        process.kill()
        process.wait()
