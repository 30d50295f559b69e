"""Structured pruning: whole channels go, with all that depends on them, so shapes, MACs and the file shrink.

Importance of a channel is summed over all layers that hold a part of it: L1 or L2 norm of the weights (Li et al. 2017),
first-order Taylor expansion of the loss (Molchanov et al. 2019), or the scale of its batch normalisation (Liu et al.
2017, network slimming).
"""

from __future__ import annotations

import bisect
import io
import math
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgepipe.compress import _groups, _layers
from edgepipe.errors import UsageError
from edgepipe.training import Changed, answers, fine_tune

if TYPE_CHECKING:
    from edgepipe.compress._groups import Cut, Group
    from edgepipe.training import Context, Examples

STEP = "prune"
HELP = "whole channels go, by the share of MACs (or channels, or host latency) to remove; then fine-tuning"
DEFAULTS: dict[str, Any] = {
    "amount": 0.5,
    "importance": "l1",
    "scope": "global",
    "by": "macs",
    "round": 8,
    "epochs": 4,
}
CHOICES = {
    "importance": ("l1", "l2", "taylor", "bn"),
    "scope": ("global", "uniform"),
    "by": ("macs", "channels", "latency"),
}
LIMITS = {"amount": (0.01, 0.95), "round": (1, 64), "epochs": (0, 1000)}
LIBRARIES = ("torch-pruning", "onnxruntime")
UNDOES = {"cluster": "the layers that lose channels are trained anew, and their shared values part"}
_BATCHES = 16  # for the gradients of Taylor importance
_LEVELS = 512  # at most so many cuts are chosen from
_UNITS = {
    "macs": "MACs",
    "channels": "channels that can go",
    "latency": "time (ONNX Runtime, 1 thread, this host)",
}
_TIMED_S, _WARM, _LEAST = 0.3, 10, 20  # of a latency measurement: seconds, runs before, and the fewest runs

Score = Callable[[Any], Any]
Cost = Callable[["Cut"], float]
"""What share of the cost a cut leaves."""


def needs(params: dict[str, Any]) -> str:
    """Training data to fine-tune; any data for the gradients of Taylor importance."""
    if params["epochs"]:
        return "training"
    return "calibration" if params["importance"] == "taylor" else ""


def compress(network: Any, params: dict[str, Any], context: Context) -> Changed:
    """Remove the least important channels until the target is met, then fine-tune with the float model as teacher.

    Raises:
        UsageError: nothing can be pruned, the target can't be met, or the importance asked for can't be had.
        IntegrityError: a weight is not finite.
    """
    layers = _layers.weighted(network)
    for parameter in network.parameters():
        parameter.requires_grad_(True)  # channels are followed by autograd
    groups = _groups.find(network, context)
    if not groups:
        what = f"no channels of the {len(layers)} layers can go: they make the outputs, or are normalised together"
        raise UsageError(what, "step prune", "use sparse, lowrank, or a recipe on the file")
    scores = _scores(network, groups, params["importance"], context)
    cost = {"macs": _macs, "channels": _channels, "latency": _latency}[params["by"]](network, scores, context)
    plan, left = _plan(_plans(scores, params), cost, params, context)
    pruned = _groups.cut(network, plan, context.example())
    gone, total = _count(plan), sum(group.channels for group in groups)
    whole = [group.root for group in groups if not plan.get(group)]
    note = f"{gone} of {total} channels in {len(groups)} groups removed, {left:.1%} of the {_UNITS[params['by']]} left"
    note += f"; whole: {_layers.listed(whole)}" if whole else ""
    return Changed(pruned, f"{note}; {fine_tune(pruned, context, params['epochs'], context.keep)}")


def _plan(plans: list[Cut], cost: Cost, params: dict[str, Any], context: Context) -> tuple[Cut, float]:
    """The smallest of these cuts that leaves no more than the share asked for, found by halving; and that share."""
    steps = math.ceil(math.log2(len(plans) + 1))
    tried: dict[int, float] = {}

    def enough(index: int) -> bool:
        if index not in tried:
            tried[index] = cost(plans[index])
            context.update(min(len(tried), steps), steps, f"{tried[index]:.0%} of the {params['by']} left")
        return tried[index] <= 1 - float(params["amount"])

    place = bisect.bisect_left(range(len(plans)), True, key=enough)
    if place == len(plans):
        most = 1 - (tried[place - 1] if place else 1.0)
        what = f"only {most:.0%} of the {params['by']} can be removed, not {params['amount']:.0%}"
        raise UsageError(what, f"step prune:{params['amount']:g}", "ask for less, or add lowrank, sparse or int8")
    return plans[place], tried[place]


def _plans(scores: dict[Group, Any], params: dict[str, Any]) -> list[Cut]:
    """Different cuts, each one larger than the one before.

    Global: the units that score least go, of whatever group. Uniform: the same share of each group. At least a piece of
    each group stays.
    """
    import numpy as np

    ordered = {group: score.sort(stable=True) for group, score in scores.items()}
    values = np.concatenate([score.values.numpy() for score in ordered.values()])
    owners = np.repeat(np.arange(len(scores)), [len(score) for score in scores.values()])
    shares = np.concatenate([np.arange(1, len(score) + 1) / len(score) for score in scores.values()])
    # Where scores are equal, the groups lose equal shares.
    order = np.argsort(shares, kind="stable") if params["scope"] == "uniform" else np.lexsort((shares, values))
    ends = np.unique(np.linspace(1, len(order), min(len(order), _LEVELS)).astype(int))
    wanted = [np.bincount(owners[order[:end]], minlength=len(scores)).tolist() for end in ends]
    plans: list[Cut] = []
    for counts in wanted:
        plan = {}
        for (group, score), gone in zip(ordered.items(), counts, strict=True):
            count = len(group.units)
            piece = _layers.piece(count, params["round"])
            kept = min(count, max(piece, round((count - gone) / piece) * piece))
            plan[group] = score.indices[: count - kept].tolist()
        if any(plan.values()) and (not plans or plan != plans[-1]):
            plans.append(plan)
    return plans


