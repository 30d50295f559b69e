from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guarantees.figure import report, scale

MESSAGES = scale(3_000, 500_000)


@pytest.mark.guarantee
@pytest.mark.parametrize("reader", ["agent", "host"])
def test_coverage_guided_messages_break_no_reader(reader):
    pytest.importorskip("atheris", reason="atheris has no wheel for this machine")
    command = [sys.executable, "-m", "tests.fuzz", reader, str(MESSAGES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["messages"] >= MESSAGES
    grown = found["grown_bytes"] / 1e6
    report(
        13, f"{MESSAGES:,} fuzzed messages to the {reader}: typed errors only, memory + {grown:.0f} MB", ok=grown < 50
    )
