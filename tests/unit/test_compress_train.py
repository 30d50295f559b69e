"""Distillation, quantisation-aware training, equalisation and SmoothQuant on the three kinds of network."""

import copy

import pytest
import torch
from torch import nn

from edgepipe.compress import distill, equalize, prune_unstructured, qat, smooth
from edgepipe.errors import UsageError
from edgepipe.training import Context

from . import compress_kit as kit

KINDS = list(kit.NETWORKS)


def outputs(network, here):
    with torch.no_grad():
        return network.eval()(torch.from_numpy(here.calibration.inputs[:64]))


def error(network, here):
    wanted = outputs(here.teacher, here)
    return float((outputs(network, here) - wanted).square().mean() / wanted.var())


def damaged(kind):
    """A network that has forgotten half of its weights, and what is to be kept of that."""
    here = kit.context(kind)
    changed = prune_unstructured.compress(
        kit.network(kind), {**prune_unstructured.DEFAULTS, "amount": 0.7, "pattern": "layer", "epochs": 0}, here
    )
    return changed.network, kit.context(kind, keep=changed.keep)


@pytest.mark.parametrize("kind", KINDS)
def test_distillation_repairs_and_keeps_the_zeros(kind):
    network, here = damaged(kind)
    before, zeros = error(network, here), {name: (w == 0) for name, w in network.named_parameters()}
    changed = distill.compress(network, {**distill.DEFAULTS, "epochs": 25 if kind == "depthwise" else 6}, here)
    assert error(changed.network, here) < 0.7 * before
    for name in here.keep.zeros:
        assert (changed.network.get_parameter(name)[zeros[name]] == 0).all()


def test_distillation_without_labels_learns_from_the_calibration_data():
    network, here = damaged("cnn")
    bare = Context(here.teacher, here.inputs, here.calibration, keep=here.keep)
    before = error(network, bare)
    changed = distill.compress(network, {**distill.DEFAULTS, "epochs": 1}, bare)
    assert "no training data" in changed.note
    assert error(changed.network, bare) < before


def test_features_are_matched_where_shapes_agree():
    network, here = damaged("cnn")
    changed = distill.compress(network, {**distill.DEFAULTS, "epochs": 1, "features": "yes"}, here)
    assert "outputs matched at" in changed.note


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_were_trained_with_rounding_stand_it_better(kind):
    here = kit.context(kind)

    def rounded_error(network):
        copied = copy.deepcopy(network)
        with torch.no_grad():
            for module in copied.modules():
                if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.dim() > 1:
                    module.weight.copy_(qat.round_weight(module.weight, None))
        return error(copied, here)

    changed = kit.apply(qat, kind, epochs=2, weights="tensor", context=here)
    assert "layers trained with int8 rounding" in changed.note
    assert rounded_error(changed.network) < 0.2
    assert kit.agreement(changed, here) > 0.8


def test_rounding_of_weights_is_that_of_an_int8_file():
    weight = torch.randn(6, 5)
    found = qat.round_weight(weight, 0)
    scale = weight.abs().amax(1, keepdim=True) / 127
    assert torch.allclose(found, (weight / scale).round() * scale, atol=1e-6)
    assert (qat.round_weight(torch.zeros(3, 3), None) == 0).all()


@pytest.mark.parametrize(("kind", "params"), [("cnn", {}), ("depthwise", {"clip": "relu"})])
def test_equalisation_changes_no_answer(kind, params):
    here = kit.context(kind)
    network = kit.network(kind)
    if params:
        equalize._unclip(network)
    wanted = outputs(network, here)
    try:
        changed = equalize.compress(network, {**equalize.DEFAULTS, **params}, here)
    except UsageError as refused:
        assert "no channels between two layers can be scaled" in refused.what
        assert kind == "cnn"
        return
    assert "layers equalised" in changed.note
    assert torch.allclose(outputs(changed.network, here), wanted, atol=1e-4)


def test_equalisation_says_why_not():
    with pytest.raises(UsageError, match="no channels between two layers can be scaled") as caught:
        kit.apply(equalize, "depthwise")
    assert "ReLU6" in caught.value.what
    assert "clip=relu" in caught.value.fix


def test_smoothing_changes_no_answer_and_says_why_not():
    here = kit.context("encoder")
    network = kit.network("encoder")
    wanted = outputs(network, here)
    for layer in network.body.layers:
        layer.norm_first = False
    try:
        changed = smooth.compress(network, dict(smooth.DEFAULTS), here)
    except UsageError as refused:
        assert "no normalisation is read by linear layers alone" in refused.what
    else:
        assert torch.allclose(outputs(changed.network, here), wanted, atol=1e-4)
    with pytest.raises(UsageError, match="no normalisation is read by linear layers alone"):
        kit.apply(smooth, "cnn")


def test_smoothing_in_front_of_linear_layers():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    here = kit.context("cnn")
    with torch.no_grad():
        network[1].weight[7] = 40.0  # an outlying channel
        wanted = network(torch.from_numpy(here.calibration.inputs[:8]))
        changed = smooth.compress(network, dict(smooth.DEFAULTS), here)
        found = changed.network(torch.from_numpy(here.calibration.inputs[:8]))
    assert torch.allclose(found, wanted, atol=1e-3)
    assert float(network[1].weight.abs().max()) < 20
    assert "1 normalisations smoothed in front of 1 linear layers" in changed.note
