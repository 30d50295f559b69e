"""Low rank: a layer becomes two or three thinner ones.

Linear layers and 1x1 convolutions by the truncated singular value decomposition (Denton et al. 2014); larger
convolutions by Tucker-2 through the higher-order SVD of their channels (De Lathauwer et al. 2000, Kim et al. 2016):
1x1, k x k, 1x1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.compress._layers import listed, piece, weighted
from edgepipe.errors import UsageError
from edgepipe.training import Changed, fine_tune

if TYPE_CHECKING:
    from edgepipe.training import Context

STEP = "lowrank"
HELP = "layers factorised into thinner ones (SVD, Tucker-2); ratio of weights kept, or share of energy"
DEFAULTS: dict[str, Any] = {"ratio": 0.5, "energy": 0.0, "epochs": 3}
LIMITS = {"ratio": (0.01, 0.95), "energy": (0.0, 0.9999), "epochs": (0, 1000)}
LIBRARIES: tuple[str, ...] = ()
UNDOES = {"sparse": "the factors are dense", "cluster": "the factors share no values"}
_SMALL = 0.01  # a layer with less than this share of all weights is left: it gains nothing and loses as much
_ROUND = 8  # ranks are multiples of it where they are large enough, which vector units fill


@dataclass(frozen=True)
class _Size:
    """A layer as its product sees it: kernel elements, and the positions of its input and output on one sample."""

    outputs: int
    inputs: int
    kernel: int
    before: int
    after: int

    @property
    def weights(self) -> int:
        return self.outputs * self.inputs * self.kernel

    def pays(self, high: int, low: int) -> bool:
        """Whether ranks ``high`` of the outputs and ``low`` of the inputs need fewer weights, and fewer MACs, too.

        A stride makes the difference: what goes before the kernel has more positions than what goes after it.
        """
        if self.kernel == 1:
            return low * (self.inputs + self.outputs) < self.weights
        first, middle, last = low * self.inputs, low * high * self.kernel, high * self.outputs
        macs = first * self.before + (middle + last) * self.after
        return first + middle + last < self.weights and macs < self.weights * self.after


def needs(params: dict[str, Any]) -> str:
    """Training data to fine-tune."""
    return "training" if params["epochs"] else ""


def compress(network: Any, params: dict[str, Any], context: Context) -> Changed:
    """Factorise each layer that gets smaller by it, then fine-tune.

    Raises:
        UsageError: no layer gets smaller.
        IntegrityError: a weight is not finite.
    """
    from torch import nn

    layers = weighted(network)
    sizes = _sizes(network, layers, context)
    total = sum(parameter.numel() for parameter in network.parameters())
    left: dict[str, list[str]] = {}
    for name, layer in layers.items():
        # Exactly these kinds: a subclass may be used by its owner in ways that a chain of layers can't stand in for.
        if type(layer) not in (nn.Linear, nn.Conv1d, nn.Conv2d) or getattr(layer, "groups", 1) > 1 or name not in sizes:
            left.setdefault("grouped, transposed or used by their owner", []).append(name)
        elif layer.weight.numel() < _SMALL * total:
            left.setdefault("small", []).append(name)
        elif (made := _factorised(layer, sizes[name], params)) is None:
            left.setdefault("no smaller by it", []).append(name)
        else:
            _replace(network, name, made)
    why = "; ".join(f"{reason}: {listed(names)}" for reason, names in left.items())
    done = len(layers) - sum(len(names) for names in left.values())
    if not done:
        what = f"none of {len(layers)} layers gets smaller ({why})"
        raise UsageError(what, "step lowrank", "use a smaller ratio or energy")
    note = f"{done} of {len(layers)} layers factorised" + (f" ({why})" if why else "")
    return Changed(network, f"{note}; {fine_tune(network, context, params['epochs'], context.keep)}")


def _sizes(network: Any, layers: dict[str, Any], context: Context) -> dict[str, _Size]:
    """The sizes of those layers that are called as modules (an owner may read a layer's weight itself)."""
    import torch

    found = {}
    names = {layer: name for name, layer in layers.items()}

    def note(layer: Any, inputs: Any, output: Any) -> None:
        if not inputs:
            return  # called by keyword
        kernel = layer.weight[0, 0].numel()
        linear = layer.weight.dim() == 2  # noqa: PLR2004
        before, after = (value[0].numel() // value.shape[-1 if linear else 1] for value in (inputs[0], output))
        found[names[layer]] = _Size(len(layer.weight), layer.weight.shape[1], kernel, before, after)

    hooks = [layer.register_forward_hook(note) for layer in layers.values()]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # which calls no layer
    try:
        with torch.no_grad():
            network.eval()(*context.example())
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for hook in hooks:
            hook.remove()
    return found


def _replace(network: Any, name: str, made: Any) -> None:
    from torch import nn

    path, _, own = name.rpartition(".")
    parent = network.get_submodule(path)
    setattr(parent, own, made)
    if isinstance(parent, nn.TransformerEncoderLayer):
        parent.activation_relu_or_gelu = 0  # its fused path reads the weights of its linear layers itself


def _factorised(layer: Any, size: _Size, params: dict[str, Any]) -> Any:
    """The chain that stands in for ``layer``, or None where it would not be smaller."""
    split = _matrix if size.kernel == 1 else _tucker
    return split(layer, size, params["ratio"], params["energy"])


def _by_energy(values: Any, energy: float) -> int:
    """The least rank whose singular values hold this share of the sum of squares."""
    squares = values.square()
    return int((squares.cumsum(0) < energy * squares.sum()).sum()) + 1


def _rounded(rank: int) -> int:
    step = piece(rank, _ROUND)
    return rank // step * step


def _matrix(layer: Any, size: _Size, ratio: float, energy: float) -> Any:
    """Two layers by the SVD of the weight [o, i, 1 ...], with the square roots of the singular values in both."""
    import torch
    from torch import nn

    left, values, right = torch.linalg.svd(layer.weight.detach().double().flatten(1), full_matrices=False)
    even = ratio * size.weights / (size.inputs + size.outputs)
    rank = _by_energy(values, energy) if energy else _rounded(int(even))
    if rank < 1 or not size.pays(rank, rank):
        return None
    root = values[:rank].sqrt()
    factors = [root[:, None] * right[:rank], left[:, :rank] * root]
    if isinstance(layer, nn.Linear):
        first: Any = nn.Linear(size.inputs, rank, bias=False)
        second: Any = nn.Linear(rank, size.outputs, bias=layer.bias is not None)
    else:
        kind, mode = type(layer), layer.padding_mode
        first = kind(size.inputs, rank, 1, layer.stride, layer.padding, bias=False, padding_mode=mode)
        second = kind(rank, size.outputs, 1, bias=layer.bias is not None)
    return _filled([first, second], factors, layer.bias)


def _tucker(layer: Any, size: _Size, ratio: float, energy: float) -> Any:
    """Three layers: bases of the input and output channels, and the core between them.

    Padding may stay with the middle one, whatever its mode: a 1x1 layer without bias makes zero of zero, and a copy of
    a copy.
    """
    import torch

    weight = layer.weight.detach().double()  # [o, i, ...]
    left, high, _ = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    right, low, _ = torch.linalg.svd(weight.transpose(0, 1).flatten(1), full_matrices=False)
    ranks = (_by_energy(high, energy), _by_energy(low, energy)) if energy else _ranks(size, ratio)
    if min(ranks) < 1 or not size.pays(*ranks):
        return None
    left, right = left[:, : ranks[0]], right[:, : ranks[1]]
    core = torch.einsum("oi...,or,is->rs...", weight, left, right)
    kind = type(layer)
    middle = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    chain = [
        kind(size.inputs, ranks[1], 1, bias=False),
        kind(ranks[1], ranks[0], layer.kernel_size, **middle, bias=False, padding_mode=layer.padding_mode),
        kind(ranks[0], size.outputs, 1, bias=layer.bias is not None),
    ]
    return _filled(chain, [right.T, core, left], layer.bias)


def _ranks(size: _Size, ratio: float) -> tuple[int, int]:
    """Ranks (out, in), both the share s of the channels that solves s^2 o i k + s (o^2 + i^2) = ratio o i k."""
    a, b = size.weights, size.outputs**2 + size.inputs**2
    share = (-b + math.sqrt(b * b + 4 * a * ratio * a)) / (2 * a)
    return _rounded(int(size.outputs * share)), _rounded(int(size.inputs * share))


def _filled(layers: list[Any], weights: list[Any], bias: Any) -> Any:
    import torch
    from torch import nn

    with torch.no_grad():
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight.copy_(weight.reshape(layer.weight.shape))
        if bias is not None:
            layers[-1].bias.copy_(bias)
    return nn.Sequential(*layers)
