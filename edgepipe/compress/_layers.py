"""What the steps share: which parameters later steps must keep, and which layers there are to treat."""

from __future__ import annotations

from typing import Any

from edgepipe.training import Keep


def also(keep: Keep, *, zeros: tuple[str, ...] = (), shared: tuple[str, ...] = ()) -> Keep:
    """What ``keep`` says and more."""
    return Keep(tuple(sorted({*keep.zeros, *zeros})), tuple(sorted({*keep.shared, *shared})))


def weighted(network: Any) -> dict[str, Any]:
    """The convolutions and linear layers of a network by name.

    Raises:
        UsageError: there is none.
    """
    from torch import nn

    from edgepipe.errors import UsageError

    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    found = {name: module for name, module in network.named_modules() if isinstance(module, kinds)}
    if not found:
        what = "the network has no convolution and no linear layer"
        raise UsageError(what, "network", "use a recipe on the file: fp16, dynamic, int8")
    return found
