"""Distillation: the changed network comes back to what the float model answers."""

import copy

import pytest
import torch
from torch import nn

from edgepipe.compress import distill
from edgepipe.errors import UsageError
from edgepipe.tasks import image_classification as task
from edgepipe.training import Context, Keep
from tests.unit import networks_kit as kit

PARAMS = {**distill.DEFAULTS, "epochs": 4}


def damaged(net, share=0.6):
    """Zeros by hand, as a pruning step leaves them, and what is to be kept of them."""
    names = []
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if weight.dim() > 1:
                weight[weight.abs() < weight.abs().flatten().quantile(share)] = 0
                names.append(name)
    return net, Keep(tuple(names))


@pytest.fixture(scope="module", params=[kit.Cnn, kit.Depthwise, kit.Encoder], ids=["cnn", "depthwise", "encoder"])
def teacher(request):
    net = kit.learnt(kit.made(request.param))
    assert kit.accuracy(net) > 0.9
    return net


@pytest.mark.parametrize("features", ["no", "yes"])
def test_it_repairs_and_keeps_the_zeros(teacher, features):
    net, keep = damaged(kit.student(teacher))
    zeros = {name: net.get_parameter(name) == 0 for name in keep.zeros}
    wanted, lost = kit.outputs(teacher), kit.outputs(net)
    changed = distill.compress(net, {**PARAMS, "features": features}, kit.context(teacher, keep=keep))
    mended = task.likeness([kit.outputs(net)], [wanted], 1.0)
    assert mended < 0.5 * task.likeness([lost], [wanted], 1.0)
    assert all((net.get_parameter(name)[places] == 0).all() for name, places in zeros.items())
    assert changed.note.startswith("4 epochs over 512 samples (bars), loss ")
    assert ("outputs matched at " in changed.note) == (features == "yes")
    assert not any(module._forward_hooks for module in [*net.modules(), *teacher.modules()])


def test_after_the_shapes_have_changed(teacher):
    """Fewer channels inside, as structured pruning leaves them, or a layer that became two."""
    if isinstance(teacher, kit.Cnn):
        net = kit.student(teacher)
        net.first, net.second = kit.conv_bn(6, 3), kit.conv_bn(3, 6)
    elif isinstance(teacher, kit.Depthwise):
        net = kit.student(teacher)
        net.project = nn.Sequential(nn.Conv2d(12, 3, 1, bias=False), nn.Conv2d(3, 6, 1))
    else:
        net = kit.student(teacher)
        net.head = nn.Sequential(nn.Linear(16, 2, bias=False), nn.Linear(2, 3))
    lost = kit.outputs(net)
    changed = distill.compress(net, {**PARAMS, "epochs": 20, "features": "yes"}, kit.context(teacher))
    wanted = kit.outputs(teacher)
    assert task.likeness([kit.outputs(net)], [wanted], 1.0) < 0.9 * task.likeness([lost], [wanted], 1.0)
    assert "outputs matched at" in changed.note


def test_on_calibration_data_without_labels(teacher):
    net, keep = damaged(kit.student(teacher))
    wanted, lost = kit.outputs(teacher), kit.outputs(net)
    changed = distill.compress(net, {**PARAMS, "epochs": 1}, kit.context(teacher, keep=keep, training=False))
    assert task.likeness([kit.outputs(net)], [wanted], 1.0) < task.likeness([lost], [wanted], 1.0)
    assert "no training data: the calibration samples without labels, 64 times over" in changed.note


def test_outputs_that_are_no_scores():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 5))
    net.shape = (1, 8, 8)
    teacher = copy.deepcopy(net)
    with torch.no_grad():
        net[3].weight.mul_(0.2)
    base = kit.context(teacher)
    context = Context(teacher, base.inputs, training=kit.examples(labels=False))
    before = nn.functional.mse_loss(kit.outputs(net), kit.outputs(teacher))
    changed = distill.compress(net, {**PARAMS, "epochs": 20}, context)
    assert nn.functional.mse_loss(kit.outputs(net), kit.outputs(teacher)) < 0.2 * before
    assert changed.note.startswith("20 epochs")


def test_what_it_refuses():
    net = kit.made(kit.Cnn)
    bare = kit.context(copy.deepcopy(net), training=False, calibration=False)
    with pytest.raises(UsageError, match="nothing to train on"):
        distill.compress(net, PARAMS, bare)
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(UsageError, match="no layer inside"):
        distill.compress(other, {**PARAMS, "features": "yes"}, kit.context(net))
    assert "not trained" in distill.compress(net, {**PARAMS, "epochs": 0}, kit.context(copy.deepcopy(net))).note
