"""Quantisation-aware training: the network that is trained computes as the int8 file will."""

import copy

import pytest
import torch
from torch import nn

from edgepipe import channels, dataflow
from edgepipe.compress import qat
from edgepipe.edits import find_edits
from edgepipe.errors import UsageError
from edgepipe.training import Keep
from tests.unit import networks_kit as kit

PARAMS = {**qat.DEFAULTS, "epochs": 2}
KINDS = [(kit.Cnn, {}), (kit.Depthwise, {"clip": True}), (kit.Encoder, {}), (kit.Encoder, {"first": False})]
NAMES = ["cnn", "depthwise", "encoder", "post-norm"]


def trained(kind, **more):
    return kit.learnt(kit.made(kind, **more))


def uneven(net):
    """The same answers from channels of very different size, which one scale for a tensor can't bear."""
    parameters = dict(net.named_parameters())
    for group in channels.groups(dataflow.trace(net, kit.context(copy.deepcopy(net)))):
        if not group.reason:
            channels.scale(parameters, group, torch.logspace(-1, 1, group.size))
    return net


def simulated(net, channel=True):
    return qat._simulate(net, kit.context(copy.deepcopy(net)), channel=channel)


@pytest.mark.parametrize(("kind", "more"), KINDS, ids=NAMES)
def test_it_computes_nearly_as_the_float_network(kind, more):
    net = kit.made(kind, **more)
    graph, layers = simulated(net)
    assert layers == sum(dataflow.operation(node) in dataflow.LAYERS for node in graph.graph.nodes)
    wanted = kit.outputs(net, 128)
    (got,) = kit.outputs(graph, 128)
    error = float((got - wanted).pow(2).mean() / wanted.var())
    assert 0 < error < 0.02


def test_weights_are_rounded_with_the_normalisation_folded_in():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    net.shape = (1, 8, 8)
    net = kit.made(lambda: net)
    graph, _ = simulated(net)
    fused = nn.utils.fusion.fuse_conv_bn_eval(net[0], net[1])
    step = fused.weight.abs().amax((1, 2, 3), keepdim=True) / 127
    seen = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, node):
            seen[node.name] = super().run_node(node)
            return seen[node.name]

    images = torch.from_numpy(kit.prepared(kit.examples(128).inputs))
    Watch(graph).run(images)
    conv = next(node for node in graph.graph.nodes if dataflow.operation(node) == "conv2d")
    weight, bias = seen[conv.args[1].name], seen[conv.args[2].name]
    assert torch.allclose(weight, (fused.weight / step).round() * step, atol=1e-6)
    assert torch.allclose(bias, fused.bias, atol=1e-6)
    assert len(seen[conv.args[0].name].unique()) <= 256
    assert not any(dataflow.operation(node) == "batch_norm" for node in graph.graph.nodes)


def test_one_scale_for_the_tensor():
    weight = torch.tensor([[1.0, -0.5], [0.01, 0.003]])
    assert torch.allclose(qat.round_weight(weight, 0), weight, rtol=0.02)
    assert qat.round_weight(weight, None)[1].tolist() == [pytest.approx(1 / 127), 0]
    assert qat.round_weight(torch.zeros(2, 2), 0).tolist() == [[0, 0], [0, 0]]


def test_the_range_of_a_tensor_holds_zero_and_follows():
    ends = torch.full([2], torch.nan)
    qat.round_tensor(torch.tensor([1.0, 3.0]), ends)
    assert ends.tolist() == [0, 3]
    qat.round_tensor(torch.tensor([-1.0, 5.0]), ends)
    assert ends.tolist() == pytest.approx([-0.1, 3.2])
    assert torch.isfinite(qat.round_tensor(torch.zeros(3), torch.full([2], torch.nan))).all()


@pytest.mark.parametrize(("kind", "more"), KINDS[:3], ids=NAMES[:3])
def test_it_learns_to_stand_the_rounding(kind, more):
    """One scale for each tensor hurts most; after training, the rounded network answers more like the teacher."""
    net = uneven(trained(kind, **more))
    teacher = copy.deepcopy(net)
    context = kit.context(teacher)
    structure = {key: value.shape for key, value in net.state_dict().items()}

    def likeness(net):
        graph, _ = qat._simulate(copy.deepcopy(net), context, channel=False)
        return float(kit.task.likeness([kit.outputs(graph, 128)[0]], [kit.outputs(teacher, 128)], 1.0))

    before = likeness(net)
    changed = qat.compress(net, {**PARAMS, "weights": "tensor", "alpha": 1.0, "epochs": 20}, context)
    assert likeness(changed.network) < 0.5 * before
    assert {key: value.shape for key, value in changed.network.state_dict().items()} == structure
    assert find_edits(teacher, changed.network) == {}
    assert "layers trained with int8 rounding: 20 epochs over 512 samples (bars)" in changed.note
    assert not changed.network.training
    for name, value in teacher.named_buffers():
        assert torch.equal(value, changed.network.get_buffer(name)), "statistics are frozen"


def test_zeros_and_shared_values_are_kept():
    net = trained(kit.Cnn)
    with torch.no_grad():
        net.wide.weight[net.wide.weight.abs() < 0.05] = 0
        net.head.weight.copy_(net.head.weight.sign() * 0.1)
    zeros = net.wide.weight == 0
    context = kit.context(copy.deepcopy(net), keep=Keep(("wide.weight",), ("head.weight",)))
    qat.compress(net, PARAMS, context)
    assert zeros.any()
    assert (net.wide.weight[zeros] == 0).all()
    assert len(net.head.weight.unique()) == 2


def test_on_calibration_data_alone():
    net = trained(kit.Cnn)
    changed = qat.compress(net, {**PARAMS, "epochs": 1}, kit.context(copy.deepcopy(net), training=False))
    assert "no training data" in changed.note


def test_what_it_refuses():
    net = nn.Sequential(nn.Flatten(), nn.ReLU())
    net.shape = (1, 8, 8)
    with pytest.raises(UsageError, match="no layer whose weights are quantised"):
        qat.compress(net, PARAMS, kit.context(copy.deepcopy(net)))
    net = kit.made(kit.Cnn)
    with pytest.raises(UsageError, match="nothing to train on"):
        qat.compress(net, PARAMS, kit.context(copy.deepcopy(net), training=False, calibration=False))
    assert "not trained" in qat.compress(net, {**PARAMS, "epochs": 0}, kit.context(copy.deepcopy(net))).note
