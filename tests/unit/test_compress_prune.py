"""Pruning of channels and of single weights on a CNN, a depthwise CNN and transformer encoders."""

import numpy as np
import pytest
import torch
from torch import nn

from edgepipe.compress import prune_structured, prune_unstructured
from edgepipe.compress._groups import find
from edgepipe.compress._layers import macs, piece, weights
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.training import Context, fine_tune

from . import compress_kit as kit

KINDS = list(kit.NETWORKS)


def cost(network):
    return macs(network, (torch.zeros(1, 3, 8, 8),))


def zeros(network):
    found = weights(network).values()
    return sum(int((w == 0).sum()) for w in found) / sum(w.numel() for w in found)


class Attention(nn.Module):
    """Four heads; queries, keys and values from one layer each, or all from one."""

    def __init__(self, fused):
        super().__init__()
        self.heads, self.fused = 4, fused
        if fused:
            self.qkv = nn.Linear(32, 96)
        else:
            self.q, self.k, self.v = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.out = nn.Linear(32, 32)

    def forward(self, x):
        n, t, _ = x.shape
        if self.fused:
            q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (layer(x).reshape(n, t, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(n, t, -1))


class Block(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.attention = Attention(fused)
        self.norms = nn.ModuleList([nn.LayerNorm(32), nn.LayerNorm(32)])
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))


class Odd(nn.Module):
    """What is easily cut wrongly: a concatenation, a grouped convolution behind a group normalisation, a pixel shuffle,
    a gate, flattened maps, and a layer of one channel.
    """

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 16, 3), nn.Conv2d(3, 8, 3)
        self.norm, self.grouped = nn.GroupNorm(4, 24), nn.Conv2d(24, 32, 3, groups=2, padding=1)
        self.wide, self.shuffle = nn.Conv2d(32, 16, 1), nn.PixelShuffle(2)
        self.gate = nn.Conv2d(4, 4, 1)
        self.one = nn.Conv2d(4, 1, 1)
        self.head = nn.Linear(144, 4)

    def forward(self, x):
        x = torch.relu(self.norm(torch.cat([self.left(x), self.right(x)], 1)))
        x = self.shuffle(self.wide(self.grouped(x)))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.head(self.one(x).flatten(1))


def encoder(fused):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(2), nn.Linear(64, 32), Block(fused), Block(fused), nn.Linear(32, 4)).eval()


def pruned(network, **params):
    """A network that the kit does not know, pruned without training, and proven to run."""
    changed = prune_structured.compress(
        network, {**prune_structured.DEFAULTS, "epochs": 0, **params}, kit.context("cnn", training=False)
    )
    assert changed.network(torch.randn(2, 3, 8, 8)).shape == network(torch.randn(2, 3, 8, 8)).shape
    return changed


@pytest.mark.parametrize(("kind", "amount"), [("cnn", 0.5), ("depthwise", 0.5), ("encoder", 0.2)])
def test_channels_are_really_gone(kind, amount):
    changed = kit.apply(prune_structured, kind, amount=amount, epochs=1)
    assert cost(changed.network) <= (1 - amount) * cost(kit.network(kind))
    assert changed.network.head.out_features == 4
    parameters = sum(p.numel() for p in changed.network.parameters())
    assert parameters < sum(p.numel() for p in kit.network(kind).parameters())
    assert "channels in" in changed.note
    assert "1 epochs" in changed.note
    if kind == "encoder":  # the residual stream and the heads keep their width
        assert changed.network.embed.out_features == 32
        assert changed.network.body.layers[0].linear1.out_features < 64


@pytest.mark.parametrize("importance", ["l1", "l2", "taylor", "bn"])
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_importances_and_scopes(importance, scope):
    changed = kit.apply(prune_structured, "depthwise", amount=0.4, importance=importance, scope=scope, epochs=0)
    assert cost(changed.network) <= 0.6 * cost(kit.network("depthwise"))


