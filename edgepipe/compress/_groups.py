"""Channels that can be cut out of a network, each group of them proven on the network itself.

torch-pruning follows which channels depend on each other (Fang et al. 2023, DepGraph), but takes operations it does not
know for element-wise. So every group is tried before it is used: in one copy the weights that read a few of its
channels are zero, in another these channels are gone. Both give the same outputs, or the group stays whole.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.edits import apply_edits, find_edits
from edgepipe.errors import UsageError
from edgepipe.training import outputs_of

if TYPE_CHECKING:
    from edgepipe.training import Context

_TOLERANCE = 1e-3  # of the largest output: float32 sums in another order
_MIXES = ("Bmm", "Attention", "Softmax")  # operations, as autograd names them, that mix channels: those of attention
_HEADS = 2  # the fewest there must be
_PROJECTIONS = (1, 3)  # queries, keys and values from one layer each, or all from one


@dataclass(frozen=True)
class Group:
    """Channels of the layer ``root`` and of all that depends on it.

    Those in one of the ``units`` go together or stay together. ``heads`` names the module and its attribute that counts
    the units, where there is one.
    """

    root: str
    units: tuple[tuple[int, ...], ...]
    heads: tuple[str, str] | None = None

    @property
    def channels(self) -> int:
        """How many channels there are."""
        return sum(len(unit) for unit in self.units)


Cut = dict[Group, list[int]]
"""Which units of each group go."""


def graph(network: Any, example: tuple[Any, ...]) -> Any:
    """The dependency graph of ``network``.

    Raises:
        UsageError: the network can't be followed.
    """
    import torch_pruning as tp

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tp.DependencyGraph().build_dependency(network, example, verbose=False)
    except Exception as error:  # it meets whatever the network's own code does
        what = f"the channels can't be followed through the network: {type(error).__name__}: {error}"
        raise UsageError(what[:300], "step prune", "use sparse, lowrank, or a recipe on the file") from None


def members(graph: Any, group: Group, units: Iterable[int] | None = None) -> Any:
    """torch-pruning's group of these units (all of them unless told): what has to be cut where."""
    module = graph.model.get_submodule(group.root)
    chosen = range(len(group.units)) if units is None else units
    channels = sorted(channel for unit in chosen for channel in group.units[unit])
    return graph.get_pruning_group(module, graph.get_pruner_of_module(module).prune_out_channels, channels)


def cut(network: Any, plan: Cut, example: tuple[Any, ...]) -> Any:
    """A copy of ``network`` without the units of ``plan``."""
    made = copy.deepcopy(network)
    dependencies = graph(made, example)
    for group, units in plan.items():
        if not units:
            continue
        members(dependencies, group, units).prune()
        width = dependencies.get_out_channels(made.get_submodule(group.root))
        if width != group.channels - sum(len(group.units[unit]) for unit in units):
            raise UsageError("more channels would go than were meant", group.root, "use sparse or lowrank")
        if group.heads:
            setattr(made.get_submodule(group.heads[0]), group.heads[1], len(group.units) - len(units))
    return made


def find(network: Any, context: Context) -> list[Group]:
    """The groups whose channels can be cut, each proven.

    Raises:
        UsageError: the network can't be followed.
    """
    import torch

    example = context.example()
    dependencies = graph(network, example)
    names = {module: name for name, module in network.named_modules()}
    plain, mixed = [], []
    for found in dependencies.get_all_groups():
        root, channels = names[found[0].dep.target.module], len(found[0].idxs)
        if any(_holds(dependencies, dep) for dep, _ in found):
            continue
        if any(word in (dep.target.name or "") for word in _MIXES for dep, _ in found):
            mixed += _with_heads(network, root, channels)
        else:
            plain += _with_ties(root, channels, [dep.target.module for dep, _ in found])
    torch.manual_seed(0)
    probe = tuple(torch.randn_like(x) if x.is_floating_point() else x for x in example)
    trial = _Trial(network, dependencies, example, probe)
    return [*trial.proven(plain), *trial.proven(mixed)]


def _holds(dependencies: Any, dep: Any) -> bool:
    """Whether a dependency keeps its group whole: it makes an output, or normalises over the channels."""
    from torch import nn

    node = dep.target
    last = not node.outputs and dependencies.is_out_channel_pruning_fn(dep.handler)
    return last or isinstance(node.module, nn.LayerNorm | nn.MultiheadAttention)


