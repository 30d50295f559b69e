"""SmoothQuant (Xiao et al. 2022): moves outlying activations of normalised channels into the weights that read them.

Between a LayerNorm or RMSNorm and the linear layers that alone read it, channel j is divided by
s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) (ibid., eq. 4) and the weights are multiplied: the answers stay the same,
but activations and weights both fit into eight bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe import channels, dataflow
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.training import Changed

if TYPE_CHECKING:
    from edgepipe.channels import Group
    from edgepipe.training import Context, Examples

STEP = "smooth"
HELP = "for transformers: shares outliers between LayerNorm and the linear layers behind it, the answers stay the same"
DEFAULTS: dict[str, Any] = {"alpha": 0.5}
LIMITS = {"alpha": (0.0, 1.0)}
LIBRARIES: tuple[str, ...] = ()

_BATCH = 8
_TOLD = 3
_LEAST = 1e-5  # of a range: a channel that is never used is left as it is


def needs(params: dict[str, Any]) -> str:  # noqa: ARG001
    """Calibration data: the largest activation of each channel is measured."""
    return "calibration"


def compress(network: Any, params: dict[str, Any], context: Context) -> Changed:
    """Scale the parameters of ``network`` in place.

    Raises:
        UsageError: no normalisation of it is read by linear layers alone, or there is no calibration data.
        IntegrityError: an activation is not finite.
    """
    if (samples := context.calibration) is None:
        raise UsageError("smooth needs calibration data", STEP, "name data in model.toml, [data] calibration")
    batch = min(_BATCH, len(samples))
    traced = dataflow.trace(network, context, batch)
    reasons = {group: _reason(group) for group in channels.groups(traced, context.keep.shared) if _norms(group)}
    chosen = [group for group, why in reasons.items() if not why]
    left = [f"{', '.join(_norms(group))} {why}" for group, why in reasons.items() if why]
    if not chosen:
        why = "; ".join(left[:_TOLD]) or "it has no LayerNorm or RMSNorm with a scale of its own"
        raise UsageError(f"no normalisation is read by linear layers alone: {why}", STEP, "leave smooth out")
    largest = _largest(traced, chosen, samples, batch)
    parameters = dict(network.named_parameters())
    before, after = 0.0, 0.0
    for group, activations in zip(chosen, largest, strict=True):
        factors = _factors(parameters, group, activations, params["alpha"])
        channels.scale(parameters, group, factors)
        before, after = before + _peak(activations), after + _peak(activations / factors)
    readers = sum(len(group.readers) for group in chosen)
    told = f"{len(chosen)} normalisations smoothed in front of {readers} linear layers"
    ratio = f"largest activation / median channel {before / len(chosen):.1f} -> {after / len(chosen):.1f}"
    rest = f"; left alone: {'; '.join(left[:_TOLD])}" if left else ""
    return Changed(network, f"{told}: {ratio}{rest}")


def _norms(group: Group) -> list[str]:
    """Normalisations among the makers of a group."""
    return [layer.name for layer in group.makers if layer.weight is None]


def _reason(group: Group) -> str:
    """Why the normalisations of a group are left alone, or ""."""
    others = [layer.name for layer in group.makers if layer.weight is not None]
    return f"is added to {others[0]}" if others else group.reason


def _peak(activations: Any) -> float:
    """How far the largest channel stands out."""
    return float(activations.max() / activations.median().clamp_min(_LEAST))


def _factors(parameters: dict[str, Any], group: Group, activations: Any, alpha: float) -> Any:
    import torch

    weights = torch.stack([channels.input_ranges(parameters, *reader) for reader in group.readers]).amax(0)
    used = (activations > _LEAST) & (weights > _LEAST)
    factors = activations.clamp_min(_LEAST) ** alpha / weights.clamp_min(_LEAST) ** (1 - alpha)
    return torch.where(used, factors, torch.ones(()))


def _largest(traced: Any, groups: list[Group], samples: Examples, batch: int) -> list[Any]:
    """The largest absolute activation of each channel of each group, over the calibration samples.

    Raises:
        IntegrityError: one is not finite.
    """
    import torch

    wanted = {place.node: place for group in groups for _, place in group.readers}
    seen: dict[Any, Any] = {}

    class Watcher(torch.fx.Interpreter):  # type: ignore[misc]
        def run_node(self, node: Any) -> Any:
            result = super().run_node(node)
            if place := wanted.get(node):
                size = result.abs().movedim(place.axis, 0).flatten(1).amax(1).reshape(-1, place.repeat).amax(1)
                seen[node] = torch.maximum(seen[node], size) if node in seen else size
            return result

    with torch.no_grad():
        for inputs, _ in samples.batches(batch):
            Watcher(traced).run(*(inputs if isinstance(inputs, tuple) else (inputs,)))
    for node, size in seen.items():
        if not torch.isfinite(size).all():
            raise IntegrityError("an activation is not finite on the calibration data", node.name, "check that data")
    return [torch.stack([seen[place.node] for _, place in group.readers]).amax(0) for group in groups]
