"""Pruning, low rank and weight sharing on a CNN, a depthwise CNN and a transformer encoder."""

import pytest
import torch
from torch import nn

from edgepipe.compress import cluster, low_rank, prune_structured, prune_unstructured
from edgepipe.errors import UsageError
from edgepipe.formats.torch.load import count
from edgepipe.schema import TensorSpec
from edgepipe.training import Keep

from . import compress_kit as kit

KINDS = list(kit.NETWORKS)


def macs(network):
    return count(network, [TensorSpec("x", [-1, 3, 8, 8])], "test")[1]


def zeros(network):
    weights = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_stores_the_zeros_it_was_asked_for(kind):
    changed = kit.apply(prune_unstructured, kind, amount=0.6, epochs=2)
    assert zeros(changed.network) == pytest.approx(0.6, abs=0.01)
    assert changed.sparsity == 0.6
    assert "head.weight" in changed.keep.zeros
    assert "2 epochs" in changed.note


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
    assert (changed.network.one[0].weight != 0).all()  # its rows of 27 don't divide into fours
    assert changed.sparsity == 0.5


def test_sparse_refusals():
    bare = kit.context("cnn", training=False)
    with pytest.raises(UsageError, match="movement needs gradients"):
        kit.apply(prune_unstructured, "cnn", criterion="movement", epochs=0, context=bare)
    with pytest.raises(UsageError, match="would empty the layer head"):
        network = kit.network("cnn")
        with torch.no_grad():
            network.head.weight.mul_(1e-9)
        params = {**prune_unstructured.DEFAULTS, "epochs": 0}
        prune_unstructured.compress(network, params, kit.context("cnn"))
    with pytest.raises(UsageError, match="no convolution and no linear layer"):
        prune_unstructured.compress(nn.ReLU(), {**prune_unstructured.DEFAULTS, "epochs": 0}, bare)


@pytest.mark.parametrize(("kind", "amount"), [("cnn", 0.5), ("depthwise", 0.5), ("encoder", 0.2)])
def test_channels_are_really_gone(kind, amount):
    before = macs(kit.network(kind))
    changed = kit.apply(prune_structured, kind, amount=amount, epochs=1)
    after = macs(changed.network)
    assert after <= (1 - amount) * before * 1.02
    assert changed.network.head.out_features == 4
    parameters = sum(p.numel() for p in changed.network.parameters())
    assert parameters < sum(p.numel() for p in kit.network(kind).parameters())
    if kind == "encoder":  # the residual stream and the heads keep their width
        assert changed.network.embed.out_features == 32
        assert changed.network.body.layers[0].linear1.out_features < 64


@pytest.mark.parametrize("importance", ["l1", "taylor", "bn"])
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_importances_and_scopes(importance, scope):
    changed = kit.apply(prune_structured, "cnn", amount=0.4, importance=importance, scope=scope, epochs=0)
    assert macs(changed.network) <= 0.62 * macs(kit.network("cnn"))


def test_by_channels_and_by_latency():
    changed = kit.apply(prune_structured, "cnn", amount=0.5, by="channels", epochs=0)
    assert changed.network.two[0].out_channels == 16
    timed = kit.apply(prune_structured, "cnn", amount=0.2, by="latency", epochs=0)
    assert "ms on this host" in timed.note
    assert macs(timed.network) < macs(kit.network("cnn"))


def test_prune_refusals():
    with pytest.raises(UsageError, match=r"only .* could be removed"):
        kit.apply(prune_structured, "encoder", amount=0.9, epochs=0)
    with pytest.raises(UsageError, match="no batch normalisation"):
        kit.apply(prune_structured, "encoder", importance="bn", epochs=0)
    with pytest.raises(UsageError, match="Taylor importance needs training data"):
        kit.apply(prune_structured, "cnn", importance="taylor", epochs=0, context=kit.context("cnn", training=False))
    single = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with pytest.raises(UsageError, match="none of 1 layers can lose channels"):
        prune_structured.compress(single, {**prune_structured.DEFAULTS, "epochs": 0}, kit.context("cnn"))


@pytest.mark.parametrize("kind", KINDS)
def test_low_rank_makes_layers_thinner(kind):
    params = {"ratio": 0.4, "epochs": 1}
    before, changed = macs(kit.network(kind)), kit.apply(low_rank, kind, **params)
    assert macs(changed.network) < before
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
        assert cluster._fold(network) == 3
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


def test_too_few_different_weights():
    with pytest.raises(UsageError, match="no layer has more than 16"):
        network = nn.Sequential(nn.Linear(2, 2))
        cluster.compress(network, {"clusters": 16, "epochs": 0}, kit.context("cnn", keep=Keep()))
