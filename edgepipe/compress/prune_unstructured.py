"""Unstructured pruning: single weights become zero. Files keep their size; what packs them (gzip, zstd) gains.

Magnitude (Han et al. 2015), gradient = |w dL/dw| (Molchanov et al. 2017; SNIP, Lee et al. 2019), movement =
-sum of w dL/dw while training (Sanh et al. 2020). 2:4 keeps the two larger of each four along a row (Mishra et al.
2021).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from edgepipe.compress._layers import also, weighted
from edgepipe.errors import UsageError
from edgepipe.training import Changed, fine_tune, outputs_of

if TYPE_CHECKING:
    from edgepipe.training import Context

STEP = "sparse"
HELP = "zeros in single weights of convolutions and linear layers; packed size shrinks, time rarely does"
DEFAULTS: dict[str, Any] = {"amount": 0.8, "pattern": "global", "criterion": "magnitude", "epochs": 1}
CHOICES = {"pattern": ("global", "layer", "2:4"), "criterion": ("magnitude", "gradient", "movement")}
LIMITS = {"amount": (0.01, 0.99), "epochs": (0, 1000)}
LIBRARIES: tuple[str, ...] = ()
_BATCHES = 64  # over which gradients are summed
_RATE = 1e-3


def needs(params: dict[str, Any]) -> str:
    """Training data to fine-tune or to take gradients on."""
    return "training" if params["epochs"] or params["criterion"] != "magnitude" else ""


def compress(network: Any, params: dict[str, Any], context: Context) -> Changed:
    """Zero the weights that matter least, then fine-tune the rest with the zeros held.

    Raises:
        UsageError: nothing to prune, a criterion without training data, or a layer would be emptied.
    """
    layers = weighted(network)
    scores = _scores(network, layers, params["criterion"], context)
    if params["pattern"] == "2:4":
        asked, note = 0.5, _two_of_four(layers, scores)
    else:
        asked, note = params["amount"], _prune(layers, scores, params["amount"], params["pattern"])
    for name, layer in layers.items():
        if not layer.weight.any():
            fix = "use a smaller amount, or pattern=layer"
            raise UsageError(f"{asked:g} would empty the layer {name}", f"step sparse:{asked:g}", fix)
    keep = also(context.keep, zeros=tuple(f"{name}.weight" for name in layers))
    trained = fine_tune(network, context, params["epochs"], keep)
    return Changed(network, f"{note}; {trained}", asked, keep)


def _scores(network: Any, layers: dict[str, Any], criterion: str, context: Context) -> dict[str, Any]:
    """How much each weight matters, by layer."""
    if criterion == "magnitude":
        return {name: layer.weight.detach().abs() for name, layer in layers.items()}
    if context.training is None or context.loss is None:
        fix = "use criterion=magnitude, or name data in model.toml, [data] training"
        raise UsageError(f"{criterion} needs gradients, and there is no training data", "step sparse", fix)
    import torch

    moving = copy.deepcopy(network).eval()  # running statistics stay as they are
    weights = {name: moving.get_submodule(name).weight for name in layers}
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(0)
    for number, (inputs, labels) in enumerate(context.training.batches(generator=generator)):
        if number == _BATCHES:
            break
        gradients = torch.autograd.grad(context.loss(outputs_of(moving(inputs)), labels), list(weights.values()))
        with torch.no_grad():
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                product = weight * gradient
                sums[name] += product.abs() if criterion == "gradient" else -product
                if criterion == "movement":
                    weight.sub_(gradient, alpha=_RATE)
        context.update(number + 1, _BATCHES, f"{criterion} of the weights")
    return sums


def _prune(layers: dict[str, Any], scores: dict[str, Any], amount: float, pattern: str) -> str:
    from torch.nn.utils import prune

    named = [(layer, "weight") for layer in layers.values()]
    if pattern == "global":
        # A movement may be negative, and the tool takes magnitudes: shifted, the order stays.
        low = min(float(score.min()) for score in scores.values())
        importance = {(layers[name], "weight"): score - min(low, 0.0) for name, score in scores.items()}
        prune.global_unstructured(named, prune.L1Unstructured, importance_scores=importance, amount=amount)
    else:
        for name, layer in layers.items():
            score = scores[name]
            prune.l1_unstructured(layer, "weight", amount, importance_scores=score - score.min().clamp(max=0.0))
    for layer, word in named:
        prune.remove(layer, word)
    zeros = sum(int((layer.weight == 0).sum()) for layer in layers.values())
    return f"{zeros:,} of {sum(layer.weight.numel() for layer in layers.values()):,} weights are zero, {pattern}"


def _two_of_four(layers: dict[str, Any], scores: dict[str, Any]) -> str:
    """Zero the two smaller of each four weights along the inputs of an output; rows that fours don't fill are left."""
    import torch

    done = 0
    for name, layer in layers.items():
        rows = scores[name].reshape(len(layer.weight), -1)
        if rows.shape[1] % 4:
            continue
        order = rows.reshape(len(rows), -1, 4).argsort(-1)
        mask = torch.ones_like(order, dtype=layer.weight.dtype).scatter_(-1, order[..., :2], 0.0)
        with torch.no_grad():
            layer.weight.mul_(mask.reshape(layer.weight.shape))
        done += 1
    if not done:
        raise UsageError("no layer's rows divide into fours", "step sparse:2:4", "use pattern=layer")
    return f"2:4 in {done} of {len(layers)} layers (the rows of the others don't divide into fours)"
