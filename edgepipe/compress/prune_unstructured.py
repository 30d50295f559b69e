"""Unstructured pruning: single weights become zero. Files keep their size; what packs them (gzip, zstd) gains.

Magnitude (Han et al. 2015), gradient = |w dL/dw| (SNIP, Lee et al. 2019), movement = -sum of w dL/dw while training
(Sanh et al. 2020). 2:4 keeps the two that matter more of each four along a row (Mishra et al. 2021).

All matrices and kernels are treated alike, the first and the last layer too: over the whole network by magnitude these
keep most of their weights by themselves. Biases, normalisations and embeddings stay as they are.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from edgepipe.compress._layers import others, weights
from edgepipe.errors import UsageError
from edgepipe.training import Changed, answers, fine_tune

if TYPE_CHECKING:
    from edgepipe.training import Context

STEP = "sparse"
HELP = "zeros in single weights of convolutions and linear layers; packed size shrinks, time rarely does"
DEFAULTS: dict[str, Any] = {"amount": 0.8, "pattern": "global", "criterion": "magnitude", "epochs": 3}
CHOICES = {"pattern": ("global", "layer", "2:4"), "criterion": ("magnitude", "gradient", "movement")}
LIMITS = {"amount": (0.01, 0.99), "epochs": (0, 1000)}
LIBRARIES: tuple[str, ...] = ()
_BATCHES = 64  # over which gradients are summed
_RATE = 1e-3  # of the plain gradient descent by which movement is seen
_FOUR, _KEPT = 4, 2


def needs(params: dict[str, Any]) -> str:
    """Training data to fine-tune or to take gradients on."""
    return "training" if params["epochs"] or params["criterion"] != "magnitude" else ""


def compress(network: Any, params: dict[str, Any], context: Context) -> Changed:
    """Zero the weights that matter least, then fine-tune the rest with the zeros held.

    Raises:
        UsageError: nothing to prune, a criterion without training data, or a layer would be emptied.
        IntegrityError: a weight is not finite.
    """
    import torch

    treated = weights(network)
    scores = _scores(network, treated, params["criterion"], context)
    if params["pattern"] == "2:4":
        asked, (masks, note) = 1 - _KEPT / _FOUR, _two_of_four(scores)
    elif params["pattern"] == "layer":
        asked, note = params["amount"], "in each layer"
        masks = {name: _largest(score, asked) for name, score in scores.items()}
    else:
        asked, note = params["amount"], "over the whole network"
        flat = _largest(torch.cat([score.flatten() for score in scores.values()]), asked)
        parts = flat.split([score.numel() for score in scores.values()])
        masks = {name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)}
    with torch.no_grad():
        for name, mask in masks.items():
            if treated[name].any() and not (treated[name] * mask).any():
                fix = "use a smaller amount, or pattern=layer"
                raise UsageError(f"{asked:g} would empty {name}", f"step sparse:{asked:g}", fix)
            treated[name].mul_(mask)
    zeros, total = (sum(int(value) for value in found) for found in zip(*map(_counts, treated.values()), strict=True))
    keep = context.keep.also(zeros=tuple(masks))
    trained = fine_tune(network, context, params["epochs"], keep)
    return Changed(
        network, f"{zeros:,} of {total:,} weights are zero, {note}{others(network, treated)}; {trained}", asked, keep
    )


def _counts(weight: Any) -> tuple[int, int]:
    """How many values are zero, and how many there are."""
    return int((weight == 0).sum()), weight.numel()


def _scores(network: Any, treated: dict[str, Any], criterion: str, context: Context) -> dict[str, Any]:
    """How much each weight matters; what is zero already matters least."""
    import torch

    if criterion == "magnitude":
        return {name: weight.detach().abs() for name, weight in treated.items()}
    if context.training is None or context.loss is None:
        fix = "use criterion=magnitude, or name data in model.toml, [data] training"
        raise UsageError(f"{criterion} needs gradients, and there is no training data", "step sparse", fix)
    moving = copy.deepcopy(network).eval()  # running statistics stay as they are
    values = {name: moving.get_parameter(name).requires_grad_(True) for name in treated}
    sums = {name: torch.zeros_like(value) for name, value in values.items()}
    batches = context.training.batches(generator=torch.Generator().manual_seed(0))
    for number, (inputs, labels) in zip(range(_BATCHES), batches, strict=False):
        gradients = torch.autograd.grad(context.loss(answers(moving, inputs), labels), list(values.values()))
        with torch.no_grad():
            for (name, value), gradient in zip(values.items(), gradients, strict=True):
                product = value * gradient
                sums[name] += product.abs() if criterion == "gradient" else -product
                if criterion == "movement":
                    value.sub_(gradient, alpha=_RATE)
        context.update(number + 1, _BATCHES, f"{criterion} of the weights")
    return {name: score.masked_fill(treated[name] == 0, -torch.inf) for name, score in sums.items()}


def _largest(scores: Any, amount: float) -> Any:
    """A mask: 0 for the share ``amount`` of lowest scores, else 1."""
    import torch

    mask = torch.ones_like(scores)
    lowest = scores.flatten().argsort(stable=True)[: round(amount * scores.numel())]
    mask.view(-1)[lowest] = 0
    return mask


def _two_of_four(scores: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Masks with two ones in each four along the inputs of an output, of those rows that divide into fours."""
    import torch

    masks = {}
    for name, score in scores.items():
        rows = score.flatten(1)
        if rows.shape[1] % _FOUR == 0:
            order = rows.reshape(len(rows), -1, _FOUR).argsort(-1)
            mask = torch.ones_like(order, dtype=score.dtype).scatter_(-1, order[..., :-_KEPT], 0.0)
            masks[name] = mask.reshape(score.shape)
    if not masks:
        raise UsageError("no layer's rows divide into fours", "step sparse:2:4", "use pattern=layer")
    return masks, f"2:4 in {len(masks)} of {len(scores)} layers (the rows of the others don't divide into fours)"
