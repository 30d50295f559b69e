"""From nothing to a runtime and back, through a real sshd: doctor, a dry run, provision from a folder, doctor."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Cli
from tests.wheel_kit import wheel

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin:/sbin:/usr/local/sbin")
PYTHON = f"cp3{sys.version_info[1]}"
TAG = f"{PYTHON}-{PYTHON}-manylinux_2_28_{os.uname().machine}"


@pytest.mark.slow
@pytest.mark.skipif(SSHD is None, reason="no sshd on this machine")
def test_doctor_and_provision_agree(tmp_path: Path) -> None:
    cli = Cli(tmp_path / "home", tmp_path)
    target = ("--target", "loopback")

    def state() -> tuple[str, str]:
        document = cli.json("doctor", *target, "--quiet")
        assert document["schema"] == "edgepipe.doctor/1" and document["usable"]
        check = next(check for check in document["checks"] if check["topic"] == "onnxruntime")
        return check["verdict"], check["text"]

    verdict, text = state()
    assert verdict == "yellow" and "onnxruntime 1.31.1 fits" in text

    wheels = tmp_path / "wheels"
    order = ("provision", *target, "--runtime", "onnxruntime", "--wheelhouse", str(wheels))
    wheel(wheels, "onnxruntime", "1.31.1", TAG.replace(PYTHON, "cp38"), {"onnxruntime/__init__.py": b""})
    wrong = cli(*order, code=4)
    assert "cp38-cp38" in wrong.stderr and "is not for this board" in wrong.stderr

    wheel(wheels, "onnxruntime", "1.31.1", TAG, {"onnxruntime/__init__.py": b'__version__ = "1.31.1"\n'})
    for expected in ("would install", "would install"):
        (result,) = cli.json(*order, "--check", "--quiet")["runtimes"]
        assert (result["state"], result["bytes_sent"]) == (expected, 0)
    assert state()[0] == "yellow"
    (result,) = cli.json(*order, "--quiet")["runtimes"]
    assert result["state"] == "installed" and result["bytes_sent"] > 0
    assert [each["file"] for each in result["wheels"]] == [f"onnxruntime-1.31.1-{TAG}.whl"]
    verdict, text = state()
    assert verdict == "green" and f"onnxruntime 1.31.1 ({TAG}) is installed and imports" in text
    for flags, expected in ((("--check",), "unchanged"), ((), "unchanged")):
        (result,) = cli.json(*order, *flags, "--quiet")["runtimes"]
        assert (result["state"], result["bytes_sent"]) == (expected, 0)
