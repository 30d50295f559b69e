"""Low-rank adaptation (Hu et al. 2021): the weights stay, a thin product beside each layer learns and is then merged.

A layer so small that its adapter would save less than half, as a classifier's last one is, learns in full instead.
With ``base`` int8 or int4 the weights are rounded first and the adapter learns what the rounding lost (quantise, then
adapt: Dettmers et al. 2023); a file step behind it rounds the merged weights again. With ``merge=no`` the adapters stay
beside the layers, and the base is a file of its own that all adapters share. The adapters are peft's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.compress._layers import listed, weighted
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.training import BATCH, Changed, answers, fit, taught

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepipe.training import Context

STEP = "lora"
HELP = "low-rank adapters learn from the training data while the weights stay, then are merged; rank, base int8 or int4"
DEFAULTS: dict[str, Any] = {"rank": 4, "epochs": 3, "base": "float", "alpha": 0.5, "merge": "yes"}
CHOICES = {"base": ("float", "int8", "int4"), "merge": ("yes", "no")}
LIMITS = {"rank": (1, 256), "epochs": (1, 1000), "alpha": (0.0, 1.0)}
LIBRARIES: tuple[str, ...] = ("peft",)
LEARNS = True  # and without training does nothing
UNDOES = {"sparse": "merged adapters are dense", "cluster": "merged weights share no values"}

_RATE = 3e-3  # higher than for all weights: the adapters begin at zero
_PASS, _LEAST = 32, 8  # steps that an epoch over few samples has at least, and the smallest batch for that
_SAVES = 2  # an adapter has fewer parameters than its layer by this factor, or the layer itself learns
_LOW = 4  # ranks below count as this one there: adapters of ranks 1 to 4 change the same layers, and share a base
_SPREAD = 1e-3  # of outputs, relative to the largest: what merging may change
_TINY = 1e-12


def needs(params: dict[str, Any]) -> str:  # noqa: ARG001
    """Training data."""
    return "training"


def compress(network: Any, params: dict[str, Any], context: Context) -> Changed:
    """Train adapters beside the layers of ``network`` and merge them into it; without ``merge`` they stay beside them.

    Raises:
        UsageError: peft is missing, no layer can be adapted, or there is no training data.
        IntegrityError: the training diverged, or the merged network answers otherwise than with its adapters beside it.
    """
    names, small = _adaptable(network, params["rank"])
    if params["base"] != "float":
        _round(network, names, 4 if params["base"] == "int4" else 8)
    total = sum(parameter.numel() for parameter in network.parameters())
    _inject(network, names, small, params["rank"])
    own = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    norms = _hold_statistics(network)
    objective = taught(context, params["alpha"])
    told = fit(network, context, objective, epochs=params["epochs"], rate=_RATE, batch=_batch(context))
    for norm in norms:
        del norm.train
    merged = params["merge"] == "yes"
    _replace_checked(network, names, context, _merged if merged else _beside)
    for parameter in network.parameters():
        parameter.requires_grad_(requires_grad=True)
    size = f"{own:,} parameters, {own / total:.2%} of {total:,}, {4 * own:,} bytes in float"
    kept = "" if params["base"] == "float" else f" on weights rounded to {params['base']}"
    beside = f"{len(names)} layers{kept}" + (f", {listed(small)} in full" if small else "")
    note = f"adapters of rank {params['rank']} beside {beside} ({size}), {'merged' if merged else 'not merged'}: {told}"
    return Changed(network, note, learnt=() if merged else _learnt(network, names, small))


def apart(params: dict[str, Any]) -> str:
    """Why the file of this step must be the recipe's last; empty where it need not."""
    return "" if params["merge"] == "yes" else "merge=no leaves the base as a file of its own, which stays on the board"


