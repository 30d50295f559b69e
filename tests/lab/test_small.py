"""The whole way on an emulated Raspberry Pi 4, in the small form that every run of the tests can pay for.

Unlike the rest of the lab's tests it is not asked for by its marker: it is skipped with the reason where the lab
can't run. One runtime, the one whose wheel is emulated fastest.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lab import host, rootfs
from lab.boards import kind_of
from tests.lab import test_emulated as whole
from tests.lab.conftest import LabBoard


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_doctor_provision_deploy_and_bench_on_an_emulated_arm64_board(bring_up: Callable[..., LabBoard]) -> None:
    if not host.missing("user"):
        try:
            rootfs.root(kind_of("pi4"))
        except host.LabError as error:
            pytest.skip(f"no root file system for it: {error}")
    board = bring_up("pi4")
    whole.set_up(board, ("onnx",))
    assert whole.ran(whole.deploy(board, ("onnx",))["onnx"]) == "int8"
    (again,) = board.json("bench", "current", "--profile", "quick")["reports"]
    whole.emulated(again, board)
