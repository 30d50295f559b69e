"""Plant small faults in the release rules and the store, and print which ones no test noticed.

What is mutated and by which tests it must be found stands in pyproject.toml under `tool.mutmut`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ASKED = 0.95
_FOLDER = Path("mutants")


def mutmut(*words: str) -> str:
    """Run mutmut and return what it prints. Its spinner is kept from the terminal."""
    done = subprocess.run([sys.executable, "-m", "mutmut", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"mutmut {words[0]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def main() -> int:
    """Print each survivor and the share killed; 1 if that is below what is asked for."""
    shutil.rmtree(_FOLDER, ignore_errors=True)
    print("planting faults in edgepipe/agent/rules.py and store.py (about a minute) ...", flush=True)
    mutmut("run", "--max-children", str(os.cpu_count() or 1))
    mutmut("export-cicd-stats")
    stats = json.loads((_FOLDER / "mutmut-cicd-stats.json").read_text())
    for line in mutmut("results").splitlines():
        name, _, fate = line.strip().rpartition(": ")
        if fate in {"survived", "no tests", "suspicious"}:
            changed = mutmut("show", name).splitlines()
            print(
                f"{fate}: {name}",
                *(each for each in changed if each[:1] in "-+" and each[1:3] not in {"--", "++"}),
                sep="\n  ",
            )
    killed, total = stats["killed"] + stats["timeout"], stats["total"]
    reached = killed >= ASKED * total
    words = "reached" if reached else "not reached"
    print(f"{killed} of {total} faults noticed, {killed / total:.1%}; asked for >= {ASKED:.0%}: {words}")
    shutil.rmtree(_FOLDER)
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