def test_the_least_important_channels_go():
    """Of a layer whose channels grow in size the first ones go, whatever the group, and silent ones before all."""
    network = kit.network("cnn")
    with torch.no_grad():
        for layer in (network.one[0], network.two[0]):
            layer.weight.mul_(torch.linspace(0.1, 2, 32).reshape(-1, 1, 1, 1))
        network.two[0].weight[:, 20] = network.one[0].weight[20] = network.two[0].weight[20] = 0
        network.one[1].weight[20] = network.two[1].weight[20] = network.head.weight[:, 20] = 0
    kept = network.head.weight[:, [*range(9, 20), *range(21, 32)]]
    changed = pruned(network, by="channels", amount=0.3, round=1)
    assert torch.equal(changed.network.head.weight, kept)


def test_every_channel_silent():
    network = kit.network("cnn")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert pruned(network, by="channels").network.head.in_features == 16


@pytest.mark.parametrize("fused", [False, True])
def test_whole_heads_go(fused):
    network = encoder(fused)
    groups = find(network, kit.context("cnn"))
    heads = [group for group in groups if group.heads]
    assert {group.heads[0] for group in heads} == {"2.attention", "3.attention"}
    assert all(len(group.units) == 4 for group in heads)
    assert {group.root for group in groups if not group.heads} == {"2.up", "3.up"}
    changed = pruned(network, amount=0.6)
    assert changed.network[2].attention.heads + changed.network[3].attention.heads < 8
    assert cost(changed.network) <= 0.4 * cost(network)


def test_what_is_easily_cut_wrongly():
    network = Odd().eval()
    groups = {group.root: group for group in find(network, kit.context("cnn"))}
    assert "wide" not in groups  # its channels become pixels
    assert "one" not in groups
    assert "gate" not in groups
    assert len(groups["grouped"].units) == 16  # one of each half
    assert pruned(network, amount=0.3).network.grouped.out_channels in (16, 20, 24, 28)


def test_few_channels_are_cut_in_small_pieces():
    assert [piece(count, 8) for count in (1, 7, 8, 16, 31, 32, 512)] == [1, 1, 2, 4, 4, 8, 8]
    assert pruned(kit.network("cnn"), by="channels", amount=0.2).network.two[0].out_channels == 24
    assert pruned(kit.network("cnn"), by="channels", amount=0.2, round=1).network.two[0].out_channels == 25


def test_by_latency_it_times_what_it_cuts(monkeypatch):
    """The clock is the number of channels here, so that the outcome does not hang on the machine."""
    timed = []

    def session(network, example):
        network(*example)
        return network.two[0].out_channels

    def in_turns(whole, cut):
        timed.append((whole, cut))
        return float(whole), float(cut)

    monkeypatch.setattr(prune_structured, "_session", session)
    monkeypatch.setattr(prune_structured, "_in_turns", in_turns)
    changed = kit.apply(prune_structured, "cnn", amount=0.25, by="latency", epochs=0)
    assert changed.network.two[0].out_channels == 24
    assert "75.0% of the time (ONNX Runtime" in changed.note
    assert all(whole == 32 for whole, _ in timed)


def test_a_session_really_runs():
    network, example = kit.network("cnn"), (torch.randn(1, 3, 8, 8),)
    run = prune_structured._session(network, example)
    with torch.no_grad():
        assert np.allclose(run()[0], network(*example).numpy(), atol=1e-4)
    assert min(prune_structured._in_turns(run, run)) > 0


def test_prune_refusals():
    with pytest.raises(UsageError, match=r"only \d+% of the macs can be removed, not 90%"):
        kit.apply(prune_structured, "encoder", amount=0.9, epochs=0)
    with pytest.raises(UsageError, match="none has a batch normalisation"):
        kit.apply(prune_structured, "encoder", importance="bn", epochs=0)
    bare = Context(kit.network("cnn"), kit.context("cnn").inputs)
    with pytest.raises(UsageError, match="Taylor importance needs data"):
        kit.apply(prune_structured, "cnn", importance="taylor", epochs=0, context=bare)
    single = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with pytest.raises(UsageError, match="no channels of the 1 layers can go"):
        pruned(single)
    with pytest.raises(UsageError, match="no convolution and no linear layer"):
        pruned(nn.ReLU())


