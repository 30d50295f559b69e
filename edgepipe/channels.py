"""Which channels of a network can be scaled without changing what it computes, and the scaling of them.

A group is the tensors that share their channels: what a layer puts out, the same after an activation for which
f(s x) = s f(x), after pooling, after an addition. Where everything that makes such tensors can be divided by a factor
for each channel, and everything that reads them multiplied, nothing changes but the numbers in between. Cross-layer
equalisation (Nagel et al. 2019) and SmoothQuant (Xiao et al. 2022) choose these factors.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgepipe import dataflow
from edgepipe.dataflow import argument, operation, shape

if TYPE_CHECKING:
    from collections.abc import Collection

_HOMOGENEOUS = {
    "abs", "alias", "clone", "contiguous", "dropout", "leaky_relu", "leaky_relu_", "neg", "prelu", "relu", "relu_",
}  # fmt: skip
_POOLING = {
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool1d", "avg_pool2d", "max_pool1d",
    "max_pool2d", "upsample_bilinear2d", "upsample_nearest2d",
}  # fmt: skip
_RESHAPING = {"flatten", "reshape", "squeeze", "unflatten", "unsqueeze", "view"}
_CLIPPING = {"hardtanh", "hardtanh_", "relu6", "relu6_"}
_NORMS = {"layer_norm", "rms_norm"}


@dataclass(frozen=True)
class Layer:
    """Names of parameters and buffers, as in state_dict.

    ``output`` are the parameters to divide, each with the axis of its channels; empty where that can't be done.
    ``weight`` is that of a convolution or linear layer; None for what only scales its input, as a normalisation does.
    ``axes`` are those of its output and input channels. ``norm`` are scale (or None), variance and epsilon of the batch
    normalisation behind it.
    """

    name: str
    output: tuple[tuple[str, int], ...]
    weight: str | None = None
    axes: tuple[int, int] = (0, 1)
    groups: int = 1
    norm: tuple[str | None, str, float] | None = None


@dataclass(frozen=True)
class Place:
    """Where a tensor (a node of the graph) has its channels: ``axis``, and how often each is repeated along it."""

    node: Any
    axis: int
    repeat: int = 1


@dataclass(eq=False)
class Group:
    """Tensors that share their ``size`` channels.

    ``makers`` are divided, ``readers`` multiplied; each reader stands with the place it reads. ``obstacles`` say why it
    can't be done. ``clipped`` are nodes like ReLU6, which do not scale, but may be replaced by a ReLU.
    """

    size: int
    makers: list[Layer] = field(default_factory=list)
    readers: list[tuple[Layer, Place]] = field(default_factory=list)
    obstacles: list[str] = field(default_factory=list)
    clipped: list[Any] = field(default_factory=list)

    @property
    def reason(self) -> str:
        """Why it can't be scaled, or ""."""
        if self.obstacles:
            return self.obstacles[0]
        if self.clipped:
            return "meets a ReLU6, which does not scale"
        return "" if self.readers else "is read by no layer"


def groups(traced: Any, shared: Collection[str] = ()) -> list[Group]:
    """All groups of a traced network (`dataflow.trace`), in the graph's order.

    ``shared`` are the parameters with few values, each shared by many weights, which scaling would part.
    """
    fixed = dict.fromkeys(_reused(traced), "is used more than once")
    walk = _Walk({**fixed, **dict.fromkeys(shared, "has shared values, which have to stay so")})
    for node in traced.graph.nodes:
        walk.visit(node)
    return walk.groups


