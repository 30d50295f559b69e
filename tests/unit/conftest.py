"""What holds for every unit test."""

from __future__ import annotations

import pytest

from tests.unit import onnx_kit


@pytest.fixture(autouse=True, scope="module")
def _same_weights() -> None:
    """Models made of random weights are the same whatever files of tests ran before this one."""
    onnx_kit.RANDOM.bit_generator.state = onnx_kit.np.random.default_rng(0).bit_generator.state
