import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin:/sbin"), reason="no sshd here")
def test_the_demo_of_fleets_in_small_on_real_ssh_servers(tmp_path):
    """Five boards: one is gone, one hung, one shows the key of another; two are well."""
    settings = {"BOARDS": "5", "SICK": "3", "MODELS": "fashion-mbv2", "RECIPES": "none", "FORMATS": "onnx"}
    environment = {**os.environ, **settings, "OUT": str(tmp_path / "out")}
    command = [sys.executable, "scripts/fleet_demo.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 5 boards did all, 3 sick ones are reported; 2 trials kept" in done.stdout
    for reason in ("connection refused", "HAS CHANGED", "does not speak SSH"):
        assert reason in done.stderr
    assert "board-02" in (tmp_path / "out" / "report.html").read_text()
