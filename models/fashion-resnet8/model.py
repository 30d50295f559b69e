"""ResNet-8 for 28x28 grey images in ten classes (308,074 parameters).

The residual block follows He et al., "Deep Residual Learning for Image Recognition", 2015
(arXiv:1512.03385): two 3x3 convolutions, each with batch normalisation, and a 1x1 projection
on the shortcut where the shape changes. Nothing works in place and no branch depends on the
data, so that the module can be traced, exported and quantised as it is.
"""

from __future__ import annotations

from torch import Tensor, nn

CLASSES = 10
STAGES = (32, 64, 128)
STEM = 32


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Return convolution and batch normalisation: [N,inputs,H,W] -> [N,outputs,H',W'].

    The padding is kernel // 2 on each side, so H' = ceil(H / stride) for odd kernels.
    """
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions plus a shortcut: [N,inputs,H,W] -> [N,outputs,H/stride,W/stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build the block; the shortcut is a projection unless the shape stays the same."""
        super().__init__()
        self.first = conv_bn(inputs, outputs, 3, stride)
        self.activation = nn.ReLU()
        self.second = conv_bn(outputs, outputs, 3)
        same = inputs == outputs and stride == 1
        self.shortcut: nn.Module = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)
        self.output = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's activation (non-negative)."""
        y: Tensor = self.second(self.activation(self.first(x)))
        z: Tensor = self.output(y + self.shortcut(x))
        return z


class ResNet8(nn.Module):
    """Stem with stride 2, one residual block per stage, mean over space, linear classifier."""

    def __init__(self) -> None:
        """Build the layers; feature maps are 14x14, 14x14, 7x7 and 4x4 pixels."""
        super().__init__()
        self.stem = conv_bn(1, STEM, 3, 2)
        self.activation = nn.ReLU()
        blocks = []
        width = STEM
        for index, outputs in enumerate(STAGES):
            blocks.append(ResidualBlock(width, outputs, 1 if index == 0 else 2))
            width = outputs
        self.stages = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images [N,1,28,28] float32 to logits [N,10] float32."""
        features: Tensor = self.stages(self.activation(self.stem(x)))
        logits: Tensor = self.classifier(self.flatten(self.pool(features)))
        return logits


def build() -> nn.Module:
    """Return a new, randomly initialised network in training mode."""
    return ResNet8()
