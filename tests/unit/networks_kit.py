"""Small networks of each kind, with data made up for them, for the steps that change a network."""

import copy

import numpy as np
import torch
from torch import nn

from edgepipe.schema import TensorSpec
from edgepipe.tasks import image_classification as task
from edgepipe.training import Context, Examples, fit

CLASSES = 3
torch.set_num_threads(1)  # networks this small only wait for one another on more


def conv_bn(inputs, outputs, kernel=3, groups=1):
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Cnn(nn.Module):
    """A residual network with batch normalisation and ReLU."""

    shape = (1, 8, 8)

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(1, 6)
        self.first, self.second = conv_bn(6, 6), conv_bn(6, 6)
        self.wide = nn.Conv2d(6, 8, 3, 2, 1)
        self.head = nn.Linear(8 * 16, CLASSES)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.second(self.first(x).relu())).relu()
        return self.head(self.wide(x).relu().flatten(1))


class Depthwise(nn.Module):
    """Inverted residuals: 1x1, depthwise, 1x1; ``clip`` joins them by ReLU6."""

    shape = (1, 8, 8)

    def __init__(self, clip=False):
        super().__init__()
        act = nn.ReLU6 if clip else nn.ReLU
        self.stem = conv_bn(1, 6)
        self.expand, self.act1 = conv_bn(6, 12, 1), act()
        self.depth, self.act2 = conv_bn(12, 12, groups=12), act()
        self.project = conv_bn(12, 6, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.project(self.act2(self.depth(self.act1(self.expand(x)))))
        return self.head(self.pool(x).flatten(1))


class Encoder(nn.Module):
    """A transformer encoder over the rows of an image; ``first`` puts the normalisation before the attention."""

    shape = (1, 8, 8)

    def __init__(self, first=True, activation="gelu"):
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.position = nn.Parameter(torch.randn(1, 8, 16))
        more = {"batch_first": True, "norm_first": first, "activation": activation}
        self.layers = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 32, **more) for _ in range(2)])
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        x = self.embed(x.squeeze(1)) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


def made(kind, **more):
    """A seeded network of ``kind`` with parameters of very different size from channel to channel, in eval mode."""
    torch.manual_seed(0)
    net = kind(**more)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm) and module.weight is not None:
                module.weight.copy_(torch.exp(torch.randn(len(module.weight))))
                module.bias.copy_(0.3 * torch.randn(len(module.bias)))
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(0.1 * torch.randn(len(module.running_mean)))
                module.running_var.copy_(torch.rand(len(module.running_var)) + 0.5)
    return net.eval()


def student(teacher):
    """A copy that can be trained."""
    net = copy.deepcopy(teacher)
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    return net


def examples(count=512, *, labels=True):
    """Images uint8 of bright bars, whose row says the class, in noise."""
    random = np.random.default_rng(0)
    classes = np.arange(count) % CLASSES
    images = random.integers(0, 120, (count, 1, 8, 8), dtype=np.uint8)
    images[np.arange(count), 0, classes * 2 + 1] += 100
    return Examples(images, classes if labels else None, prepared, "bars")


def prepared(raw):
    return (raw / np.float32(128) - 1).astype(np.float32)


def context(teacher, *, training=True, calibration=True, **more):
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    return Context(
        teacher.eval(),
        [TensorSpec("x", [-1, *teacher.shape], layout="NCHW")],
        calibration=examples(64) if calibration else None,
        training=examples() if training else None,
        loss=task.loss,
        likeness=task.likeness,
        **more,
    )


def learnt(net):
    """Train a network from its start, on the labels alone."""
    here = context(copy.deepcopy(net))
    fit(net, here, lambda _, outputs, labels: here.loss(outputs, labels), epochs=20, rate=0.01)
    return net


def outputs(net, count=64):
    with torch.no_grad():
        return net(torch.from_numpy(prepared(examples(count).inputs)))


def accuracy(net):
    return float((outputs(net, 512).argmax(1).numpy() == examples().labels).mean())
