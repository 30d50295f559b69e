"""Print every figure as a table; exit 1 if one is missed."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from pathlib import Path

from tests.bench.figure import Figure

PARTS = (
    "start",
    "transfer",
    "export",
    "latency",
    "mlperf",
    "statistics",
    "turns",
    "compression",
    "fleet",
    "fleet_dask",
    "fleet_ssh",
    "serve",
    "llm",
    "lora",
    "peers",
)


def main() -> int:
    """Measure the parts named on the command line, or all."""
    rows: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="edgepipe-bench-") as folder:
        os.environ["EDGEPIPE_HOME"] = str(Path(folder) / "home")
        for part in sys.argv[1:] or PARTS:
            scratch = Path(folder) / part
            scratch.mkdir()
            found = importlib.import_module(f"tests.bench.{part}").figures(scratch)
            for row in found:
                verdict = {True: "reached", False: "missed", None: "-"}[row.ok]
                print(f"{row.name:<44} {row.asked:<14} {row.reached:<42} {verdict}", flush=True)
            rows += found
    return 1 if any(row.ok is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