def scale(parameters: dict[str, Any], group: Group, factors: Any) -> None:
    """Divide what the makers put out by ``factors`` [size] (positive), and multiply the readers' weights, in place."""
    import torch

    with torch.no_grad():
        for layer in group.makers:
            for name, axis in layer.output:
                parameters[name].div_(_along(factors, axis, parameters[name].dim()))
        for layer, place in group.readers:
            weight, wide = parameters[str(layer.weight)], factors.repeat_interleave(place.repeat)
            if layer.axes[1] == 0:
                weight.mul_(_along(wide, 0, weight.dim()))
            else:
                inputs = wide.reshape(layer.groups, -1).repeat_interleave(len(weight) // layer.groups, 0)
                weight.mul_(inputs.reshape(*inputs.shape, *[1] * (weight.dim() - 2)))


def output_ranges(parameters: dict[str, Any], layer: Layer) -> Any:
    """The largest absolute weight of each output channel, as exporters store it: batch normalisation folded in."""
    return _folded(parameters, layer).flatten(2).amax(2).flatten()


def input_ranges(parameters: dict[str, Any], layer: Layer, place: Place) -> Any:
    """The same of each channel that the layer reads at ``place``."""
    return _folded(parameters, layer).transpose(1, 2).flatten(2).amax(2).reshape(-1, place.repeat).amax(1)


def _folded(parameters: dict[str, Any], layer: Layer) -> Any:
    """Absolute values of the weight, [groups, outputs / groups, inputs / groups, ...]."""
    weight = parameters[str(layer.weight)].detach()
    if layer.norm:
        gamma, variance, epsilon = layer.norm
        factor = (parameters[variance] + epsilon).rsqrt()
        factor = factor * parameters[gamma].detach() if gamma else factor
        weight = weight * _along(factor, layer.axes[0], weight.dim())
    weight = weight.transpose(0, 1) if layer.axes[0] else weight
    return weight.abs().reshape(layer.groups, -1, *weight.shape[1:])


def _along(values: Any, axis: int, dimensions: int) -> Any:
    return values.reshape([-1 if index == axis else 1 for index in range(dimensions)])


def _reused(traced: Any) -> set[str]:
    """Names of parameters that are used more than once: what suits one place would break the other."""
    nodes = [node for node in traced.graph.nodes if node.op == "get_attr"]
    values = {node: id(dataflow.value(traced, node.target)) for node in nodes}
    uses: Counter[int] = Counter()
    for node in nodes:
        uses[values[node]] += sum(list(user.all_input_nodes).count(node) for user in node.users)
    return {node.target for node in nodes if uses[values[node]] > 1}


class _Walk:
    """Goes through a graph once, makes a group for what each layer puts out, and unites those that meet."""

    def __init__(self, fixed: dict[str, str]) -> None:
        self.groups: list[Group] = []
        self._fixed = fixed  # parameters that can't be scaled, and why
        self._group: dict[Any, Group] = {}  # by node
        self._place: dict[Any, Place] = {}

    def visit(self, node: Any) -> None:
        """Take one node in, all of whose inputs have been visited."""
        name = operation(node)
        if name in dataflow.LAYERS and node.args[1].op == "get_attr" and self._layer(node, name):
            return
        if name in _NORMS or name == "mul":
            self._norm(node, name)
        elif name in ("add", "add_", "sub"):
            self._sum(node)
        elif name == "batch_norm" and node in self._place:
            return  # taken in with the layer before it
        elif place := self._follow(node, name):
            self._place[node], self._group[node] = place, self._group[node.args[0]]
            if name in _CLIPPING:
                self._group[node].clipped.append(node)
        else:
            self._block(
                node, "is an answer of the network" if node.op == "output" else f"goes into {name or node.name}"
            )

    def _block(self, node: Any, why: str) -> None:
        for source in node.all_input_nodes:
            if source in self._group:
                self._group[source].obstacles.append(why)

    def _start(self, node: Any, axis: int, maker: Layer) -> None:
        group = Group(shape(node)[axis], [maker])
        if not maker.output:
            group.obstacles.append("has no scale of its own")
        self._check(group, [name for name, _ in maker.output])
        self.groups.append(group)
        self._group[node], self._place[node] = group, Place(node, axis)

    def _check(self, group: Group, names: Collection[str], prefix: str = "") -> None:
        """Note what stands against scaling the parameters ``names``."""
        group.obstacles.extend(prefix + self._fixed[name] for name in names if name in self._fixed)

    def _layer(self, node: Any, name: str) -> bool:
        """A convolution or linear layer, with the batch normalisation behind it; false if it is one not understood."""
        source, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
        axes = dataflow.LAYERS[name]
        transposed = axes[0] == 1
        count = 1 if name == "linear" else argument(node, 6, "groups", 1)
        if transposed and count > 1:
            return False
        norm = dataflow.batch_norm_of(node)
        output = [(weight.target, axes[0]), (bias.target, 0)] if bias is not None else [(weight.target, axes[0])]
        folding = None
        if norm is not None:
            gamma, beta = norm.args[1:3]
            output = [(item.target, 0) for item in (gamma, beta) if item is not None and gamma is not None]
            folding = (gamma.target if gamma is not None else None, norm.args[4].target, argument(norm, 7, "eps"))
        layer = Layer(dataflow.layer_name(weight.target), tuple(output), weight.target, axes, count, folding)
        own = len(shape(source)) - 1 if name == "linear" else 1
        if source in self._place:
            place, group = self._place[source], self._group[source]
            if place.axis == own and (place.repeat == 1 or name == "linear"):
                group.readers.append((layer, place))
                self._check(group, [weight.target], f"is read by {layer.name}, which ")
            else:
                group.obstacles.append(f"is read by {layer.name} along another axis")
        self._start(norm or node, len(shape(node)) - 1 if name == "linear" else 1, layer)
        return True

    def _norm(self, node: Any, name: str) -> None:
        """A normalisation of the last axis, or a product with a parameter for each channel of it: a maker."""
        self._block(node, f"goes into {name}")
        last, names = shape(node)[-1:], []
        if name == "mul":
            names = [item.target for item in node.all_input_nodes if item.op == "get_attr" and shape(item) == last]
        elif len(node.args[1]) == 1:
            items = [argument(node, 2, "weight"), argument(node, 3, "bias") if name == "layer_norm" else None]
            names = [item.target for item in items if item is not None] if items[0] is not None else []
        if names:
            title = dataflow.layer_name(names[0])
            self._start(node, len(shape(node)) - 1, Layer(title, tuple((item, 0) for item in names)))

    def _sum(self, node: Any) -> None:
        """Both sides of an addition share their channels, so their groups become one."""
        sides = [item for item in node.args[:2] if hasattr(item, "op")]
        places = [self._place.get(item) for item in sides]
        first, second = places[0], places[-1]
        alike = first and second and (first.axis, first.repeat) == (second.axis, second.repeat)
        if len(sides) < 2 or not alike or shape(sides[0]) != shape(sides[1]):  # noqa: PLR2004
            self._block(node, "is added to something else")
            return
        assert first
        group, other = self._group[sides[0]], self._group[sides[1]]
        if group is not other:
            for part in ("makers", "readers", "obstacles", "clipped"):
                getattr(group, part).extend(getattr(other, part))
            self.groups.remove(other)
            self._group = {key: group if item is other else item for key, item in self._group.items()}
        self._group[node], self._place[node] = group, Place(node, first.axis, first.repeat)

    def _follow(self, node: Any, name: str) -> Place | None:
        """The place of what a node with one tensor makes, if that has the same channels, scaled as they are."""
        source = node.args[0] if node.args else None
        if source not in self._place or not name:
            return None
        place, before, after = self._place[source], shape(source), shape(node)
        if name in _RESHAPING:
            return _reshaped(node, place, before, after)
        axis: int | None = None
        if name in _HOMOGENEOUS | _CLIPPING or (name in _POOLING and place.axis == 1 and place.repeat == 1):
            axis = place.axis
        elif name in ("transpose", "permute"):
            axis = _order(node, name, len(before)).index(place.axis)
        elif name in ("select", "slice", "mean"):
            axis = _reduced(node, name, place.axis, len(before))
        return None if axis is None else Place(node, axis, place.repeat)


def _order(node: Any, name: str, dimensions: int) -> list[int]:
    """The axes of the input in their new order."""
    order = list(range(dimensions))
    if name == "permute":
        return [axis % dimensions for axis in node.args[1]]
    one, other = (axis % dimensions for axis in node.args[1:3])
    order[one], order[other] = order[other], order[one]
    return order


def _reduced(node: Any, name: str, axis: int, dimensions: int) -> int | None:
    """Where ``axis`` is after a choice from, or a mean over, other axes; None if it is itself one of those."""
    given = argument(node, 1, "dim", 0 if name != "mean" else None)
    if given is None:
        return None
    gone = {index % dimensions for index in ([given] if isinstance(given, int) else given)}
    if axis in gone:
        return None
    kept = name == "slice" or (name == "mean" and argument(node, 2, "keepdim", False))
    return axis if kept else axis - sum(index < axis for index in gone)


def _reshaped(node: Any, place: Place, before: list[int], after: list[int]) -> Place | None:
    """The place after a change of shape that leaves the elements in order: the axis with as many elements before it."""
    ahead, size = math.prod(before[: place.axis]), before[place.axis]
    for axis, length in enumerate(after):
        if math.prod(after[:axis]) == ahead and length >= size and length % size == 0:
            return Place(node, axis, place.repeat * (length // size))
    return None
