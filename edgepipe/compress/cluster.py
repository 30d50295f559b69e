"""Weight sharing: each layer's weights take one of a few values (Han et al. 2016, deep compression).

No runtime here stores codebooks, so the file keeps its size; packed (gzip, zstd) it shrinks to about log2(k) bits a
weight, and that is the figure to judge it by. Batch normalisation is folded into the weights first: exporters do so
anyway, and would make the few values many again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.compress._layers import also, weighted
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
    """
    import torch

    folded = _fold(network.eval())
    layers = {
        name: layer
        for name, layer in weighted(network).items()
        if len(layer.weight.detach().unique()) > params["clusters"]
    }
    if not layers:
        what = f"no layer has more than {params['clusters']} different weights"
        raise UsageError(what, "step cluster", "use fewer clusters")
    for name, layer in layers.items():
        sparse = f"{name}.weight" in context.keep.zeros
        with torch.no_grad():
            layer.weight.copy_(share(layer.weight.detach(), params["clusters"], keep_zeros=sparse))
    keep = also(context.keep, shared=tuple(f"{name}.weight" for name in layers))
    note = f"{len(layers)} layers of {params['clusters']} values, {folded} normalisations folded"
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


def _fold(network: Any) -> int:
    """Fold each batch normalisation into the convolution it follows; return how many. What can't be traced stays."""
    import torch
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    try:
        graph = torch.fx.symbolic_trace(network).graph
    except Exception:  # control flow that depends on data
        return 0
    modules, done = dict(network.named_modules()), 0
    for node in list(graph.nodes):
        if node.op != "call_module" or not isinstance(modules.get(node.target), nn.BatchNorm2d):
            continue
        (before,) = node.args[:1]
        single = before.op == "call_module" and len(before.users) == 1
        if not single or not isinstance(modules.get(before.target), nn.Conv2d):
            continue
        fused = fuse_conv_bn_eval(modules[before.target], modules[node.target])
        for target, module in ((before.target, fused), (node.target, nn.Identity())):
            parent, _, name = target.rpartition(".")
            setattr(network.get_submodule(parent), name, module)
        done += 1
    return done
