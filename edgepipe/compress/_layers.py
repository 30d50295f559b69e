"""The layers of a network that hold most of its weights, and its cost in multiply-accumulates."""

from __future__ import annotations

from typing import Any

from edgepipe.errors import IntegrityError, UsageError

_LISTED = 4
_PIECES = 4
_MATRIX = 2  # dimensions


def weighted(network: Any) -> dict[str, Any]:
    """The convolutions and linear layers of a network by name.

    Raises:
        UsageError: there is none.
        IntegrityError: a weight is NaN or infinite.
    """
    import torch
    from torch import nn

    kinds = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    found = {name: module for name, module in network.named_modules() if isinstance(module, kinds)}
    if not found:
        what = "the network has no convolution and no linear layer"
        raise UsageError(what, "network", "use a recipe on the file: fp16, dynamic, int8")
    for name, layer in found.items():
        if not torch.isfinite(layer.weight).all():
            raise IntegrityError(f"the weight of {name} is NaN or infinite", "network", "train the model again")
    return found


def weights(network: Any) -> dict[str, Any]:
    """The weights of convolutions, linear layers and attention's projections by name: matrices and kernels, no biases.

    Raises:
        UsageError: there is none.
        IntegrityError: one is NaN or infinite.
    """
    from torch import nn

    found = {f"{name}.weight".lstrip("."): layer.weight for name, layer in weighted(network).items()}
    for name, module in network.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            found[f"{name}.in_proj_weight".lstrip(".")] = module.in_proj_weight
    return found


def others(network: Any, treated: Any) -> str:
    """A clause on the matrices and kernels that are not among the names ``treated``; empty if there are none."""
    left = [name for name, value in network.named_parameters() if value.dim() >= _MATRIX and name not in set(treated)]
    return f"; left as they are: {listed(left)}" if left else ""


def listed(names: list[str]) -> str:
    """The first few names and how many there are besides."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def piece(count: int, most: int) -> int:
    """The largest power of two up to ``most`` of which ``count`` holds four or more; 1 where there is none.

    Vector units work on several channels at a time; but few channels must not be cut in two pieces or none.
    """
    step = 1
    while 2 * step <= most and 2 * step * _PIECES <= count:
        step *= 2
    return step


def macs(network: Any, example: tuple[Any, ...]) -> int:
    """Multiply-accumulates of the matrix products and convolutions on ``example`` (counted as two operations each)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused encoder layer would hide its products from the counter
    try:
        with torch.no_grad(), counter:
            network.eval()(*example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops() // 2)