def _count(plan: Cut) -> int:
    """How many channels go."""
    return sum(len(group.units[index]) for group, units in plan.items() for index in units)


def _macs(network: Any, _scores: dict[Group, Any], context: Context) -> Cost:
    example = context.example()
    whole = _layers.macs(network, example)
    return lambda plan: _layers.macs(_groups.cut(network, plan, example), example) / whole


def _channels(_network: Any, scores: dict[Group, Any], _context: Context) -> Cost:
    total = sum(group.channels for group in scores)
    return lambda plan: 1 - _count(plan) / total


def _latency(network: Any, _scores: dict[Group, Any], context: Context) -> Cost:
    """Timed in turns with the whole network, so that a busy host slows both."""
    example = context.example()
    whole = _session(network, example)

    def cost(plan: Cut) -> float:
        before, after = _in_turns(whole, _session(_groups.cut(network, plan, example), example))
        return after / before

    return cost


def _session(network: Any, example: Any) -> Callable[[], Any]:
    import onnxruntime
    import torch

    try:
        program = torch.onnx.export(network.eval(), example, dynamo=True, verbose=False)
        buffer = io.BytesIO()
        program.save(buffer)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(buffer.getvalue(), options)
    except Exception as error:  # exporters raise whatever the network makes them
        what = f"latency can't be measured: {type(error).__name__}: {str(error)[:150]}"
        raise UsageError(what, "step prune:by=latency", "use by=macs") from None
    feeds = {spec.name: value.numpy() for spec, value in zip(session.get_inputs(), example, strict=True)}
    return lambda: session.run(None, feeds)


def _in_turns(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[float, float]:
    """Median milliseconds of the two."""
    for _ in range(_WARM):
        first()
        second()
    times: tuple[list[int], list[int]] = ([], [])
    end = time.monotonic() + 2 * _TIMED_S
    while time.monotonic() < end or len(times[0]) < _LEAST:
        for run, found in zip((first, second), times, strict=True):
            start = time.perf_counter_ns()
            run()
            found.append(time.perf_counter_ns() - start)
    return statistics.median(times[0]) / 1e6, statistics.median(times[1]) / 1e6


def _scores(network: Any, groups: list[Group], importance: str, context: Context) -> dict[Group, Any]:
    """The importance of each unit of each group, 1 on average over a group.

    Raises:
        UsageError: it can't be had of any group.
    """
    import torch

    if importance == "taylor":
        found = _taylor(network, groups, context)
    else:
        found = _of_weights(network, groups, importance, context)
    scores = {}
    for group, channels in found.items():
        units = torch.stack([channels[list(unit)].mean() for unit in group.units])
        scores[group] = units / units.mean() if units.any() else units
    if not scores:
        what = f"no channels can be judged by {importance}: none has a batch normalisation"
        raise UsageError(what, f"step prune:importance={importance}", "use importance=l1")
    return scores


def _of_weights(network: Any, groups: list[Group], importance: str, context: Context) -> dict[Group, Any]:
    import torch_pruning as tp

    if importance == "bn":
        judge: Score = tp.importance.BNScaleImportance(normalizer=None)
    else:
        judge = tp.importance.GroupMagnitudeImportance(p=1 if importance == "l1" else 2, normalizer=None)
    dependencies = _groups.graph(network, context.example())
    found = {group: judge(_groups.members(dependencies, group)) for group in groups}
    return {group: score for group, score in found.items() if score is not None}


def _taylor(network: Any, groups: list[Group], context: Context) -> dict[Group, Any]:
    """Taylor importance, summed over a few batches."""
    import torch
    import torch_pruning as tp

    samples = context.training or context.calibration
    if samples is None:
        fix = "use importance=l1, or name data in model.toml, [data] training"
        raise UsageError("Taylor importance needs data to take gradients on", "step prune:importance=taylor", fix)
    judge = tp.importance.GroupTaylorImportance(normalizer=None)
    dependencies = _groups.graph(network, context.example())
    sums: dict[Group, Any] = dict.fromkeys(groups, 0.0)
    for _, (inputs, labels) in zip(range(_BATCHES), _shuffled(samples), strict=False):
        network.zero_grad()
        _objective(answers(network, inputs), labels, context).backward()
        for group in groups:
            sums[group] = sums[group] + judge(_groups.members(dependencies, group))
    network.zero_grad()
    return {group: torch.as_tensor(score) for group, score in sums.items()}


def _shuffled(samples: Examples) -> Any:
    import torch

    return samples.batches(generator=torch.Generator().manual_seed(0))


def _objective(outputs: list[Any], labels: Any, context: Context) -> Any:
    """The task's loss; without labels the square of the outputs, to which what matters is sensitive (Aljundi 2018)."""
    if labels is not None and context.loss is not None:
        return context.loss(outputs, labels)
    return sum(output.square().mean() for output in outputs)