def _with_ties(root: str, channels: int, touched: Iterable[Any]) -> list[Group]:
    """One group of channels, tied to each other where convolutions or normalisations take them in several parts."""
    from torch import nn

    tie = 1
    for module in touched:
        if isinstance(module, nn.GroupNorm):
            tie = math.lcm(tie, module.num_groups)
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d) and not _depthwise(module):
            tie = math.lcm(tie, module.groups)
    size, rest = divmod(channels, tie)
    if rest or size < 2:  # noqa: PLR2004  one has to stay
        return []
    return [Group(root, tuple(tuple(range(first, channels, size)) for first in range(size)))]


def _with_heads(network: Any, root: str, channels: int) -> list[Group]:
    """Groups of whole heads: by each number of the layer's owner that may be their count."""
    owner = root.rpartition(".")[0]
    found = []
    for name, heads in vars(network.get_submodule(owner)).items():
        for parts in _PROJECTIONS if type(heads) is int and "head" in name and heads >= _HEADS else ():
            size, rest = divmod(channels, heads * parts)
            if size and not rest:
                units = tuple(
                    tuple(
                        start + head * size + place
                        for start in range(0, channels, heads * size)
                        for place in range(size)
                    )
                    for head in range(heads)
                )
                found += [Group(root, units, (owner, name)), Group(root, units)]
    return found


class _Trial:
    """Tries cuts on copies of a network, with one random input."""

    def __init__(self, network: Any, dependencies: Any, example: Any, probe: Any) -> None:
        self._network, self._dependencies = network, dependencies
        self._example, self._probe = example, probe
        self._names = {module: name for name, module in network.named_modules()}

    def proven(self, groups: list[Group]) -> list[Group]:
        """Those groups that can be cut: all at once if that goes well, else half by half."""
        if len({group.root for group in groups}) == len(groups) and self._sound(groups):
            return groups
        if len(groups) <= 1:
            return []
        half = len(groups) // 2
        first = self.proven(groups[:half])
        roots = {group.root for group in first}
        return first + self.proven([group for group in groups[half:] if group.root not in roots])

    def _sound(self, groups: list[Group]) -> bool:
        """Whether cutting a unit or two of each group does what silencing them does, and can be said by edits."""
        import torch

        plan = {group: sorted({0, len(group.units) * 2 // 3}) if len(group.units) > _HEADS else [0] for group in groups}
        try:
            smaller = cut(self._network, plan, self._example)
            rebuilt = copy.deepcopy(self._network)
            apply_edits(rebuilt, find_edits(self._network, smaller))
            rebuilt.load_state_dict(smaller.state_dict(), strict=True)
            silent, exact = self._silenced(plan)
            with torch.no_grad():
                wanted = outputs_of(silent.eval()(*self._probe))
                given = outputs_of(rebuilt.eval()(*self._probe))
        except Exception:  # a cut that the network's own code can't stand
            return False
        return all(_alike(a, b, exact) for a, b in zip(wanted, given, strict=True))

    def _silenced(self, plan: Cut) -> tuple[Any, bool]:
        """A copy in which nothing reads the units of ``plan``; and whether that is the same as being without them.

        It is not for group normalisation, whose means are over fewer channels then; there the cut has to run, no more.
        """
        import torch
        from torch import nn

        silent, exact = copy.deepcopy(self._network), True
        for group, units in plan.items():
            for dep, indices in members(self._dependencies, group, units):
                module = dep.target.module
                exact = exact and not isinstance(module, nn.GroupNorm)
                reads = dep.handler == self._dependencies.get_pruner_of_module(module).prune_in_channels
                convolves = isinstance(module, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d) and not _depthwise(module)
                if reads and (convolves or isinstance(module, nn.Linear)):
                    with torch.no_grad():
                        _silence(silent.get_submodule(self._names[module]), list(indices))
        return silent, exact


def _alike(wanted: Any, given: Any, exact: bool) -> bool:
    import torch

    if wanted.shape != given.shape or not torch.isfinite(given).all():
        return False
    return not exact or bool((wanted - given).abs().max() <= _TOLERANCE * (float(wanted.abs().max()) or 1.0))


def _silence(module: Any, indices: list[int]) -> None:
    if getattr(module, "transposed", False):
        module.weight[indices] = 0
    else:  # each part of a grouped convolution reads the same places of its own channels
        module.weight[:, [index % module.weight.shape[1] for index in indices]] = 0


def _depthwise(module: Any) -> bool:
    return bool(module.groups == module.out_channels > 1)
