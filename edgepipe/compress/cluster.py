"""Weight sharing: each layer's weights take one of a few values (Han et al. 2016, deep compression).

No runtime here stores codebooks, so the file keeps its size; packed (gzip, zstd) it shrinks to about log2(k) bits a
weight, and that is the figure to judge it by. Batch normalisation is folded into the weights first: exporters do so
anyway, and would make the few values many again.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from edgepipe.compress._layers import others, weights
from edgepipe.errors import UsageError
from edgepipe.training import Changed, fine_tune

if TYPE_CHECKING:
    from edgepipe.training import Context

STEP = "cluster"
HELP = "weights of a layer share a few values (k-means); the packed size shrinks to about log2(k) bits a weight"
DEFAULTS: dict[str, Any] = {"clusters": 16, "epochs": 2}
LIMITS = {"clusters": (2, 256), "epochs": (0, 1000)}
LIBRARIES: tuple[str, ...] = ()
_ROUNDS = 40
_RATE = 2e-3  # it moves few values, each the mean of many weights


def needs(params: dict[str, Any]) -> str:
    """Training data to fine-tune the shared values."""
    return "training" if params["epochs"] else ""


def compress(network: Any, params: dict[str, Any], context: Context) -> Changed:
    """Share values within each layer, then fine-tune the values themselves.

    Raises:
        UsageError: no layer has more different weights than there are to be clusters.
        IntegrityError: a weight is not finite.
    """
    import torch

    note = _fold(network.eval())
    treated = {
        name: weight for name, weight in weights(network).items() if len(weight.detach().unique()) > params["clusters"]
    }
    if not treated:
        what = f"no layer has more than {params['clusters']} different weights"
        raise UsageError(what, "step cluster", "use fewer clusters")
    with torch.no_grad():
        for name, weight in treated.items():
            zeros = name in context.keep.zeros
            weight.copy_(share(weight.detach(), params["clusters"], keep_zeros=zeros))
    keep = context.keep.also(shared=tuple(treated))
    note = f"{params['clusters']} values in each of {len(treated)} layers{others(network, treated)}; {note}"
    return Changed(network, f"{note}; {fine_tune(network, context, params['epochs'], keep, _RATE)}", keep=keep)


def share(weight: Any, clusters: int, *, keep_zeros: bool = False) -> Any:
    """``weight`` with each element replaced by the nearest of ``clusters`` values: k-means on a line (Lloyd 1982).

    The values start at quantiles. With ``keep_zeros`` what is zero stays zero and is one of the values.
    """
    import torch

    flat = weight.flatten()
    chosen = flat[flat != 0] if keep_zeros else flat
    count = clusters - 1 if keep_zeros else clusters
    ordered = chosen.sort().values
    places = ((torch.arange(count) + 0.5) * len(ordered) / count).long()
    values = ordered[places].unique()
    for _ in range(_ROUNDS):
        nearest = torch.bucketize(chosen, (values[1:] + values[:-1]) / 2)
        sums = torch.zeros(len(values)).index_add_(0, nearest, chosen)
        sizes = torch.bincount(nearest, minlength=len(values))
        moved = torch.where(sizes > 0, sums / sizes.clamp(min=1), values).sort().values
        if torch.equal(moved, values):
            break
        values = moved
    shared = values[torch.bucketize(flat, (values[1:] + values[:-1]) / 2)]
    if keep_zeros:
        shared = torch.where(flat == 0, flat, shared)
    return shared.reshape(weight.shape)


def _fold(network: Any) -> str:
    """Fold each batch normalisation into the layer it follows; one line on it. What can't be traced stays."""
    import torch
    from torch import nn
    from torch.nn.utils import fusion

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    total = sum(isinstance(module, kinds) for module in network.modules())
    try:
        nodes = list(torch.fx.symbolic_trace(network).graph.nodes)
    except Exception:  # control flow that depends on data
        nodes = []
    modules, calls = dict(network.named_modules()), Counter(node.target for node in nodes if node.op == "call_module")
    done = 0
    for node in nodes:
        if node.op != "call_module" or not isinstance(modules.get(node.target), kinds):
            continue
        before = node.all_input_nodes[0]
        layer = modules.get(before.target) if before.op == "call_module" and len(before.users) == 1 else None
        if calls[node.target] > 1 or calls[before.target] > 1:  # one layer with two normalisations, or the reverse
            continue
        if isinstance(layer, nn.Conv1d | nn.Conv2d):
            fused = fusion.fuse_conv_bn_eval(layer, modules[node.target])
        elif isinstance(layer, nn.Linear):
            fused = fusion.fuse_linear_bn_eval(layer, modules[node.target])
        else:
            continue
        for target, module in ((before.target, fused), (node.target, nn.Identity())):
            parent, _, name = target.rpartition(".")
            setattr(network.get_submodule(parent), name, module)
        done += 1
    kept = f", {total - done} could not: exporters may still, and make the values many" if total > done else ""
    return f"{done} normalisations folded in{kept}"
