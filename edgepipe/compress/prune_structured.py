"""Structured pruning: whole channels go, with all that depends on them, so shapes, MACs and the file shrink.

torch-pruning (Fang et al. 2023, DepGraph) finds the groups of layers whose channels belong together. Importance of a
group: L1 or L2 norm of its weights (Li et al. 2017), first-order Taylor (Molchanov et al. 2019), or the scale of its
batch normalisation (Liu et al. 2017).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgepipe.compress._layers import weighted
from edgepipe.errors import UsageError
from edgepipe.training import Changed, fine_tune, outputs_of

if TYPE_CHECKING:
    from edgepipe.training import Context

STEP = "prune"
HELP = "whole channels go, by the share of MACs (or channels, or host latency) to remove; then fine-tuning"
DEFAULTS: dict[str, Any] = {"amount": 0.5, "importance": "l2", "scope": "global", "by": "macs", "epochs": 4}
CHOICES = {
    "importance": ("l1", "l2", "taylor", "bn"),
    "scope": ("global", "uniform"),
    "by": ("macs", "channels", "latency"),
}
LIMITS = {"amount": (0.01, 0.95), "epochs": (0, 1000)}
LIBRARIES = ("torch-pruning",)
UNDOES = {"cluster": "fine-tuning without the removed channels has no use for the shared values"}
_STEPS = 60  # cuts on the way to the largest ratio, so that the target is met closely
_LARGEST = 0.95  # of the channels of one layer
_BATCHES = 16  # for the gradients of Taylor importance
_ACTIVATIONS = ("Relu", "Gelu", "Silu", "Hardswish", "Tanh", "Sigmoid", "Elu", "Mish")  # as autograd names them
_TIMED, _BATCH = 15, 32  # runs of the module on the host, and their batch, for by=latency


def needs(params: dict[str, Any]) -> str:
    """Training data to fine-tune; gradients for Taylor importance."""
    return "training" if params["epochs"] or params["importance"] == "taylor" else ""


def compress(network: Any, params: dict[str, Any], context: Context) -> Changed:
    """Remove channels until the target is met, then fine-tune with the float model as teacher.

    Raises:
        UsageError: nothing can be pruned, the target can't be met, or Taylor importance lacks data.
    """
    import torch_pruning as tp

    layers = weighted(network)
    fixed = _fixed(network, layers, context)
    if len(fixed) == len(layers):
        what = f"none of {len(layers)} layers can lose channels: outputs, or tied to normalisations and heads"
        raise UsageError(what, "step prune", "use sparse, lowrank, or a recipe on the file")
    if params["importance"] == "bn" and not _has_norm(network):
        raise UsageError("the network has no batch normalisation", "step prune:importance=bn", "use importance=l2")
    channels = sum(layer.weight.shape[0] for layer in layers.values())
    cost = _cost(network, params["by"], context)
    before = cost()
    pruner = tp.pruner.BasePruner(
        network,
        context.example(),
        importance=_importance(params["importance"]),
        global_pruning=params["scope"] == "global",
        pruning_ratio=params["amount"] if params["by"] == "channels" else _LARGEST,
        max_pruning_ratio=_LARGEST,
        iterative_steps=1 if params["by"] == "channels" else _STEPS,
        ignored_layers=fixed,
        round_to=_round_to([layer for layer in layers.values() if layer not in fixed]),
    )
    _cut(pruner, network, params, context, lambda: cost() / before)
    after = cost()
    left = sum(layer.weight.shape[0] for layer in weighted(network).values())
    unit = {"macs": "MACs", "channels": "channels", "latency": "ms on this host, eager"}[params["by"]]
    note = f"{channels - left} of {channels} channels removed, {before:,.6g} -> {after:,.6g} {unit}"
    return Changed(network, f"{note}; {fine_tune(network, context, params['epochs'], context.keep)}")


def _cut(pruner: Any, network: Any, params: dict[str, Any], context: Context, share: Callable[[], float]) -> None:
    """Let the pruner step until the share of the cost that is left is the one asked for."""
    steps = 1 if params["by"] == "channels" else _STEPS
    for step in range(steps):
        if params["importance"] == "taylor":
            _gradients(network, context)
        pruner.step()
        left = share()
        context.update(step + 1, steps, f"{left:.0%} left")
        if left <= 1 - params["amount"]:
            return
    if params["by"] != "channels":
        what = f"only {1 - share():.0%} could be removed, not {params['amount']:.0%}"
        raise UsageError(what, f"step prune:{params['amount']:g}", "ask for less, or by=channels")


def _cost(network: Any, by: str, context: Context) -> Callable[[], float]:
    import torch
    import torch_pruning as tp

    if by == "macs":
        return lambda: float(tp.utils.count_ops_and_params(network, context.example())[0])
    if by == "channels":
        return lambda: float(sum(layer.weight.shape[0] for layer in weighted(network).values()))
    inputs = context.example(_BATCH)

    def latency() -> float:
        times = []
        with torch.inference_mode():
            for _ in range(_TIMED):
                start = time.perf_counter_ns()
                network(*inputs)
                times.append(time.perf_counter_ns() - start)
        return statistics.median(times) / 1e6 / _BATCH

    return latency


def _importance(name: str) -> Any:
    import torch_pruning as tp

    if name == "taylor":
        return tp.importance.GroupTaylorImportance()
    if name == "bn":
        return tp.importance.BNScaleImportance()
    return tp.importance.GroupMagnitudeImportance(p=1 if name == "l1" else 2)


def _gradients(network: Any, context: Context) -> None:
    """Gradients of the task's loss over a few batches, summed where torch-pruning looks for them."""
    import torch

    if context.training is None or context.loss is None:
        fix = "use importance=l2, or name data in model.toml, [data] training"
        raise UsageError("Taylor importance needs training data", "step prune:importance=taylor", fix)
    network.zero_grad()
    batches = context.training.batches(generator=torch.Generator().manual_seed(0))
    for _, (inputs, labels) in zip(range(_BATCHES), batches, strict=False):
        context.loss(outputs_of(network(inputs)), labels).backward()


