"""Run the tests that prove the guarantees, and print the table: what is promised, what was asked, what was reached.

``SMALL=1`` tries less often and ends within a minute. ``WRITE=1`` also writes the table into docs/guarantees.md.
Exit 1 if a row is not reached.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.guarantees.figure import FILE, FULL

TESTS = Path(__file__).parents[1]
DOCUMENT = TESTS.parent / "docs" / "guarantees.md"
SMALL = "This is the small form: where it says *held*, it tried less often than the figure asks for."
# Row -> what is promised, and the figure asked for.
ROWS = {
    1: ("a deploy is atomic", "1,000 kills, 0 violations"),
    2: ("safe against a power cut", "every operation in each mode; every fsync needed"),
    3: ("content-addressed", "0 of 10,000 tampered blobs accepted"),
    4: ("resumable transfer", "<= 1 MiB sent again for a cut; >= 0.9 x the speed of sftp"),
    5: ("the same deploy again sends nothing", "0 blob bytes; a failed self-test is done again"),
    6: ("rollback without a new upload", "< 1 s on the board"),
    7: ("bounded disk", "the old release stays at every full disk; recovers unaided"),
    8: ("signed manifests", "100 % of 10,000 tampered, foreign and replayed refused"),
    9: ("one at a time on a board", "20 race, 0 overlaps; free < 1 s after a kill"),
    10: ("no hang", "back by the deadline + 2 s"),
    11: ("one board never stops the fleet", "100 boards, 20 % sick: the others 100 % done; <= 1.2 x the healthy run"),
    12: ("nothing measured is lost", "0 lost, 0 twice, of 10,000"),
    13: ("a board's words are hostile input", "1,000,000 messages: typed errors only, memory + < 50 MB"),
    14: ("host keys are pinned", "0 silent accepts"),
    15: ("no secret in argv, logs or tracebacks", "0 hits"),
    16: ("no injection, no traversal", "0 escapes"),
    17: ("a hostile model stays in its box", "0 reads or writes outside its folder"),
    18: ("a crash of a runtime is a result", "100 % of signals classified"),
    19: ("honest numbers", "false ok < 1 %"),
    20: ("least privilege", "all refused; settings restored"),
}


def main() -> int:
    """Run, collect, print."""
    small = bool(os.environ.get("SMALL"))
    with tempfile.TemporaryDirectory(prefix="edgepipe-guarantees-") as folder:
        figures = Path(folder) / "figures"
        environment = {**os.environ, FILE: str(figures), **({} if small else {FULL: "1"})}
        code = subprocess.run(_command(), env=environment, check=False, stdout=sys.stderr).returncode
        lines = figures.read_text().splitlines() if figures.exists() else []
    found: dict[int, list[dict[str, object]]] = {}
    for line in map(json.loads, lines):
        found.setdefault(line["row"], []).append(line)
    table = [_row(row, found.get(row, [])) for row in ROWS]
    for row, promise, asked, reached, verdict in table:
        print(f"{row:>2}  {promise:<40} {asked:<62} {reached:<60} {verdict}")
    if os.environ.get("WRITE"):
        DOCUMENT.write_text(_document(table, small=small), encoding="utf-8")
    return 1 if code or any(verdict != "reached" for *_, verdict in table) else 0


def _command() -> list[str]:
    """Run the tests that bear the mark, two at a time for each core: most of them wait more than they compute."""
    files = sorted(str(path) for path in TESTS.rglob("test_*.py") if "pytest.mark.guarantee" in path.read_text("utf-8"))
    at_once = str(2 * (os.cpu_count() or 1))
    spread = ["-n", at_once, "--dist", "worksteal"]
    return [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "guarantee",
        *spread,
        "--timeout",
        "7200",
        "-p",
        "no:cacheprovider",
        *files,
    ]


def _row(row: int, figures: list[dict[str, object]]) -> tuple[int, str, str, str, str]:
    """Number, promise, figure asked for, figure reached, verdict."""
    ok = bool(figures) and all(item["ok"] for item in figures)
    reached = "; ".join(dict.fromkeys(str(item["reached"]) for item in figures)) or "no test reports it yet"
    return row, *ROWS[row], reached, "reached" if ok else "not reached"


def _document(table: list[tuple[int, str, str, str, str]], *, small: bool) -> str:
    made = "WRITE=1 SMALL=1 make guarantees" if small else "WRITE=1 make guarantees"
    lines = [
        "# What edgepipe promises, and what the tests reached",
        "",
        f"Written by `{made}`; don't edit it by hand. The tests bear the mark `guarantee`.",
        *(
            ["This is the small form: where it says *held*, it tried less often than the figure asks for."]
            if small
            else []
        ),
        "",
        "| # | promise | figure asked for | what was reached | verdict |",
        "|---|---|---|---|---|",
        *("| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in table),
    ]
    text = "\n".join(lines) + "\n"
    return text.replace(" | reached |", " | held |") if small else text


if __name__ == "__main__":
    sys.exit(main())
