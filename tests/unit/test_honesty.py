"""The plain verdict: what is said of a changed network's time and size."""

from types import SimpleNamespace

import pytest

from edgepipe import honesty, stats
from edgepipe.record import Bound, Step


def made(recipe, **step):
    return SimpleNamespace(steps=[Step("export"), Step("last", **step)], artifact=SimpleNamespace(recipe=recipe))


@pytest.mark.parametrize(
    ("ratio", "begins"),
    [
        (Bound(0.5, 0.48, 0.52), "2.00x faster on this runtime"),
        (Bound(1.0, 0.97, 1.03), "no speed-up on this runtime: 1.00 of the time"),
        (Bound(0.97, 0.93, 1.01), "no speed-up on this runtime"),
        (Bound(0.985, 0.982, 0.99), "no speed-up on this runtime"),
        (Bound(1.2, 1.1, 1.3), "no speed-up on this runtime: slower"),
        (Bound(None, reason="no board"), "speed not measured: no board"),
    ],
)
def test_the_verdict_on_speed(ratio, begins):
    found = honesty.payoff(made("sparse:0.8"), made("none"), "onnxruntime", ratio)
    assert found.verdict.startswith(begins)
    assert found.latency_ratio == ratio


def test_the_verdict_on_size():
    before = made("int8", bytes=100, bytes_gzip=90, bytes_zstd=80, macs=1000)
    after = made("sparse:0.8+int8", bytes=100, bytes_gzip=30, macs=1000, sparsity=0.8, weights=50, zeros=40)
    found = honesty.payoff(after, before, "onnxruntime", Bound(1.0, 0.99, 1.01))
    assert found.verdict.endswith("; file 1.00x; gzip 0.33x; MACs 1.00x")  # nobody took the size by zstd
    assert (found.against, found.sparsity, found.zeros, found.weights) == ("int8", 0.8, 40, 50)


def test_the_ratio_and_its_interval():
    found = stats.ratio([0.5, 0.5, 0.5])
    assert found.value == pytest.approx(0.5) == found.low == found.high
    wide = stats.ratio([0.4, 0.5, 0.625])
    assert wide.value == pytest.approx(0.5)
    assert wide.low < 0.4
    assert wide.high > 0.625
    assert wide.low * wide.high == pytest.approx(0.25)