def _batch(context: Context) -> int:
    """The size of a batch: smaller than usual for few samples, of which the usual one makes a handful of steps."""
    count = len(context.training) if context.training else 0
    return min(BATCH, max(_LEAST, count // _PASS))


def _adaptable(network: Any, rank: int) -> tuple[list[str], list[str]]:
    """Linear layers and convolutions that are called as such: those to be adapted, and those that learn in full.

    Raises:
        UsageError: there is none to be adapted.
    """
    from torch import nn

    found = weighted(network)
    names = [
        name
        for name, layer in found.items()
        if type(layer) in (nn.Linear, nn.Conv2d) and getattr(layer, "groups", 1) == 1
    ]
    least = _SAVES * max(rank, _LOW)
    small = [name for name in names if found[name].weight.numel() < least * _ends(found[name].weight)]
    names = [name for name in names if name not in small]
    if not names:
        what = f"no layer of this network can be adapted (grouped, transposed or too small: {listed(list(found))})"
        raise UsageError(what, "step lora", "use a smaller rank, or a step that trains all weights, as distill does")
    return names, small


def _ends(weight: Any) -> int:
    """Parameters of an adapter of rank 1: what goes in, kernel included, and what comes out."""
    return int(weight[0].numel() + len(weight))


def _round(network: Any, names: list[str], bits: int) -> None:
    """Weights of the layers to the nearest of 2^bits - 1 steps, symmetric, with a scale for each output."""
    import torch

    most = 2 ** (bits - 1) - 1
    with torch.no_grad():
        for name in names:
            weight = network.get_submodule(name).weight
            scale = weight.abs().flatten(1).amax(1).clamp_min(_TINY) / most
            scale = scale.reshape(-1, *[1] * (weight.dim() - 1))
            weight.copy_((weight / scale).round().clamp(-most, most) * scale)


def _inject(network: Any, names: list[str], small: list[str], rank: int) -> None:
    """Put adapters beside the layers ``names``, and let nothing learn but them and the layers ``small``."""
    try:
        import peft
    except ImportError:
        raise UsageError("the package peft is missing", "step lora", "pip install 'edgepipe[lora]'") from None
    import torch

    torch.manual_seed(0)
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, bias="none", target_modules=names)
    peft.inject_adapter_in_model(config, network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("lora_" in name or name.rpartition(".")[0] in small)


def _hold_statistics(network: Any) -> list[Any]:
    """Have batch normalisations compute as the file will, while the rest is in training mode.

    What they have seen is no part of the adapter, and adapters that learn with a batch's own statistics learn for
    another network than the one that is exported.
    """
    from torch import nn

    found = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in found:
        norm.eval()
        norm.train = lambda *_, norm=norm: norm
    return found


def _replace_checked(network: Any, names: list[str], context: Context, make: Callable[[Any], Any]) -> None:
    """Put what ``make`` makes of each of peft's layers in its place, and hold the answers against those before."""
    import torch

    assert context.training is not None
    inputs, _ = context.training.take(list(range(min(8, len(context.training)))))
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused encoder layer reads the base's weight past its adapter
    try:
        with torch.no_grad():
            before = answers(network.eval(), inputs)
            for name in names:
                path, _, own = name.rpartition(".")
                setattr(network.get_submodule(path), own, make(network.get_submodule(name)))
            after = answers(network, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    for one, other in zip(before, after, strict=True):
        if not float((one - other).abs().max()) <= _SPREAD * max(1.0, float(one.abs().max())):
            raise IntegrityError("the merged network answers otherwise", "step lora", "please report this model")


def _merged(layer: Any) -> Any:
    """The plain layer with the adapter in its weight."""
    layer.merge()
    return layer.get_base_layer()


def _beside(layer: Any) -> Any:
    """The plain layer and its adapter, as a layer that needs no peft."""
    from edgepipe.adapted import Adapted

    (name,) = layer.active_adapters
    down, up = layer.lora_A[name], layer.lora_B[name]
    up.weight.mul_(layer.scaling[name])
    return Adapted(layer.get_base_layer(), down, up)


def _learnt(network: Any, names: list[str], small: list[str]) -> tuple[str, ...]:
    """Names in state_dict of what an adapter is made of."""
    owners = [*small, *(f"{name}.{part}" for name in names for part in ("down", "up"))]
    return tuple(name for name, _ in network.named_parameters() if name.rpartition(".")[0] in owners)
