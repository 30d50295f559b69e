"""Low rank and weight sharing on a CNN, a depthwise CNN and a transformer encoder."""

import copy
import gzip

import pytest
import torch
from torch import nn

from edgepipe.compress import cluster, low_rank, prune_unstructured
from edgepipe.compress._layers import macs, weights
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.schema import TensorSpec
from edgepipe.training import Context, Keep

from . import compress_kit as kit

KINDS = list(kit.NETWORKS)


def cost(network):
    return macs(network, (torch.zeros(1, 3, 8, 8),))


def zeros(network):
    found = weights(network).values()
    return sum(int((w == 0).sum()) for w in found) / sum(w.numel() for w in found)


@pytest.mark.parametrize("kind", KINDS)
def test_low_rank_makes_layers_thinner(kind):
    params = {"ratio": 0.4, "epochs": 1}
    before, changed = cost(kit.network(kind)), kit.apply(low_rank, kind, **params)
    assert cost(changed.network) < before
    assert any(isinstance(m, nn.Sequential) and len(m) in (2, 3) for m in changed.network.modules())
    assert "layers factorised" in changed.note


def test_energy_keeps_what_matters():
    """A layer of rank 3 is rebuilt by rank 3, to the last digit that float32 has."""
    network = kit.network("cnn")
    conv = network.two[0]
    torch.manual_seed(3)
    with torch.no_grad():
        left, right = torch.linalg.qr(torch.randn(32, 3))[0], torch.linalg.qr(torch.randn(32, 3))[0]
        conv.weight.copy_(torch.einsum("or,is,rshw->oihw", left, right, torch.randn(3, 3, 3, 3)))
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        wanted = network(x)
        changed = low_rank.compress(network, {"ratio": 0.5, "energy": 0.9999, "epochs": 0}, kit.context("cnn"))
        assert torch.allclose(changed.network(x), wanted, atol=1e-4)
    assert [layer.out_channels for layer in changed.network.two[0]] == [3, 3, 32]


class Strange(nn.Module):
    """Strides, dilation, padding of all modes, one dimension, groups."""

    def __init__(self):
        super().__init__()
        self.circular = nn.Conv2d(3, 16, 3, padding=1, padding_mode="circular")
        self.reflect = nn.Conv2d(16, 32, 3, stride=2, padding=1, padding_mode="reflect")
        self.same = nn.Conv2d(32, 32, (3, 5), padding="same", dilation=2)
        self.point = nn.Conv2d(32, 32, 1, stride=2)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.line = nn.Conv1d(32, 24, 3, padding=1)

    def forward(self, x):
        x = self.grouped(self.point(self.same(self.reflect(self.circular(x)))))
        return self.line(x.flatten(2))


def test_a_chain_stands_in_for_its_layer_whatever_the_padding():
    """Rank 3 made into every layer, so that what is kept is all there was."""
    torch.manual_seed(0)
    network = Strange().eval()
    with torch.no_grad():
        for layer in (network.reflect, network.same, network.point, network.line):
            out, inp = layer.weight.shape[:2]
            core = torch.randn(3, 3, *layer.weight.shape[2:])
            left, right = torch.linalg.qr(torch.randn(out, 3))[0], torch.linalg.qr(torch.randn(inp, 3))[0]
            layer.weight.copy_(torch.einsum("or,is,rs...->oi...", left, right, core))
        x = torch.randn(2, 3, 12, 12)
        wanted, before = network(x), macs(network, (x[:1],))
        here = Context(network, [TensorSpec("x", [-1, 3, 12, 12])])
        changed = low_rank.compress(copy.deepcopy(network), {"ratio": 0.5, "energy": 0.9999, "epochs": 0}, here)
        assert torch.allclose(changed.network(x), wanted, atol=1e-4)
    assert macs(changed.network, (x[:1],)) < before
    kinds = {name: type(getattr(changed.network, name)).__name__ for name, _ in network.named_children()}
    assert kinds == {
        **dict.fromkeys(("reflect", "same", "point", "line"), "Sequential"),
        "circular": "Conv2d",
        "grouped": "Conv2d",
    }
    assert "grouped, transposed or used by their owner: grouped" in changed.note


