"""A layer with a low-rank adapter beside it, as it stays in a network whose adapters are not merged."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Adapted(nn.Module):  # type: ignore[misc]
    """``base`` (linear or convolution) plus ``up`` of ``down``: both of its kind, without bias, and scaled already."""

    def __init__(self, base: Any, down: Any, up: Any) -> None:
        """Take the three layers as they are."""
        super().__init__()
        self.base, self.down, self.up = base, down, up

    def forward(self, x: Tensor) -> Tensor:
        """What the merged layer would give, up to rounding."""
        found: Tensor = self.base(x) + self.up(self.down(x))
        return found

    @property
    def weight(self) -> Tensor:
        """The weight of the merged layer: fused encoder layers read it instead of calling the layer."""
        product = self.up.weight.flatten(1) @ self.down.weight.flatten(1)
        merged: Tensor = self.base.weight + product.reshape(self.base.weight.shape)
        return merged

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        found: Tensor | None = self.base.bias
        return found
