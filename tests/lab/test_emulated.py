"""From nothing to a measured release on the userland of another CPU: real wheels, a real sshd, no network there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.lab.conftest import LabBoard

MODEL = "fashion-mbv2"


def whole_way(board: LabBoard, formats: dict[str, str], profile: str = "quick") -> dict[str, Any]:
    """Doctor, provision, deploy and bench; ``formats`` says which package each format needs. Returns the reports."""
    lines = {check["topic"]: check for check in board.json("doctor")["checks"]}
    assert "emulated" in lines and "mean nothing" in lines["emulated"]["text"]
    runtimes = [flag for name in {"onnx": "onnxruntime", "tflite": "tflite", "openvino": "openvino"}.items()
                if name[0] in formats for flag in ("--runtime", name[1])]  # fmt: skip
    results = {one["runtime"]: one for one in board.json("provision", *runtimes)["runtimes"]}
    assert {one["state"] for one in results.values()} == {"installed"}
    for one in board.json("provision", *runtimes)["runtimes"]:
        assert (one["state"], one["bytes_sent"]) == ("unchanged", 0)
    lines = {check["topic"]: check["verdict"] for check in board.json("doctor")["checks"]}
    assert {lines[name] for name in results} == {"green"}

    how = ("--recipe", "int8", "--to", ",".join(formats), "--eval", "shipped", "--profile", profile)
    found = board.json("deploy", MODEL, *how)["reports"]
    assert [report["artifact"]["format"] for report in found] == list(formats)
    for report in found:
        emulated(report, board)
        assert report["release"]["id"] and report["accuracy"]["on_device"] > 0.9
    (again,) = board.json("bench", "current", "--profile", profile)["reports"]
    emulated(again, board)
    return {report["artifact"]["format"]: report for report in found}


def emulated(report: dict[str, Any], board: LabBoard) -> None:
    """The record is whole, and says on what it was taken."""
    assert report["board"]["emulated"] == f"qemu-user -cpu {board.running.kind.cpu}"
    assert report["measurement"]["status"] in {"ok", "unstable"}
    assert report["measurement"]["latency_ms"]["p50"]["value"] > 0
    assert report["measurement"]["power"]["mean_w"] is None and report["measurement"]["power"]["reason"]


@pytest.mark.lab
@pytest.mark.timeout(900)
def test_a_raspberry_pi_4_from_nothing(bring_up: Callable[..., LabBoard]) -> None:
    """The small form: two runtimes, int8."""
    board = bring_up("pi4")
    whole_way(board, {"onnx": "onnxruntime", "tflite": "ai-edge-litert"})
    page = board.cli.cwd / "report.html"
    board.cli("report", "--html", str(page))
    assert "emulated (qemu-user -cpu cortex-a72): times are not those of a board" in page.read_text()
