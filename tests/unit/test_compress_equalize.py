"""Cross-layer equalisation: the same answers, weights of more even ranges."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from edgepipe.compress import equalize
from edgepipe.edits import apply_edits, find_edits
from edgepipe.errors import UsageError
from edgepipe.training import Keep
from tests.unit import networks_kit as kit


def run(net, clip="keep"):
    return equalize.compress(net, {"clip": clip}, kit.context(copy.deepcopy(net)))


def spread(weight):
    """The largest over the smallest range of an output channel."""
    ranges = weight.detach().abs().flatten(1).amax(1)
    return float(ranges.max() / ranges.min())


@pytest.mark.parametrize(
    ("kind", "more", "layers"),
    [
        (kit.Cnn, {}, 5),
        (kit.Depthwise, {}, 5),
        (kit.Depthwise, {"clip": True}, 4),
        (kit.Encoder, {"activation": "relu"}, 4),
    ],
    ids=["cnn", "depthwise", "relu6", "encoder"],
)
def test_the_answers_stay_the_same(kind, more, layers):
    net = kit.made(kind, **more)
    before = kit.outputs(net)
    old = copy.deepcopy(net)
    changed = run(net)
    assert torch.allclose(kit.outputs(changed.network), before, rtol=1e-4, atol=1e-4)
    assert changed.note.startswith(f"{layers} layers equalised in ")
    assert find_edits(old, changed.network) == {}
    assert any(not torch.equal(a, b) for a, b in zip(old.parameters(), net.parameters(), strict=True))


def test_channels_of_very_different_size_become_even():
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 6), nn.Flatten())
    net.shape = (1, 8, 8)
    factors = torch.logspace(-2, 2, 8)
    with torch.no_grad():
        net[0].weight.mul_(factors.reshape(-1, 1, 1, 1))
        net[0].bias.mul_(factors)
        net[2].weight.div_(factors.reshape(1, -1, 1, 1))
    before = kit.outputs(net)
    note = run(net).note
    assert spread(net[0].weight) < 2
    assert spread(net[2].weight.transpose(0, 1)) < 2
    assert torch.allclose(kit.outputs(net), before, rtol=1e-4, atol=1e-4)
    first, last = (float(word) for word in note.split("channels ")[1].split(" -> "))
    assert first < 0.05
    assert last > 0.8


def test_dead_channels_and_zeros_stay():
    net = kit.made(kit.Cnn)
    with torch.no_grad():
        net.wide.weight[2] = 0
        net.wide.weight[:, 1] = 0
    before = kit.outputs(net)
    run(net)
    assert (net.wide.weight[2] == 0).all()
    assert (net.wide.weight[:, 1] == 0).all()
    assert all(torch.isfinite(value).all() for value in net.parameters())
    assert torch.allclose(kit.outputs(net), before, rtol=1e-4, atol=1e-4)


def test_shared_values_stay_shared():
    net = kit.made(kit.Cnn)
    context = replace(
        kit.context(copy.deepcopy(net)), keep=Keep(shared=("first.0.weight", "wide.weight", "head.weight"))
    )
    before = copy.deepcopy(net)
    changed = equalize.compress(net, {"clip": "keep"}, context)
    assert "stem.0 is read by first.0, which has shared values" in changed.note
    for name in context.keep.shared:
        assert torch.equal(net.get_parameter(name), before.get_parameter(name))
    assert not torch.equal(net.second[0].weight, before.second[0].weight)


def test_a_relu6_is_left_alone_unless_it_may_go():
    kept = run(kit.made(kit.Depthwise, clip=True))
    assert "2 groups left alone: expand.0 meets a ReLU6, which does not scale" in kept.note
    net = kit.made(kit.Depthwise, clip=True)
    freed = run(copy.deepcopy(net), "relu")
    assert "2 ReLU6 became ReLU" in freed.note
    base = copy.deepcopy(net)
    edits = find_edits(base, freed.network)
    assert set(edits) == {"act1", "act2"}
    apply_edits(base, edits)
    base.load_state_dict(freed.network.state_dict(), strict=True)
    assert torch.equal(kit.outputs(base.eval()), kit.outputs(freed.network))


@pytest.mark.parametrize(
    ("net", "why"),
    [
        (kit.made(kit.Encoder), "gelu"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), "is an answer"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU6(), nn.Conv2d(4, 3, 6), nn.Flatten()), "ReLU6"),
    ],
    ids=["gelu", "one layer", "relu6 alone"],
)
def test_without_channels_to_scale_it_refuses(net, why):
    net.shape = (1, 8, 8)
    with pytest.raises(UsageError, match=why):
        run(net)
