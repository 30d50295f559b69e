"""Low-rank adaptation: what learns, what stays, what is merged."""

import copy

import pytest
import torch
from torch import nn

from edgepipe.compress import lora
from edgepipe.errors import UsageError

from . import compress_kit as kit

pytest.importorskip("peft")


def params(**more):
    return {**lora.DEFAULTS, "rank": 2, "epochs": 1, **more}


@pytest.mark.parametrize("kind", ["cnn", "depthwise"])
@pytest.mark.parametrize("base", ["float", "int8", "int4"])
def test_the_structure_stays_and_each_change_is_of_low_rank(kind, base):
    network = kit.network(kind)
    before = copy.deepcopy(network)
    lora._round(before, lora._adaptable(before), {"float": 24, "int8": 8, "int4": 4}[base])
    changed = lora.compress(network, params(base=base), kit.context(kind)).network
    own, other = dict(changed.named_modules()), dict(before.named_modules())
    assert list(own) == list(other) and {type(m) for m in own.values()} == {type(m) for m in other.values()}
    moved = 0
    for name, layer in own.items():
        if isinstance(layer, nn.BatchNorm2d):
            assert torch.equal(layer.running_mean, other[name].running_mean) and "train" not in vars(layer)
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        difference = (layer.weight - other[name].weight).detach().flatten(1).double()
        values = torch.linalg.svdvals(difference)
        moved += float(values[0]) > 1e-4
        if layer.weight[0, 0].numel() == 1 and getattr(layer, "groups", 1) == 1:
            assert (values[2:] < 1e-4).all(), name  # rank 2
    assert moved


def test_adapters_on_rounded_weights_learn_from_the_labels():
    context = kit.context("cnn")
    inputs, labels = context.training.take(list(range(512)))

    def loss(network):
        with torch.no_grad():
            return float(context.loss([network.eval()(inputs)], labels))

    rounded = kit.network("cnn")
    lora._round(rounded, lora._adaptable(rounded), 4)
    changed = lora.compress(kit.network("cnn"), params(base="int4", rank=4, epochs=6), context)
    assert loss(changed.network) < 0.97 * loss(rounded)  # half of what it learns is to answer as the teacher
    assert "rank 4" in changed.note and "rounded to int4" in changed.note and "bytes" in changed.note


def test_a_network_of_grouped_layers_is_refused():
    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    with pytest.raises(UsageError, match="no layer of this network can be adapted"):
        lora.compress(network, params(), kit.context("cnn"))
