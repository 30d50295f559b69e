"""Cross-layer equalisation (Nagel et al. 2019, section 4.1): channels of like range, so that one scale fits them all.

Where the channels between layers can be scaled without changing the answers (`edgepipe.channels`), the ranges of the
weights before and after are made equal channel by channel: W1 / s and W2 * s with s = sqrt(r1 / r2). It pays for files
with one scale for each tensor; with one for each channel there is little left to gain.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from edgepipe import channels, dataflow
from edgepipe.errors import UsageError
from edgepipe.training import Changed

if TYPE_CHECKING:
    from edgepipe.channels import Group
    from edgepipe.training import Context

STEP = "equalize"
HELP = "evens out the ranges of channels between layers, the answers stay the same: for int8 with one scale a tensor"
DEFAULTS: dict[str, Any] = {"clip": "keep"}
CHOICES = {"clip": ("keep", "relu")}
LIBRARIES: tuple[str, ...] = ()

_ROUNDS, _SETTLED = 100, 1e-3  # groups share layers, so they are gone through until no factor is far from 1
_TINY = 1e-9
_TOLD = 3


def needs(params: dict[str, Any]) -> str:  # noqa: ARG001
    """No data: it looks at weights alone."""
    return ""


def compress(network: Any, params: dict[str, Any], context: Context) -> Changed:
    """Scale the parameters of ``network`` in place.

    ``clip=relu`` first puts ReLU in the place of ReLU6, which does not scale: that changes answers above 6.

    Raises:
        UsageError: no channels of it can be scaled; the error says why.
    """
    note = ""
    if params["clip"] == "relu" and (count := _unclip(network)):
        note = f"; {count} ReLU6 became ReLU"
    traced = dataflow.trace(network, context)
    found = [
        group for group in channels.groups(traced, context.keep.shared) if all(layer.weight for layer in group.makers)
    ]
    chosen = [group for group in found if not group.reason]
    if not chosen:
        fix = "leave equalize out" + (", or say clip=relu" if any(group.clipped for group in found) else "")
        raise UsageError(f"no channels between two layers can be scaled: {_reasons(found)}", STEP, fix)
    parameters = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    before = _precision(parameters, chosen)
    _equalise(parameters, chosen)
    after = _precision(parameters, chosen)
    layers = {layer.name for group in chosen for layer in (*group.makers, *(reader for reader, _ in group.readers))}
    told = f"{len(layers)} layers equalised in {len(chosen)} groups, precision of channels {before:.2f} -> {after:.2f}"
    left = [group for group in found if group.reason and group.readers]
    rest = f"; {len(left)} groups left alone: {_reasons(left)}" if left else ""
    return Changed(network, f"{told}{rest}{note}")


def _unclip(network: Any) -> int:
    """Replace ReLU6 modules by ReLU (ibid., section 5.1.1); how many."""
    from torch import nn

    places = [
        (owner, name)
        for owner in network.modules()
        for name, child in owner.named_children()
        if isinstance(child, nn.ReLU6)
    ]
    for owner, name in places:
        setattr(owner, name, nn.ReLU())
    return len(places)


def _reasons(groups: list[Group]) -> str:
    """Why groups are left alone: each by name if they are few, else the commonest reasons."""
    if len(groups) <= _TOLD:
        return ", ".join(f"{group.makers[0].name} {group.reason}" for group in groups) or "it has no layers"
    reasons = Counter(group.reason for group in groups).most_common(_TOLD)
    return ", ".join(f"{why} ({count})" for why, count in reasons)


def _equalise(parameters: dict[str, Any], groups: list[Group]) -> None:
    for _ in range(_ROUNDS):
        farthest = 0.0
        for group in groups:
            factors = _factors(parameters, group)
            channels.scale(parameters, group, factors)
            farthest = max(farthest, float(factors.log().abs().max()))
        if farthest < _SETTLED:
            return


def _factors(parameters: dict[str, Any], group: Group) -> Any:
    """The factor sqrt(r1 / r2) of each channel; 1 where a channel is dead on either side."""
    import torch

    made, read = _ranges(parameters, group)
    alive = (made > _TINY) & (read > _TINY)
    return torch.where(alive, (made / read.clamp_min(_TINY)).sqrt(), torch.ones(()))


def _ranges(parameters: dict[str, Any], group: Group) -> tuple[Any, Any]:
    """The largest weight that makes, and that reads, each channel."""
    import torch

    made = [channels.output_ranges(parameters, layer) for layer in group.makers]
    read = [channels.input_ranges(parameters, layer, place) for layer, place in group.readers]
    return torch.stack(made).amax(0), torch.stack(read).amax(0)


def _precision(parameters: dict[str, Any], groups: list[Group]) -> float:
    """What is maximised (ibid., eq. 8): a channel's range as a share of the largest, before times after, on average."""
    import torch

    shares = []
    for group in groups:
        made, read = _ranges(parameters, group)
        shares.append(made / made.max().clamp_min(_TINY) * read / read.max().clamp_min(_TINY))
    return float(torch.cat(shares).mean())
