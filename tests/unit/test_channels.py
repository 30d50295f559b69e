"""Which channels can be scaled: the answers must stay the same, or the reason must be told."""

import pytest
import torch
from torch import nn

from edgepipe import channels, dataflow
from tests.unit import networks_kit as kit


def found(net):
    groups = channels.groups(dataflow.trace(net, kit.context(net)))
    return [group for group in groups if group.readers]


class Small(nn.Module):
    """One way from a maker to a reader, as the subclass says."""

    shape = (1, 8, 8)

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x):
        return self.b(self.between(self.a(x))).mean((2, 3))

    def between(self, x):
        return x


class Pooled(Small):
    def between(self, x):
        return nn.functional.max_pool2d(nn.functional.leaky_relu(x, 0.2), 2)


class Grouped(Small):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 6, 3, padding=1, groups=2)


class Transposed(Small):
    def __init__(self):
        super().__init__()
        self.a = nn.ConvTranspose2d(1, 4, 2, 2)
        self.b = nn.ConvTranspose2d(4, 3, 2, 2)


class Flattened(Small):
    def __init__(self):
        super().__init__()
        self.b = nn.Linear(4 * 64, 3)

    def forward(self, x):
        return self.b(self.a(x).relu().flatten(1))


class Permuted(Small):
    def __init__(self):
        super().__init__()
        self.b = nn.Linear(4, 3)

    def forward(self, x):
        return self.b(self.a(x).flatten(2).permute(0, 2, 1)[:, 3:].relu()).mean(1)


class Squashed(Small):
    def between(self, x):
        return torch.sigmoid(x)


class Answered(Small):
    def forward(self, x):
        x = self.a(x)
        return self.b(x), x


class Shifted(Small):
    def between(self, x):
        return x + 1.0


class Joined(Small):
    def __init__(self):
        super().__init__()
        self.b = nn.Conv2d(8, 3, 1)

    def between(self, x):
        return torch.cat([x, x.relu()], 1)


class Twice(Small):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(4, 4, 3, padding=1)

    def between(self, x):
        return self.c(self.c(x).relu())


class Bare(Small):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4, affine=False)

    def between(self, x):
        return self.norm(x).relu()


@pytest.mark.parametrize("kind", [Small, Pooled, Grouped, Transposed, Flattened, Permuted])
def test_scaling_one_group_changes_nothing(kind):
    net = kit.made(kind)
    (group,) = found(net)
    assert group.reason == ""
    before = kit.outputs(net)
    torch.manual_seed(3)
    channels.scale(dict(net.named_parameters()), group, torch.rand(group.size) * 4 + 0.1)
    assert torch.allclose(kit.outputs(net), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Squashed, "sigmoid"),
        (Answered, "answer"),
        (Shifted, "added to something else"),
        (Twice, "more than once"),
        (Bare, "no scale"),
    ],
)
def test_what_can_not_be_scaled_says_why(kind, why):
    groups = found(kit.made(kind))
    assert all(group.reason for group in groups)
    assert groups == [] or any(why in group.reason for group in groups)


def test_what_is_joined_has_no_reader():
    assert found(kit.made(Joined)) == []


@pytest.mark.parametrize(("kind", "free"), [(kit.Cnn, 3), (kit.Depthwise, 3)])
def test_residual_networks(kind, free):
    net = kit.made(kind)
    groups = found(net)
    assert len(groups) == free
    before = kit.outputs(net)
    for group in groups:
        assert group.reason == ""
        channels.scale(dict(net.named_parameters()), group, torch.rand(group.size) * 4 + 0.1)
    assert torch.allclose(kit.outputs(net), before, rtol=1e-4, atol=1e-5)


def test_ranges_are_those_of_the_folded_weight():
    net = kit.made(kit.Depthwise)
    named = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    group = next(group for group in found(net) if group.makers[0].name == "depth.0")
    fused = nn.utils.fusion.fuse_conv_bn_eval(net.depth[0], net.depth[1])
    assert torch.allclose(channels.output_ranges(named, group.makers[0]), fused.weight.abs().amax((1, 2, 3)))
    fused = nn.utils.fusion.fuse_conv_bn_eval(net.project[0], net.project[1])
    assert torch.allclose(channels.input_ranges(named, *group.readers[0]), fused.weight.abs().amax((0, 2, 3)))
