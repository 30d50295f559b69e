"""Weights of language models in 8 and 4 bits: taken over exactly, fitted well, multiplied as they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgepipe.llm import graph, packed

Array = np.ndarray[Any, Any]


def _product(folder: Path, weights: packed.Packed, given: Array, accuracy: int) -> Array:
    import onnxruntime

    writer = graph.Writer(folder, accuracy)
    writer.product("x", weights, "y")
    shapes = (list(given.shape), [len(given), len(weights.weights)])
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip("xy", shapes, strict=True))
    writer.close([x], [y])
    session = onnxruntime.InferenceSession(folder / graph.NAME, providers=["CPUExecutionProvider"])
    found: Array = session.run(None, {"x": given})[0]
    return found


def _random(width: int, bits: int, size: int, *, whole: bool) -> packed.Groups:
    """Groups of 24 outputs whose offsets lie between steps, or on them."""
    random, groups = np.random.default_rng(width + size), width // size
    codes = random.integers(0, 1 << bits, (24, groups, size)).astype(np.uint8)
    scale = random.uniform(0.01, 0.02, (24, groups)).astype(np.float32)
    steps = random.integers(1, (1 << bits) - 1, (24, groups)) + (
        0 if whole else random.uniform(-0.5, 0.5, (24, groups))
    )
    return packed.Groups(bits, codes, scale, (-steps * scale).astype(np.float32))


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize(("width", "bits", "size"), [(96, 4, 32), (256, 4, 128), (96, 4, 16), (64, 8, 32)])
def test_a_grid_is_multiplied_as_it_stands(tmp_path: Path, width: int, bits: int, size: int, tokens: int) -> None:
    given = np.random.default_rng(0).normal(0, 1, (tokens, width)).astype(np.float32)
    exact = _random(width, bits, size, whole=True)
    between = _random(width, bits, size, whole=False)
    for groups, close in ((exact, 1e-5), (between, 0.02 if bits == 4 else 1e-3)):
        made = packed.pack(groups, width)
        assert (made.width > width) is (groups is between)
        expected = given @ groups.floats().T
        error = np.abs(_product(tmp_path, made, given, 1) - expected).max() / np.abs(expected).max()
        assert error < close
        rounded = groups.offset - np.rint(groups.offset / groups.scale) * groups.scale
        if groups is between:  # what a whole zero point alone would cost
            moved = packed.Groups(bits, groups.codes, groups.scale, groups.offset - rounded)
            assert error < 0.25 * np.abs(given @ moved.floats().T - expected).max() / np.abs(expected).max()


def test_products_in_8_bits_do_not_saturate(tmp_path: Path) -> None:
    """The largest codes times the largest inputs: where a CPU adds them in 16 bits, this overflows."""
    for bits in (8, 4):
        codes = np.full((16, 3, 32), (1 << bits) - 1, np.uint8)
        scale = np.full((16, 3), 0.01, np.float32)
        groups = packed.Groups(bits, codes, scale, -(1 << (bits - 1)) * scale)
        for tokens in (1, 16):
            given = np.ones((tokens, 96), np.float32)
            found = _product(tmp_path, packed.pack(groups, 96), given, 4)
            assert np.allclose(found, given @ groups.floats().T, rtol=1e-3)


@pytest.mark.parametrize("size", [16, 32, 128])
def test_a_fit_is_better_than_rounding_to_the_span(size: int) -> None:
    weights = np.random.default_rng(1).standard_t(4, (32, 288)).astype(np.float32)
    filled = np.pad(weights, ((0, 0), (0, -288 % size))).reshape(32, -1, size)
    low, high = filled.min(-1, keepdims=True), filled.max(-1, keepdims=True)
    step = (high - low) / 15
    rounded = (np.rint((filled - low) / step) * step + low).reshape(32, -1)[:, :288]
    fitted = packed.fitted(weights, 4, size).floats()[:, :288]
    assert ((fitted - weights) ** 2).mean() < 0.95 * ((rounded - weights) ** 2).mean()
    eight = packed.fitted(weights, 8, size).floats()[:, :288]
    assert ((eight - weights) ** 2).mean() < 0.01 * ((rounded - weights) ** 2).mean()


def test_groups_that_are_all_alike_survive() -> None:
    weights = np.concatenate([np.zeros((2, 32)), np.full((2, 32), -3.0), np.full((2, 32), 0.7)]).astype(np.float32)
    for bits in (4, 8):
        fitted = packed.fitted(weights, bits, 32)
        assert np.allclose(fitted.floats(), weights, atol=1e-6 if bits == 4 else 0.03)
        assert np.isfinite(packed.pack(fitted, 32).scales).all()


def test_smaller_groups_stand_for_the_same() -> None:
    groups = _random(64, 4, 32, whole=False)
    halved = groups.halved(16)
    assert halved.size == 16
    assert (halved.floats() == groups.floats()).all()
