"""Low-rank adaptation (Hu et al. 2021): the weights stay, a thin product beside each layer learns and is then merged.

With ``base`` int8 or int4 the weights are rounded first and the adapter learns what the rounding lost (quantise, then
adapt: Dettmers et al. 2023); a file step behind it rounds the merged weights again. The adapters are peft's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.compress._layers import listed, weighted
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.training import Changed, fit, outputs_of, taught

if TYPE_CHECKING:
    from edgepipe.training import Context

STEP = "lora"
HELP = "low-rank adapters learn from the training data while the weights stay, then are merged; rank, base int8 or int4"
DEFAULTS: dict[str, Any] = {"rank": 4, "epochs": 3, "base": "float"}
CHOICES = {"base": ("float", "int8", "int4")}
LIMITS = {"rank": (1, 256), "epochs": (1, 1000)}
LIBRARIES: tuple[str, ...] = ("peft",)
UNDOES = {"sparse": "merged adapters are dense", "cluster": "merged weights share no values"}

_RATE = 3e-3  # higher than for all weights: the adapters begin at zero
_ALPHA = 0.5  # of the teacher's answers beside the labels
_SPREAD = 1e-3  # of outputs, relative to the largest: what merging may change
_TINY = 1e-12


def needs(params: dict[str, Any]) -> str:  # noqa: ARG001
    """Training data."""
    return "training"


def compress(network: Any, params: dict[str, Any], context: Context) -> Changed:
    """Train adapters beside the layers of ``network`` and merge them into it; its structure stays.

    Raises:
        UsageError: peft is missing, no layer can be adapted, or there is no training data.
        IntegrityError: the training diverged, or the merged network answers otherwise than with its adapters beside it.
    """
    names = _adaptable(network)
    if params["base"] != "float":
        _round(network, names, 4 if params["base"] == "int4" else 8)
    total = sum(parameter.numel() for parameter in network.parameters())
    _inject(network, names, params["rank"])
    own = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    norms = _hold_statistics(network)
    told = fit(network, context, taught(context, _ALPHA), epochs=params["epochs"], rate=_RATE)
    for norm in norms:
        del norm.train
    _merge_checked(network, names, context)
    for parameter in network.parameters():
        parameter.requires_grad_(requires_grad=True)
    size = f"{own:,} parameters, {own / total:.2%} of {total:,}, {4 * own:,} bytes in float"
    kept = "" if params["base"] == "float" else f" on weights rounded to {params['base']}"
    return Changed(
        network, f"adapters of rank {params['rank']} beside {len(names)} layers{kept} ({size}), merged: {told}"
    )


def _adaptable(network: Any) -> list[str]:
    """Linear layers and convolutions that are called as such.

    Raises:
        UsageError: there is none.
    """
    from torch import nn

    found = weighted(network)
    names = [
        name
        for name, layer in found.items()
        if type(layer) in (nn.Linear, nn.Conv2d) and getattr(layer, "groups", 1) == 1
    ]
    if not names:
        what = f"no layer of this network can be adapted (grouped or transposed: {listed(list(found))})"
        raise UsageError(what, "step lora", "use a step that trains all weights, as distill does")
    return names


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


def _inject(network: Any, names: list[str], rank: int) -> None:
    """Put adapters beside the layers, and let nothing else learn."""
    try:
        import peft
    except ImportError:
        raise UsageError("the package peft is missing", "step lora", "pip install 'edgepipe[lora]'") from None
    import torch

    torch.manual_seed(0)
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, bias="none", target_modules=names)
    peft.inject_adapter_in_model(config, network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("lora_" in name)


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


def _merge_checked(network: Any, names: list[str], context: Context) -> None:
    """Merge the adapters, and hold the answers against those with the adapters beside."""
    import torch

    assert context.training is not None
    inputs, _ = context.training.take(list(range(min(8, len(context.training)))))
    with torch.no_grad():
        before = outputs_of(network.eval()(inputs))
        for name in names:
            path, _, own = name.rpartition(".")
            layer = network.get_submodule(name)
            layer.merge()
            setattr(network.get_submodule(path), own, layer.get_base_layer())
        after = outputs_of(network(inputs))
    for one, other in zip(before, after, strict=True):
        if not float((one - other).abs().max()) <= _SPREAD * max(1.0, float(one.abs().max())):
            raise IntegrityError("the merged network answers otherwise", "step lora", "please report this model")