def _round_to(layers: list[Any]) -> int | None:
    """Channels in multiples that vector units fill, where layers have enough of them."""
    fewest = min(layer.weight.shape[0] for layer in layers)
    return 8 if fewest >= 32 else 4 if fewest >= 16 else None  # noqa: PLR2004


def _has_norm(network: Any) -> bool:
    from torch import nn

    return any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in network.modules())


def _fixed(network: Any, layers: dict[str, Any], context: Context) -> list[Any]:
    """Layers whose outputs must stay as wide as they are.

    Those that make the network's outputs; and, where there are layer normalisations or attention (a residual stream of
    one width, heads of one size), all but the hidden ones: an activation between two linear layers.
    """
    import torch_pruning as tp
    from torch import nn

    fixed = _last(network, layers, context)
    graph = tp.DependencyGraph().build_dependency(network, context.example())
    stream = any(isinstance(module, nn.LayerNorm | nn.MultiheadAttention) for module in network.modules())
    for layer in layers.values():
        linear = isinstance(layer, nn.Linear)
        if layer in fixed or (not linear and layer.groups > 1):
            continue
        function = tp.prune_linear_out_channels if linear else tp.prune_conv_out_channels
        try:
            group = graph.get_pruning_group(layer, function, [0])
        except (ValueError, KeyError, AttributeError):
            fixed.append(layer)  # not in the traced graph: its owner reads the weights itself
            continue
        touched = {dep.target.name: dep.target.module for dep, _ in group}
        if any(isinstance(module, nn.Parameter) for module in touched.values()) or (stream and not _hidden(touched)):
            fixed.append(layer)
    return fixed


def _hidden(touched: dict[str, Any]) -> bool:
    """Whether the channels of a group lie between two linear layers, with an activation and no other weights."""
    from torch import nn

    own = [module for module in touched.values() if isinstance(module, nn.Module) and list(module.parameters())]
    linear = all(isinstance(module, nn.Linear) for module in own)
    return linear and len(own) == 2 and any(word in name for name in touched for word in _ACTIVATIONS)  # noqa: PLR2004


def _last(network: Any, layers: dict[str, Any], context: Context) -> list[Any]:
    """The layers that make the outputs: back from each output, the first layers on every way."""
    made: dict[Any, Any] = {}

    def remember(module: Any, _inputs: Any, output: Any) -> None:
        made[output.grad_fn] = module

    hooks = [layer.register_forward_hook(remember) for layer in layers.values()]
    try:
        outputs = outputs_of(network.eval()(*context.example()))
    finally:
        for hook in hooks:
            hook.remove()
    found, todo, seen = [], [output.grad_fn for output in outputs], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in made:
            found.append(made[node])
        else:
            todo += [before for before, _ in node.next_functions]
    return found