@pytest.mark.parametrize("step", [prune_structured, prune_unstructured])
def test_weights_that_are_not_numbers(step):
    network = kit.network("cnn")
    with torch.no_grad():
        network.two[0].weight[3, 3] = float("nan")
    with pytest.raises(IntegrityError, match=r"two\.0 is NaN or infinite"):
        step.compress(network, {**step.DEFAULTS, "epochs": 0}, kit.context("cnn"))


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_stores_the_zeros_it_was_asked_for(kind):
    changed = kit.apply(prune_unstructured, kind, amount=0.6, epochs=2)
    assert zeros(changed.network) == pytest.approx(0.6, abs=0.001)
    assert changed.sparsity == 0.6
    assert "head.weight" in changed.keep.zeros
    assert "2 epochs" in changed.note
    if kind == "encoder":
        assert "body.layers.0.self_attn.in_proj_weight" in changed.keep.zeros
        assert "left as they are: position" in changed.note


@pytest.mark.parametrize("criterion", ["magnitude", "gradient", "movement"])
@pytest.mark.parametrize("pattern", ["global", "layer"])
def test_criteria_and_patterns(criterion, pattern):
    changed = kit.apply(prune_unstructured, "cnn", amount=0.5, criterion=criterion, pattern=pattern, epochs=0)
    assert zeros(changed.network) == pytest.approx(0.5, abs=0.01)
    if pattern == "layer":
        assert float((changed.network.head.weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert "not fine-tuned" in changed.note


def test_two_of_each_four():
    changed = kit.apply(prune_unstructured, "cnn", pattern="2:4", epochs=0)
    rows = changed.network.two[0].weight.reshape(32, -1, 4)
    assert ((rows != 0).sum(-1) == 2).all()
    before = kit.network("cnn").two[0].weight.reshape(32, -1, 4).abs().sort(-1).values
    assert torch.allclose(rows.abs().sort(-1).values[..., 2:], before[..., 2:])
    assert (changed.network.one[0].weight != 0).all()  # its rows of 27 don't divide into fours
    assert changed.sparsity == 0.5


def test_zeros_survive_more_zeros_and_training():
    first = kit.apply(prune_unstructured, "cnn", amount=0.5, epochs=0)
    gone = {name: weight == 0 for name, weight in weights(first.network).items()}
    here = kit.context("cnn", keep=first.keep)
    params = {**prune_unstructured.DEFAULTS, "amount": 0.7, "criterion": "gradient", "epochs": 1}
    second = prune_unstructured.compress(first.network, params, here)
    fine_tune(second.network, kit.context("cnn"), 1, second.keep, 1e-2)
    assert zeros(second.network) == pytest.approx(0.7, abs=0.001)
    assert all((weights(second.network)[name][mask] == 0).all() for name, mask in gone.items())


def test_biases_and_normalisations_stay():
    before, after = kit.network("cnn"), kit.apply(prune_unstructured, "cnn", amount=0.9, epochs=0).network
    for name, value in before.named_parameters():
        if value.dim() == 1:
            assert torch.equal(value, after.get_parameter(name))


def test_sparse_refusals():
    bare = kit.context("cnn", training=False)
    with pytest.raises(UsageError, match="movement needs gradients"):
        kit.apply(prune_unstructured, "cnn", criterion="movement", epochs=0, context=bare)
    with pytest.raises(UsageError, match=r"would empty head\.weight"):
        network = kit.network("cnn")
        with torch.no_grad():
            network.head.weight.mul_(1e-9)
        params = {**prune_unstructured.DEFAULTS, "epochs": 0}
        prune_unstructured.compress(network, params, kit.context("cnn"))
    with pytest.raises(UsageError, match="no convolution and no linear layer"):
        prune_unstructured.compress(nn.ReLU(), {**prune_unstructured.DEFAULTS, "epochs": 0}, bare)
