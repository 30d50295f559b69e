"""SmoothQuant: the same answers, smaller outliers in what a linear layer reads."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgepipe.compress import smooth
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.training import Examples
from tests.unit import networks_kit as kit


def run(net, alpha=0.5, **more):
    return smooth.compress(net, {"alpha": alpha}, kit.context(copy.deepcopy(net), **more))


class Normed(nn.Module):
    """RMSNorm, or one written by hand, before a linear layer."""

    shape = (1, 8, 8)

    def __init__(self, own=False):
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.norm = nn.RMSNorm(16)
        self.head = nn.Linear(16, 3)
        self.own = own

    def forward(self, x):
        x = self.embed(x.squeeze(1))
        return self.head(self.by_hand(x) if self.own else self.norm(x)).mean(1)

    def by_hand(self, x):
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * self.norm.weight


def outlying(net, factor=40.0):
    """Make one channel of each normalisation stand out."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.LayerNorm | nn.RMSNorm):
                module.weight[3] *= factor
    return net


@pytest.mark.parametrize(
    ("net", "norms"),
    [
        (kit.made(kit.Encoder), 5),
        (kit.made(Normed), 1),
        (kit.made(Normed, own=True), 1),
    ],
    ids=["layernorm", "rmsnorm", "by hand"],
)
def test_the_answers_stay_the_same_and_outliers_shrink(net, norms):
    net = outlying(copy.deepcopy(net))
    before = kit.outputs(net)
    changed = run(net)
    assert torch.allclose(kit.outputs(net), before, rtol=1e-4, atol=1e-4)
    assert changed.note.startswith(f"{norms} normalisations smoothed")
    first, last = (float(word) for word in changed.note.split("channel ")[1].split(" -> "))
    assert last < 0.5 * first


def test_the_scale_is_that_of_the_paper():
    net = outlying(kit.made(Normed))
    weight, scale = net.head.weight.detach().clone(), net.norm.weight.detach().clone()
    with torch.no_grad():
        activations = net.norm(net.embed(torch.from_numpy(kit.prepared(kit.examples(64).inputs)).squeeze(1)))
    run(net, alpha=0.7)
    wanted = activations.abs().amax((0, 1)) ** 0.7 / weight.abs().amax(0) ** 0.3
    assert torch.allclose(scale / net.norm.weight.detach(), wanted, rtol=1e-4)
    assert torch.allclose(net.head.weight.detach() / weight, wanted.expand(3, -1), rtol=1e-3)


def test_quantised_tensors_lose_less():
    """What it is for: int8 rounding of what a linear layer reads, with one scale for the tensor."""
    net = outlying(kit.made(Normed), 200.0)

    def error(net):
        x = net.embed(torch.from_numpy(kit.prepared(kit.examples(64).inputs)).squeeze(1))
        x = net.norm(x)
        step = x.abs().max() / 127
        weight_step = net.head.weight.abs().amax(1, keepdim=True) / 127
        rounded = (net.head.weight / weight_step).round() * weight_step
        with torch.no_grad():
            return float(((x / step).round() * step @ rounded.T - x @ net.head.weight.T).pow(2).mean())

    before = error(net)
    run(net)
    assert error(net) < 0.2 * before


def test_a_norm_that_is_also_added_is_left_alone():
    net = kit.made(kit.Encoder, first=False)
    changed = run(net)
    assert changed.note.startswith("1 normalisations smoothed in front of 1 linear")
    assert "left alone: layers.0.norm1 is added to layers.0.linear2; " in changed.note


@pytest.mark.parametrize(
    ("net", "why"),
    [
        (kit.made(kit.Cnn), "no LayerNorm or RMSNorm"),
        (nn.Sequential(nn.Flatten(), nn.LayerNorm(64, elementwise_affine=False), nn.Linear(64, 3)), "no LayerNorm"),
        (nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.ReLU6(), nn.Linear(64, 3)), "ReLU6"),
    ],
    ids=["cnn", "no scale", "clipped"],
)
def test_without_such_a_pair_it_refuses(net, why):
    net.shape = (1, 8, 8)
    with pytest.raises(UsageError, match=why):
        run(net)


def test_without_data_it_refuses():
    with pytest.raises(UsageError, match="calibration"):
        run(kit.made(kit.Encoder), calibration=False)


def test_data_that_overflow_are_named():
    net = kit.made(Normed)
    context = kit.context(copy.deepcopy(net), calibration=False)
    bad = Examples(np.full((8, 1, 8, 8), np.inf, np.float32), None, lambda raw: raw, "bad")
    object.__setattr__(context, "calibration", bad)
    with pytest.raises(IntegrityError, match="not finite"):
        smooth.compress(net, {"alpha": 0.5}, context)
