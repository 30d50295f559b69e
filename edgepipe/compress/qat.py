"""Quantisation-aware training: the float weights learn to stand the rounding of an int8 file (Jacob et al. 2018).

The network is trained as the file will compute it: convolutions and linear layers with the batch normalisation folded
into them (its statistics frozen), their weights rounded to int8 and the tensors between them to uint8. Rounding passes
gradients straight through. What comes out is the same float network with other weights, for the file step int8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe import dataflow
from edgepipe.errors import UsageError
from edgepipe.training import Changed, fit_to_teacher, taught, teaching_batch

if TYPE_CHECKING:
    from edgepipe.training import Context

STEP = "qat"
HELP = "trains the weights with int8 rounding in the loop; the file step int8 follows by itself"
DEFAULTS: dict[str, Any] = {"scheme": "int8", "epochs": 3, "weights": "channel", "alpha": 0.5}
CHOICES = {"scheme": ("int8",), "weights": ("channel", "tensor")}
LIMITS = {"epochs": (0, 1000), "alpha": (0.0, 1.0)}
LIBRARIES: tuple[str, ...] = ()
THEN = "int8"
UNLABELLED = True

_RATE = 2e-4
_LARGEST = 127  # of an int8 weight: symmetric, so -128 is not used
_LEVELS = 255
_MOMENTUM = 0.9  # of the ranges of activations, batch by batch
_TINY = 1e-8
# Operations whose tensors the formats store as uint8, besides the layers themselves.
_QUANTISED = ("add", "sub", "mul", "matmul", "cat", "scaled_dot_product_attention")


def needs(params: dict[str, Any]) -> str:
    """The training set, or the calibration data where there is none."""
    return "training" if params["epochs"] else ""


def compress(network: Any, params: dict[str, Any], context: Context) -> Changed:
    """Adapt the weights of ``network`` to int8; its structure stays.

    Raises:
        UsageError: no layer of it is quantised, it can't be traced, or there are no data.
        IntegrityError: the training diverged.
    """
    if params["epochs"] == 0:
        return Changed(network, "not trained: no epochs were asked for")
    simulated, layers = _simulate(network, context, channel=params["weights"] == "channel")
    objective = taught(context, params["alpha"])
    told = fit_to_teacher(simulated, context, objective, epochs=params["epochs"], rate=_RATE)
    return Changed(network.eval(), f"{layers} layers trained with int8 rounding: {told}")


def _simulate(network: Any, context: Context, *, channel: bool) -> tuple[Any, int]:
    """A torch.fx GraphModule on the network's own parameters that computes as the int8 file will; how many layers."""
    traced = dataflow.trace(network, context, teaching_batch(context))
    rounded: dict[Any, Any] = {}
    layers = 0
    for node in list(traced.graph.nodes):
        name = dataflow.operation(node)
        if name in dataflow.LAYERS:
            layers += 1
            _round_weights(traced.graph, node, channel=channel)
        if name in dataflow.LAYERS or name in _QUANTISED:
            for source in _tensors(node, layer=name in dataflow.LAYERS):
                if source not in rounded:
                    rounded[source] = _rounded(traced, source, len(rounded))
                node.replace_input_with(source, rounded[source])
    if not layers:
        fix = "leave qat out"
        raise UsageError("the network has no layer whose weights are quantised", "qat", fix)
    traced.graph.lint()
    traced.recompile()
    return traced, layers


def _round_weights(graph: Any, node: Any, *, channel: bool) -> None:
    """Have a layer compute with rounded weights, those of the batch normalisation behind it folded in."""
    axis = dataflow.LAYERS[dataflow.operation(node)][0]
    norm = dataflow.batch_norm_of(node)
    inputs, weight = node.args[:2]
    bias = dataflow.argument(node, 2, "bias")
    with graph.inserting_before(node):
        if norm is not None:
            gamma, beta, mean, variance = (norm.args[index] for index in (1, 2, 3, 4))
            epsilon = dataflow.argument(norm, 7, "eps")
            weight, bias = (
                graph.call_function(fold_weight, (weight, gamma, variance, epsilon, axis)),
                graph.call_function(fold_bias, (bias, gamma, beta, mean, variance, epsilon)),
            )
        weight = graph.call_function(round_weight, (weight, axis if channel else None))
    node.args = (inputs, weight, bias, *node.args[3:])
    node.kwargs = {key: value for key, value in node.kwargs.items() if key != "bias"}
    if norm is not None:
        norm.replace_all_uses_with(node)
        graph.erase_node(norm)


def _tensors(node: Any, *, layer: bool) -> list[Any]:
    """The tensors a node reads that the file stores as uint8: computed ones, of floating point."""
    sources = node.args[:1] if layer else node.all_input_nodes
    return [source for source in sources if source.op != "get_attr" and source.meta["val"].is_floating_point()]


def _rounded(traced: Any, source: Any, index: int) -> Any:
    """A node that rounds what ``source`` makes, with a buffer of its own for the range."""
    import torch

    name = f"edgepipe_range_{index}"
    traced.register_buffer(name, torch.full([2], torch.nan))
    with traced.graph.inserting_after(source):
        ends = traced.graph.get_attr(name)
    with traced.graph.inserting_after(ends):
        return traced.graph.call_function(round_tensor, (source, ends))


def fold_weight(weight: Any, gamma: Any, variance: Any, epsilon: float, axis: int) -> Any:
    """The weight of a layer with the batch normalisation behind it folded in, differentiable in both."""
    factor = _factor(gamma, variance, epsilon)
    return weight * factor.reshape([-1 if index == axis else 1 for index in range(weight.dim())])


def fold_bias(bias: Any, gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float) -> Any:
    """The bias that goes with `fold_weight`; ``bias``, ``gamma`` and ``beta`` may be None."""
    centred = -mean if bias is None else bias - mean
    folded = centred * _factor(gamma, variance, epsilon)
    return folded if beta is None else folded + beta


def _factor(gamma: Any, variance: Any, epsilon: float) -> Any:
    factor = (variance + epsilon).rsqrt()
    return factor if gamma is None else factor * gamma


def round_weight(weight: Any, axis: int | None) -> Any:
    """Symmetric int8 rounding to steps of max|w| / 127, for each slice along ``axis`` or for the whole tensor."""
    import torch

    largest = weight.detach().abs()
    if axis is None:
        scale = (largest.max() / _LARGEST).clamp_min(_TINY)
        zero = torch.zeros((), dtype=torch.int32)
        return torch.fake_quantize_per_tensor_affine(weight, scale, zero, -_LARGEST, _LARGEST)
    others = [index for index in range(weight.dim()) if index != axis]
    scale = (largest.amax(others) / _LARGEST).clamp_min(_TINY)
    zeros = torch.zeros(len(scale), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, axis, -_LARGEST, _LARGEST)


def round_tensor(value: Any, ends: Any) -> Any:
    """Asymmetric uint8 rounding; ``ends`` [2], the range, follows the extremes of the batches and holds 0."""
    import torch

    with torch.no_grad():
        low, high = value.detach().aminmax()
        now = torch.stack([low.clamp_max(0), high.clamp_min(0)])
        ends.copy_(torch.where(ends.isnan(), now, _MOMENTUM * ends + (1 - _MOMENTUM) * now))
        scale = ((ends[1] - ends[0]) / _LEVELS).clamp_min(_TINY)
        zero = (-ends[0] / scale).round().to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(value, scale, zero, 0, _LEVELS)
