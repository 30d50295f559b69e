"""Small MobileNetV2 for 28x28 grey images in ten classes (96,554 parameters).

The inverted residual follows Sandler et al., "MobileNetV2: Inverted Residuals and Linear
Bottlenecks", 2018 (arXiv:1801.04381): 1x1 expansion, 3x3 depthwise convolution, linear 1x1
projection, ReLU6 after the first two. Nothing works in place and no branch depends on the
data, so that the module can be traced, exported and quantised as it is.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

CLASSES = 10
STEM = 16
HEAD = 128


class Stage(NamedTuple):
    """A run of inverted residuals: expansion factor, channels, blocks, stride of the first."""

    expansion: int
    channels: int
    blocks: int
    stride: int


STAGES = (Stage(1, 16, 1, 1), Stage(4, 24, 2, 1), Stage(4, 32, 3, 2), Stage(4, 64, 2, 2))


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    """Return convolution and batch normalisation: [N,inputs,H,W] -> [N,outputs,H',W'].

    The padding is kernel // 2 on each side, so H' = ceil(H / stride) for odd kernels.
    """
    pad = kernel // 2
    conv = nn.Conv2d(inputs, outputs, kernel, stride, pad, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def conv_bn_relu6(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    """Return `conv_bn` followed by ReLU6; the shapes are those of `conv_bn`."""
    return nn.Sequential(*conv_bn(inputs, outputs, kernel, stride, groups), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expand, filter per channel, project: [N,inputs,H,W] -> [N,outputs,H/stride,W/stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        """Build the block; it has a shortcut only where the shape stays the same."""
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_bn_relu6(inputs, hidden, 1))
        layers.append(conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden))
        layers.append(conv_bn(hidden, outputs, 1))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the projected features, plus the input where the shape allows it."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """Stem with stride 2, inverted residuals, 1x1 head, mean over space, linear classifier."""

    def __init__(self) -> None:
        """Build the layers; feature maps are 14x14, then 7x7, then 4x4 pixels."""
        super().__init__()
        self.stem = conv_bn_relu6(1, STEM, 3, 2)
        blocks: list[nn.Module] = []
        width = STEM
        for stage in STAGES:
            for index in range(stage.blocks):
                stride = stage.stride if index == 0 else 1
                blocks.append(InvertedResidual(width, stage.channels, stride, stage.expansion))
                width = stage.channels
        self.blocks = nn.Sequential(*blocks)
        self.head = conv_bn_relu6(width, HEAD, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(HEAD, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images [N,1,28,28] float32 to logits [N,10] float32."""
        features: Tensor = self.head(self.blocks(self.stem(x)))
        logits: Tensor = self.classifier(self.flatten(self.pool(features)))
        return logits


def build() -> nn.Module:
    """Return a new, randomly initialised network in training mode."""
    return MobileNetV2()
