"""A built wheel works from any folder: targets, models and the page's assets are inside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT


@pytest.mark.slow
def test_the_wheel_carries_what_it_ships(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path / "dist"), str(ROOT)], check=True, timeout=280)
    (wheel,) = (tmp_path / "dist").glob("edgepipe-*.whl")
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([*pip, "install", "--no-deps", "--target", str(installed), str(wheel)], check=True, timeout=120)
    # -P and PYTHONPATH put the wheel before the checkout, which is installed for development.
    environment = {**os.environ, "PYTHONPATH": str(installed), "EDGEPIPE_HOME": str(tmp_path / "home")}
    code = "import edgepipe, sys; print(edgepipe.__file__, file=sys.stderr); from edgepipe.cli import main; main()"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-c", code, *arguments]
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=True)
        assert str(installed) in done.stderr
        return done

    assert {"loopback", "rpi4", "jetson-orin-nano"} <= {
        line.split()[0] for line in run("targets", "list").stdout.splitlines()
    }
    plan = json.loads(run("deploy", "fashion-mbv2", "--target", "local", "--to", "onnx", "--dry-run", "--json").stdout)
    assert plan["model"]["name"] == "fashion-mbv2"
    shipped = installed / "edgepipe" / "_shipped"
    assert (shipped / "models" / "fashion-resnet8" / "weights.safetensors").is_file()
    assert (shipped / "models" / "_fashion_mnist" / "evaluation.npz").is_file()
    assert (installed / "edgepipe" / "report" / "page.css").is_file()
