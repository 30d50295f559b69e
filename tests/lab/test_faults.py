"""What goes wrong on a board, on one of this machine's own kind in namespaces of its own: every end is a typed one."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.conftest import LabBoard
from tests.wheel_kit import wheel

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]
HOW = ("--eval", "shipped", "--recipe", "int8", "--to", "onnx")


def active(board: LabBoard) -> str:
    return str(board.json("status")["current"])


def measuring(board: LabBoard) -> bool:
    """Whether a child with a runtime is at work there."""
    for pid in board.running.group.members()[0].read_text().split():
        with contextlib.suppress(OSError):
            if b"child" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return True
    return False


@pytest.fixture(scope="module")
def ready(bring_up: Callable[..., LabBoard]) -> LabBoard:
    """A board with a runtime and an active release."""
    board = bring_up("native")
    board.run("provision", "--runtime", "onnxruntime")
    board.run("deploy", "fashion-resnet8", *HOW)
    return board


def test_a_wheel_for_another_python_is_named_and_nothing_is_sent(bring_up: Callable[..., LabBoard]) -> None:
    board = bring_up("native")
    wheels = board.cli.cwd / "wheels"
    machine = os.uname().machine
    wheel(wheels, "onnxruntime", "1.31.1", f"cp38-cp38-manylinux_2_28_{machine}", {"onnxruntime/__init__.py": b""})
    said = board.run("provision", "--runtime", "onnxruntime", "--wheelhouse", str(wheels), code=4).stderr
    assert "cp38-cp38" in said and "is not for this board, which has Python 3.11" in said
    assert all(
        not runtime["version"] for runtime in board.json("doctor")["board"]["runtimes"] if runtime["name"] != "null"
    )


def test_a_disk_too_small_for_the_wheels_is_said_before_any_byte_is_sent(bring_up: Callable[..., LabBoard]) -> None:
    board = bring_up("native", disk_mb=24)
    said = board.run("provision", "--runtime", "onnxruntime", code=4).stderr
    assert "no room for onnxruntime" in said and "MB are free" in said
    assert board.json("doctor")["checks"]


def test_a_board_that_reboots_in_the_middle_of_a_bench_keeps_its_release(ready: LabBoard) -> None:
    before = active(ready)
    process = ready.cli.start("bench", "current", "--target", ready.name, "--json")
    while not measuring(ready):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    ready.running.reboot()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 3, out + err
    assert "error:" in err and "Traceback" not in err
    (report,) = json.loads(out)["reports"]
    assert report["measurement"]["status"] == "unreachable" and report["measurement"]["reason"]
    assert active(ready) == before
    assert ready.json("bench", "current")["reports"][0]["measurement"]["status"] in {"ok", "unstable"}


def test_a_runtime_that_the_kernel_kills_for_its_memory_is_a_result(bring_up: Callable[..., LabBoard]) -> None:
    board = bring_up("native")
    wheels = board.cli.cwd / "greedy"
    greedy = b'__version__ = "1.31.1"\nheld = b"x" * (1 << 30)\n'
    tag = f"cp311-cp311-manylinux_2_28_{os.uname().machine}"
    wheel(wheels, "onnxruntime", "1.31.1", tag, {"onnxruntime/__init__.py": greedy})
    board.run("provision", "--runtime", "onnxruntime", "--wheelhouse", str(wheels))
    board.running.group.memory(256 << 20)
    try:
        check = next(one for one in board.json("doctor")["checks"] if one["topic"] == "onnxruntime")
        done = board.cli("deploy", "fashion-resnet8", *HOW, "--target", board.name, "--json", code=4)
    finally:
        board.running.group.memory(None)
    assert board.running.group.killed() > 0
    assert check["verdict"] == "red" and "killed by SIGKILL" in check["text"]
    assert "onnxruntime 1.31.1 was killed by SIGKILL" in done.stderr and "out of memory" in done.stderr
    assert board.json("status")["current"] is None
