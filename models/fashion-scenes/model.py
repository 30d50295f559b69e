"""A small single-shot detector for 64x64 grey scenes (after Liu et al., "SSD", 2015, arXiv:1512.02325).

Two feature maps, of 8x8 and 4x4 cells, each with three anchors a cell: 240 boxes. The file gives the logits of each
class and the corners of each box, in shares of the image's side: anchors are known in here alone, and all of it is
convolutions and sums that every format can hold in int8. What remains is to drop weak boxes and those that overlap a
better one, which depends on the data and is left to the task (edgepipe/tasks/object_detection.py) or the application.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIZE = 64
CLASSES = 5
CELLS = (8, 4)
ANCHORS = (
    ((20.0, 20.0), (12.0, 24.0), (26.0, 15.0)),
    ((32.0, 32.0), (17.0, 36.0), (36.0, 20.0)),
)
"""Width and height in pixels, for each map."""


def conv_bn(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch normalisation, ReLU: [N,inputs,H,W] -> [N,outputs,H/stride,W/stride]."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def anchors() -> Tensor:
    """Centre x, centre y, width and height of all anchors, in shares of the side: float32 [240,4]."""
    rows = []
    for cells, shapes in zip(CELLS, ANCHORS, strict=True):
        for y in range(cells):
            for x in range(cells):
                rows += [((x + 0.5) / cells, (y + 0.5) / cells, w / SIZE, h / SIZE) for w, h in shapes]
    return torch.tensor(rows, dtype=torch.float32)


class Head(nn.Module):
    """Scores and corner offsets from one map: [N,width,S,S] -> [N,S*S*3,CLASSES] and [N,S*S*3,4]."""

    def __init__(self, width: int, cells: int) -> None:
        """Build both convolutions; scores begin at a probability of 1 %, as most boxes hold nothing."""
        super().__init__()
        self.count = cells * cells * len(ANCHORS[0])
        self.score = nn.Conv2d(width, len(ANCHORS[0]) * CLASSES, 3, padding=1)
        self.corner = nn.Conv2d(width, len(ANCHORS[0]) * 4, 3, padding=1)
        nn.init.constant_(self.score.bias, -4.6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and offsets, cell by cell, anchors innermost."""
        scores = self.score(x).permute(0, 2, 3, 1).reshape(-1, self.count, CLASSES)
        return scores, self.corner(x).permute(0, 2, 3, 1).reshape(-1, self.count, 4)


class Detector(nn.Module):
    """Backbone of six convolutions and two heads."""

    anchors: Tensor
    sides: Tensor

    def __init__(self) -> None:
        """Build the layers and the anchors' corners (x1, y1, x2, y2) and sides (w, h, w, h), both [240,4]."""
        super().__init__()
        self.backbone = nn.Sequential(
            conv_bn(1, 16, 2), conv_bn(16, 32, 2), conv_bn(32, 64), conv_bn(64, 64, 2), conv_bn(64, 96)
        )
        self.deeper = nn.Sequential(conv_bn(96, 96, 2), conv_bn(96, 96))
        self.heads = nn.ModuleList(Head(96, cells) for cells in CELLS)
        known = anchors()
        centre, side = known[:, :2], known[:, 2:]
        self.register_buffer("anchors", torch.cat([centre - side / 2, centre + side / 2], 1)[None], persistent=False)
        self.register_buffer("sides", torch.cat([side, side], 1)[None], persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map normalised images [N,1,64,64] to logits [N,240,CLASSES] and boxes [N,240,4] (x1, y1, x2, y2)."""
        fine = self.backbone(image)
        found = [head(x) for head, x in zip(self.heads, (fine, self.deeper(fine)), strict=True)]
        scores = torch.cat([score for score, _ in found], 1)
        return scores, self.anchors + torch.cat([corner for _, corner in found], 1) * self.sides


def build() -> nn.Module:
    """Return a new, randomly initialised network in training mode."""
    return Detector()