def test_fewer_weights_that_cost_more_time_are_no_gain():
    """Before a stride there are many positions: a factor there may cost more than the kernel did."""
    size = low_rank._Size(outputs=16, inputs=64, kernel=4, before=64 * 16, after=64)
    assert not size.pays(8, 16)
    assert low_rank._Size(outputs=16, inputs=64, kernel=4, before=64, after=64).pays(8, 16)


def test_nothing_gets_smaller():
    with pytest.raises(UsageError, match="none of 3 layers gets smaller"):
        kit.apply(low_rank, "cnn", energy=0.9999, epochs=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layers_weights_share_few_values(kind):
    here = kit.context(kind)
    changed = kit.apply(cluster, kind, clusters=8, epochs=1, context=here)
    shared = [changed.network.get_parameter(name) for name in changed.keep.shared]
    assert len(shared) >= 3
    assert all(len(weight.unique()) <= 8 for weight in shared)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in changed.network.modules())
    assert kit.agreement(changed, here) > 0.5


def test_folding_changes_nothing():
    network, x = kit.network("depthwise"), torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        wanted = network(x)
        assert cluster._fold(network) == "3 normalisations folded in"
        assert torch.allclose(network(x), wanted, atol=1e-5)


def test_k_means_on_a_line():
    values = torch.tensor([0.0, 0.0, 1.0, 1.1, 0.9, -2.0, -2.1, 5.0])
    assert cluster.share(values, 4, keep_zeros=True).tolist() == pytest.approx([0, 0, 1, 1, 1, -2.05, -2.05, 5.0])
    assert len(cluster.share(torch.randn(1000), 16).unique()) == 16


def test_clusters_keep_the_zeros_of_a_step_before():
    sparse = kit.apply(prune_unstructured, "cnn", amount=0.7, epochs=0)
    here = kit.context("cnn", keep=sparse.keep)
    changed = cluster.compress(sparse.network, {"clusters": 4, "epochs": 1}, here)
    assert zeros(changed.network) == pytest.approx(0.7, abs=0.01)
    assert all(len(changed.network.get_parameter(name).unique()) <= 4 for name in changed.keep.shared)


def test_a_layer_called_twice_keeps_its_normalisations():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

        def forward(self, x):
            return self.norms[1](self.conv(self.norms[0](self.conv(x))))

    network, x = Twice().eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for norm in network.norms:
            norm.running_mean.normal_()
        wanted = network(x)
        assert "0 normalisations folded in, 2 could not" in cluster._fold(network)
        assert torch.equal(network(x), wanted)


def test_linear_layers_are_folded_too():
    network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()).eval()
    network[1].running_var.uniform_(0.5, 2)
    with torch.no_grad():
        wanted = network(torch.ones(2, 6))
        assert cluster._fold(network) == "1 normalisations folded in"
        assert torch.allclose(network(torch.ones(2, 6)), wanted, atol=1e-6)


def test_shared_weights_pack_small():
    """What is stored shrinks once packed: 16 values are 4 bits a weight, of 32."""
    values = torch.randn(64, 288)
    plain, shared = (len(gzip.compress(v.numpy().tobytes(), 6)) for v in (values, cluster.share(values, 16)))
    assert shared < 0.25 * plain


@pytest.mark.parametrize("step", [low_rank, cluster])
def test_weights_that_are_not_numbers(step):
    network = kit.network("cnn")
    with torch.no_grad():
        network.two[0].weight[3, 3] = float("inf")
    with pytest.raises(IntegrityError, match=r"two\.0 is NaN or infinite"):
        step.compress(network, {**step.DEFAULTS, "epochs": 0}, kit.context("cnn"))


def test_too_few_different_weights():
    with pytest.raises(UsageError, match="no layer has more than 16"):
        network = nn.Sequential(nn.Linear(2, 2))
        cluster.compress(network, {"clusters": 16, "epochs": 0}, kit.context("cnn", keep=Keep()))
