"""Low rank: a layer becomes two or three thinner ones.

Linear layers and 1x1 convolutions by the truncated singular value decomposition (Denton et al. 2014); larger
convolutions by Tucker-2 through the higher-order SVD of their channels (Kim et al. 2016): 1x1, k x k, 1x1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from edgepipe.errors import UsageError
from edgepipe.training import Changed, fine_tune

if TYPE_CHECKING:
    from edgepipe.training import Context

STEP = "lowrank"
HELP = "layers factorised into thinner ones (SVD, Tucker-2); ratio of weights kept, or share of energy"
DEFAULTS: dict[str, Any] = {"ratio": 0.5, "energy": 0.0, "epochs": 2}
LIMITS = {"ratio": (0.01, 0.95), "energy": (0.0, 0.9999), "epochs": (0, 1000)}
LIBRARIES: tuple[str, ...] = ()
UNDOES = {"sparse": "the factors are dense", "cluster": "the factors share no values"}
_SMALL = 0.01  # a layer with less than this share of all weights is left: it gains nothing and loses as much


def needs(params: dict[str, Any]) -> str:
    """Training data to fine-tune."""
    return "training" if params["epochs"] else ""


def compress(network: Any, params: dict[str, Any], context: Context) -> Changed:
    """Factorise each layer that gets smaller by it, then fine-tune.

    Raises:
        UsageError: no layer gets smaller.
    """
    from torch import nn

    total = sum(parameter.numel() for parameter in network.parameters())
    # Exactly these kinds: a subclass may be used by its owner in ways that a chain of layers can't stand in for.
    named = [(name, module) for name, module in network.named_modules() if type(module) in (nn.Linear, nn.Conv2d)]
    done = []
    for name, layer in named:
        made = _factorised(layer, params["ratio"], params["energy"])
        if layer.weight.numel() < _SMALL * total or made is None:
            continue
        parent = network.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], made)
        if isinstance(parent, nn.TransformerEncoderLayer):
            parent.activation_relu_or_gelu = 0  # its fused path reads the weights of its linear layers itself
        done.append(name)
    if not done:
        what = f"none of {len(named)} layers gets smaller (grouped ones can't, small ones don't pay)"
        raise UsageError(what, "step lowrank", "use a smaller ratio or energy")
    note = f"{len(done)} of {len(named)} layers factorised (grouped and small ones are left)"
    return Changed(network, f"{note}; {fine_tune(network, context, params['epochs'], context.keep)}")


def _factorised(layer: Any, ratio: float, energy: float) -> Any:
    """The chain that stands in for ``layer``, or None where it would not be smaller."""
    from torch import nn

    if isinstance(layer, nn.Linear):
        return _linear(layer, ratio, energy)
    if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    if math.prod(layer.kernel_size) == 1:
        return _pointwise(layer, ratio, energy)
    return _tucker(layer, ratio, energy)


def _svd(matrix: Any, ratio: float, energy: float) -> tuple[Any, Any] | None:
    """Factors [o, r] and [r, i] of ``matrix`` [o, i] with the square roots of the singular values in both."""
    import torch

    rows, columns = matrix.shape
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    most = int(rows * columns / (rows + columns) - 1e-9)  # the largest rank that makes it smaller
    rank = _by_energy(values, energy) if energy else int(ratio * rows * columns / (rows + columns))
    if not 1 <= rank <= most:
        return None
    root = values[:rank].sqrt()
    return (left[:, :rank] * root).float(), (root[:, None] * right[:rank]).float()


def _by_energy(values: Any, energy: float) -> int:
    """The least rank whose singular values hold this share of the sum of squares."""
    squares = values.square()
    return int((squares.cumsum(0) < energy * squares.sum()).sum()) + 1


def _linear(layer: Any, ratio: float, energy: float) -> Any:
    from torch import nn

    factors = _svd(layer.weight.detach(), ratio, energy)
    if factors is None:
        return None
    rank = factors[1].shape[0]
    first = nn.Linear(layer.in_features, rank, bias=False)
    second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
    return _filled([first, second], [factors[1], factors[0]], layer.bias)


def _pointwise(layer: Any, ratio: float, energy: float) -> Any:
    from torch import nn

    factors = _svd(layer.weight.detach().flatten(1), ratio, energy)
    if factors is None:
        return None
    rank = factors[1].shape[0]
    first = nn.Conv2d(layer.in_channels, rank, 1, layer.stride, layer.padding, bias=False)
    second = nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None)
    return _filled([first, second], [factors[1][..., None, None], factors[0][..., None, None]], layer.bias)


def _tucker(layer: Any, ratio: float, energy: float) -> Any:
    import torch
    from torch import nn

    weight = layer.weight.detach().double()  # [o, i, h, w]
    out, inp = weight.shape[:2]
    left, high, _ = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    right, low, _ = torch.linalg.svd(weight.transpose(0, 1).flatten(1), full_matrices=False)
    if energy:
        ranks = _by_energy(high, energy), _by_energy(low, energy)
    else:
        ranks = _ranks(out, inp, math.prod(layer.kernel_size), ratio)
    size = ranks[1] * inp + math.prod(ranks) * math.prod(layer.kernel_size) + ranks[0] * out
    if min(ranks) < 1 or size >= weight.numel():
        return None
    left, right = left[:, : ranks[0]], right[:, : ranks[1]]
    core = torch.einsum("oihw,or,is->rshw", weight, left, right)
    first = nn.Conv2d(inp, ranks[1], 1, bias=False)
    middle = nn.Conv2d(ranks[1], ranks[0], layer.kernel_size, layer.stride, layer.padding, layer.dilation, bias=False)
    last = nn.Conv2d(ranks[0], out, 1, bias=layer.bias is not None)
    values = [right.T[..., None, None].float(), core.float(), left[..., None, None].float()]
    return _filled([first, middle, last], values, layer.bias)


def _ranks(out: int, inp: int, kernel: int, ratio: float) -> tuple[int, int]:
    """Ranks (out, in), both the share s of the channels that solves s^2 o i k + s (o^2 + i^2) = ratio o i k."""
    a, b, c = out * inp * kernel, out * out + inp * inp, ratio * out * inp * kernel
    share = (-b + math.sqrt(b * b + 4 * a * c)) / (2 * a)
    return int(out * share), int(inp * share)


def _filled(layers: list[Any], weights: list[Any], bias: Any) -> Any:
    import torch
    from torch import nn

    with torch.no_grad():
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight.copy_(weight)
        if bias is not None:
            layers[-1].bias.copy_(bias)
    return nn.Sequential(*layers)
