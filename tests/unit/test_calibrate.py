"""Range rules against answers known from formulas; bad tensors are named."""

import math

import numpy as np
import pytest

from edgepipe.calibrate import METHODS, Collector, Mean, Rule
from edgepipe.errors import IntegrityError

RANDOM = np.random.default_rng(0)
NORMAL = RANDOM.normal(size=(16, 64, 32, 32)).astype(np.float32)


def collect(batches, method, **rule):
    collector = Collector("features", Rule(method, **rule))
    for batch in batches:
        collector.add(batch)
    return collector.range()


def with_outlier():
    batches = NORMAL.copy()
    batches[3, 5, 7, 9] = 100.0
    return batches


def test_minmax_is_what_was_seen():
    batches = with_outlier()
    assert collect(batches, "minmax") == (float(batches.min()), 100.0)
    assert collect(batches, "minmax", symmetric=True) == (-100.0, 100.0)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_an_outlier_is_clipped(method, symmetric):
    low, high = collect(with_outlier(), method, symmetric=symmetric)
    assert 2.5 < high < 60
    assert low == -high if symmetric else -6 < low < -2.5


def test_percentile_is_that_of_the_values():
    low, high = collect(NORMAL, "percentile", percentile=99.0)
    assert (low, high) == (pytest.approx(-2.576, abs=0.02), pytest.approx(2.576, abs=0.02))  # 0.5 % on each side
    low, high = collect(NORMAL, "percentile", percentile=99.0, symmetric=True)
    assert -low == high == pytest.approx(2.576, abs=0.02)
    assert collect([np.abs(NORMAL)], "percentile", percentile=99.0) == (0.0, pytest.approx(2.807, abs=0.03))
    assert collect(NORMAL, "percentile", percentile=100.0) == collect(NORMAL, "minmax")


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_mse_finds_the_clipping_value_of_least_error(bits):
    found = brute_force(np.random.default_rng(1).normal(size=200_000), 2**bits)
    low, high = collect(NORMAL, "mse", bits=bits)
    assert high == pytest.approx(found, rel=0.06) and low == pytest.approx(-found, rel=0.06)


def brute_force(values, levels):
    """The symmetric clipping value of least error, by trying."""

    def error(clip):
        step = 2 * clip / (levels - 1)
        inside = np.abs(values) < clip
        return np.where(inside, step**2 / 12, (np.abs(values) - clip) ** 2).mean()

    return min(np.linspace(0.5, 6, 200), key=error)


def test_mse_weighs_one_outlier_against_the_rounding_of_all():
    """Minimise (100 - h)^2 + n (h - low)^2 / (12 * 255^2) over h."""
    values = with_outlier()
    low, high = collect(values, "mse")
    weight = min(values.size, 1 << 30) / (12 * 255**2)
    assert high == pytest.approx((100 + weight * low) / (1 + weight), abs=2 * 100 / 128)


def test_entropy_keeps_what_fits_the_levels():
    """Uniform values lose nothing by quantisation and something by clipping; with 16 bits nothing is ever gained."""
    uniform = RANDOM.uniform(0, 1, (8, 50_000))
    assert collect(uniform, "entropy") == (0.0, pytest.approx(1.0, abs=0.02))
    assert collect(with_outlier(), "entropy", bits=16)[1] == 100.0


def test_zeros_change_no_range_but_a_percentile():
    """Half of a ReLU's values are zero, which every range holds exactly."""
    positive = np.abs(NORMAL)
    padded = np.concatenate([positive, np.zeros_like(positive)])
    for method in ("minmax", "entropy", "mse"):
        assert collect(positive, method) == collect(padded, method)
    assert collect(padded, "percentile", percentile=98.0)[1] == pytest.approx(2.326, abs=0.03)


@pytest.mark.parametrize("method", METHODS)
def test_order_does_not_matter(method):
    batches = [NORMAL[0] * 0.001, NORMAL[1] * 50, NORMAL[2], NORMAL[3] * 0]
    assert collect(batches, method) == collect(batches[::-1], method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_constants_and_zeros_give_a_usable_scale(method, symmetric):
    low, high = collect([np.zeros((2, 3)), np.zeros((2, 3))], method, symmetric=symmetric)
    assert (low, high) == (-1.0 if symmetric else 0.0, 1.0)
    assert collect([np.full((2, 3), 7.5)], method) == (0.0, 7.5)
    assert collect([np.full((2, 3), -7.5)], method) == (-7.5, 0.0)
    low, high = collect([np.full((2, 3), 1e-37, np.float32)], method)
    assert low == 0 and high == pytest.approx(1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_tensor_that_is_not_finite_is_named(method, bad):
    values = NORMAL[:1].copy()
    values[0, 0, 0, 0] = bad
    with pytest.raises(IntegrityError, match="tensor features") as failure:
        collect([NORMAL[1:2], values], method)
    assert failure.value.fix


def test_a_tensor_nobody_saw_is_named():
    with pytest.raises(IntegrityError, match="no values of tensor features"):
        collect([np.zeros((0, 3))], "mse")


def test_mean_over_batches_of_any_size():
    mean = Mean((0, 2))
    assert mean.value is None
    mean.add(NORMAL[:5])
    mean.add(NORMAL[5:])
    assert mean.value.shape == (1, 64, 1, 32)
    assert np.allclose(mean.value, NORMAL.mean(axis=(0, 2), keepdims=True, dtype=np.float64))


def test_entropy_is_not_led_astray_by_a_value_that_keeps_coming():
    """A constant background must not make the divergence cut off what is above it."""
    values = np.abs(NORMAL)
    with_background = np.concatenate([values, np.full_like(values, 0.37)])
    assert collect(with_background, "entropy")[1] == pytest.approx(collect(values, "entropy")[1], rel=0.3)
