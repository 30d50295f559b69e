"""From nothing to a measured release on the userland of another CPU: real wheels, a real sshd, no network there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.lab.conftest import LabBoard

MODELS = Path(__file__).parents[2] / "models"
DEFAULT = "fashion-resnet8"  # what `edgepipe deploy` takes if nothing is said
SAMPLES = 100  # of the evaluation set: an emulated CPU takes minutes for all of it
RUNTIMES = {"onnx": "onnxruntime", "tflite": "tflite", "openvino": "openvino"}
HOW = ("--eval", "shipped", "--profile", "quick")


def model(board: LabBoard) -> str:
    """The default model, judged on fewer samples."""
    folder = board.cli.cwd / "models"
    if not folder.exists():
        for name in (DEFAULT, "_fashion_mnist"):
            shutil.copytree(MODELS / name, folder / name)
        path = folder / "_fashion_mnist/evaluation.npz"
        with np.load(path) as file:
            arrays = {name: file[name][:SAMPLES] for name in file.files}
        np.savez(path, **arrays)
        card = folder / DEFAULT / "model.toml"
        card.write_text(card.read_text().replace("floor = 0.91", "floor = 0.8"))  # so few are not all of them
    return str(folder / DEFAULT)


def checks(board: LabBoard) -> dict[str, dict[str, Any]]:
    return {check["topic"]: check for check in board.json("doctor")["checks"]}


def set_up(board: LabBoard, formats: tuple[str, ...]) -> None:
    """Doctor, provision, and doctor again: each runtime is advised, brought once, and imports."""
    names = [RUNTIMES[name] for name in formats]
    lines = checks(board)
    assert "emulated" in lines and "mean nothing" in lines["emulated"]["text"]
    assert all("not installed" in lines[name]["text"] and " fits " in lines[name]["text"] for name in names)
    flags = ("--runtime", ",".join(names))
    results = {one["runtime"]: one for one in board.json("provision", *flags)["runtimes"]}
    assert {name: one["state"] for name, one in results.items()} == dict.fromkeys(names, "installed")
    for one in board.json("provision", *flags)["runtimes"]:
        assert (one["state"], one["bytes_sent"]) == ("unchanged", 0)
    lines = checks(board)
    assert {lines[name]["verdict"] for name in names} == {"green"}


def deploy(board: LabBoard, formats: tuple[str, ...], *more: str) -> dict[str, dict[str, Any]]:
    """Deploy the default model in int8; its reports by format."""
    how = ("--recipe", "int8", "--to", ",".join(formats), *HOW, *more)
    found = board.json("deploy", model(board), *how, timeout=2400)["reports"]
    assert [report["artifact"]["format"] for report in found] == list(formats)
    for report in found:
        emulated(report, board)
        assert report["release"]["id"] and report["accuracy"]["on_device"] > 0.8
    return {report["artifact"]["format"]: report for report in found}


def emulated(report: dict[str, Any], board: LabBoard) -> None:
    """The record is whole, and says on what it was taken."""
    assert report["board"]["emulated"] == f"qemu-user -cpu {board.running.kind.cpu}"
    assert report["measurement"]["status"] in {"ok", "unstable"}
    assert report["measurement"]["latency_ms"]["p50"]["value"] > 0
    assert report["measurement"]["power"]["mean_w"] is None and report["measurement"]["power"]["reason"]


def ran(report: dict[str, Any]) -> str:
    return str(report["measurement"]["precision_executed"]).split()[0]


@pytest.mark.lab
@pytest.mark.timeout(3000)
def test_a_raspberry_pi_4_from_nothing(bring_up: Callable[..., LabBoard]) -> None:
    """All three runtimes. OpenVINO's 8-bit kernels need dot products, which a Cortex-A72 lacks: that is told."""
    board, formats = bring_up("pi4"), tuple(RUNTIMES)
    set_up(board, formats)
    assert "need dot products" in checks(board)["openvino int8"]["text"]
    found = deploy(board, formats, "--allow-fallback")
    assert {name: ran(report) for name, report in found.items()} == {
        "onnx": "int8", "tflite": "int8", "openvino": "float32",
    }  # fmt: skip
    codes = {name: {each["code"] for each in report["measurement"]["warnings"]} for name, report in found.items()}
    assert [name for name in formats if "fallback" in codes[name]] == ["openvino"]
    for name in ("onnx", "tflite"):
        (again,) = board.json("bench", found[name]["release"]["id"], "--profile", "quick")["reports"]
        emulated(again, board)
    refused = board.run("bench", found["openvino"]["artifact"]["path"], "--profile", "quick", code=4).stderr
    assert "the runtime fell back: 10 layers of the file are integer ones" in refused
    assert "8-bit kernels do not start on this processor" in refused and "--allow-fallback" in refused
    page = board.cli.cwd / "report.html"
    board.cli("report", "--html", str(page))
    assert "emulated (qemu-user -cpu cortex-a72): times are not those of a board" in page.read_text()


@pytest.mark.lab
@pytest.mark.timeout(1800)
def test_a_zero_2_w_with_32_bits_runs_the_one_runtime_there_is_and_is_told_why_not_the_others(
    bring_up: Callable[..., LabBoard],
) -> None:
    board = bring_up("zero2w")
    lines = checks(board)
    for name in ("onnxruntime", "openvino"):
        assert lines[name]["verdict"] == "red" and "no wheel for armv7l" in lines[name]["text"]
    set_up(board, ("tflite",))
    assert ran(deploy(board, ("tflite",))["tflite"]) == "int8"
    (again,) = board.json("bench", "current", "--profile", "quick")["reports"]
    emulated(again, board)
    said = board.run("deploy", model(board), "--recipe", "int8", "--to", "onnx", *HOW, code=4).stderr
    assert "onnxruntime" in said and "Traceback" not in said
