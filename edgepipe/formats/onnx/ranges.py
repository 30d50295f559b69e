"""What calibration data shows of a float ONNX model: the range of each tensor, and what rounding the weights shifts.

All tensors that may be quantised become outputs of one session; the samples run through it in batches, and their
statistics stream into `edgepipe.calibrate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.formats.onnx import graph, probe
from edgepipe.formats.onnx.probe import Probe

if TYPE_CHECKING:
    import numpy as np

    from edgepipe.calibrate import Mean

    Array = np.ndarray[Any, Any]

# Operators other than layers for which ONNX Runtime has kernels on 8-bit tensors, or that only move values. What is not
# here runs in float between the others: a layer normalisation or a Gelu on 8-bit values loses accuracy for nothing.
MOVERS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")  # the same values in another order
SELECTORS = ("MaxPool", "Gather", "Slice", "Split", "Resize", "Pad")
ARITHMETIC = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Softmax", "Sigmoid", "LeakyRelu", "Where")
ACTIVATIONS = ("Relu", "Clip")

_UNKNOWN_SIZE = 32  # rows and columns of an image whose size the file leaves open
_BIAS, _MATRIX = 2, 2  # the input that is a layer's bias; the axes of a matrix


@dataclass(frozen=True)
class Settings:
    """How the tensors are quantised: all that the statistics depend on.

    ``bits`` of the activations; ``channel``: weights have one scale per output channel, else one for all;
    ``correct``: measure what the biases must make up for; ``reduce_range``: weights of 7 bits.
    """

    method: str = "minmax"
    percentile: float = 99.99
    bits: int = 8
    symmetric: bool = False
    channel: bool = True
    correct: bool = True
    reduce_range: bool = False

    @property
    def top(self) -> int:
        """The largest integer of a weight: that of ONNX Runtime's symmetric ranges."""
        return 64 if self.reduce_range else 127


@dataclass(frozen=True)
class Observed:
    """What was seen in ``samples`` samples.

    ``ranges``: tensor -> (low, high). ``shifts``: layer -> for each output channel the mean of what rounding its
    weights adds to its output.
    """

    ranges: dict[str, tuple[float, float]]
    shifts: dict[str, list[float]]
    samples: int


def observe(model: Any, calibration: str, settings: Settings, threads: int) -> Observed:
    """Run the samples of the .npz ``calibration`` through the optimised ``model``.

    Raises:
        IntegrityError: a tensor is NaN or infinite; the error names it.
        UsageError: the samples are not what the model takes.
    """
    from edgepipe.calibrate import Collector, Rule

    rule = Rule(settings.method, settings.bits, settings.symmetric, settings.percentile)
    sources = _sources(model)
    means = _means(model) if settings.correct else {}
    collectors = {name: Collector(name, rule) for name in sources.values()}
    probes = [
        Probe(name, "extremes" if rule.method == "minmax" else "values", found.add)
        for name, found in collectors.items()
    ]
    probes += [Probe(name, "channels" if image else "vectors", mean.add) for (name, image), mean in means.items()]
    samples = probe.watch(model, probes, calibration, threads)
    roots = {name: collector.range() for name, collector in collectors.items() if collector.seen}
    ranges = {name: roots[source] for name, source in sources.items() if source in roots}
    return Observed(ranges, _shifts(model, means, settings) if means else {}, samples)


def chosen(model: Any, kept: set[str]) -> set[str]:
    """The nodes to quantise: all layers with constant weights but those of ``kept``, and what lies between them.

    Another operator is quantised only where its result goes on into a quantised one, and a ReLU or Clip behind a
    quantised convolution, which swallows it. So an attention (two activations multiplied, a softmax) and the residual
    stream between layer normalisations stay float: in 8 bits they were slower and less accurate. The bias behind a
    MatMul is part of the MatMul's kernel.
    """
    known = graph.constants(model)
    readers = _readers(model)
    found = {node.name for node in model.graph.node if graph.weight_of(node, known) is not None} - kept
    convolved = {node.output[0] for node in model.graph.node if node.op_type == "Conv" and node.name in found}
    multiplied = {node.output[0] for node in model.graph.node if node.op_type == "MatMul" and node.name in found}
    for node in reversed(model.graph.node):  # in topological order, so all readers are decided before
        if is_bias(node, known) and node.input[0] in multiplied:
            continue
        swallowed = node.op_type in ACTIVATIONS and node.input[0] in convolved
        between = node.op_type in (*MOVERS, *SELECTORS, *ARITHMETIC, *ACTIVATIONS)
        after = [reader.name for name in node.output for reader in readers.get(name, [])]
        if swallowed or (between and not found.isdisjoint(after)):
            found.add(node.name)
    return found


def _readers(model: Any) -> dict[str, list[Any]]:
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def _sources(model: Any) -> dict[str, str]:
    """The tensors that may be quantised, each with the tensor whose range it has: itself, or the one it was moved from.

    What goes only into a ReLU or Clip has the range of what comes out: the rest is cut off anyway.
    """
    known = graph.constants(model)
    readers = _readers(model)
    outputs = {value.name for value in model.graph.output}
    names = chosen(model, set())
    nodes = [node for node in model.graph.node if node.name in names]
    sources = {name: name for node in nodes for name in (*node.input, *node.output) if name and name not in known}
    for node in nodes:  # in topological order, so chains of movers end at their root
        if node.op_type in MOVERS and node.input[0] in sources:
            sources[node.output[0]] = sources[node.input[0]]
    for node in nodes:
        if node.op_type in ACTIVATIONS and len(readers[node.input[0]]) == 1 and node.input[0] not in outputs:
            sources[node.input[0]] = sources[node.output[0]]
    return sources


def _means(model: Any) -> dict[tuple[str, bool], Mean]:
    """Means of the layers' inputs, by tensor and whether it is an image.

    A layer is linear, so its mean output is its output for the mean input: of convolutions that of each channel, of the
    others that along the last axis.
    """
    from edgepipe.calibrate import Mean

    holders = _biases(model)
    return {(node.input[0], _is_image(node)): Mean((0,)) for node in model.graph.node if node.name in holders}


def _is_image(node: Any) -> bool:
    return node.op_type in ("Conv", "ConvTranspose")


def _biases(model: Any) -> dict[str, tuple[Any, int]]:
    """For each layer whose rounding a bias can make up for: the node that takes the bias, and as which input.

    That is a layer with a constant bias or with none, or the Add of a constant vector that alone reads a MatMul.
    """
    known = graph.constants(model)
    added = {node.input[0]: node for node in model.graph.node if is_bias(node, known)}
    readers = _readers(model)
    found: dict[str, tuple[Any, int]] = {}
    for node in model.graph.node:
        weight = graph.weight_of(node, known)
        if weight is None or node.input[0] in known or graph.attribute(node, "transA", 0):
            continue
        add = added.get(node.output[0])
        if node.op_type == "MatMul":
            if add is not None and len(readers[node.output[0]]) == 1 and len(weight.dims) == _MATRIX:
                found[node.name] = (add, 1)
        elif len(node.input) <= _BIAS or not node.input[_BIAS] or node.input[_BIAS] in known:
            found[node.name] = (node, _BIAS)
    return found


def is_bias(node: Any, known: dict[str, Any]) -> bool:
    """Whether a node adds a constant vector to its first input."""
    return node.op_type == "Add" and node.input[1] in known and len(known[node.input[1]].dims) == 1


def rounded(weight: Array, axis: int | None, top: int) -> tuple[Array, Array]:
    """Integers in [-top, top] as float32 and the scale (with size 1 along reduced axes) of symmetric quantisation.

    ``axis`` is the channel's; None is one scale for all. A channel of zeros has scale 1.
    """
    import numpy as np

    others = tuple(i for i in range(weight.ndim) if i != axis)
    reach = np.abs(weight).max(axis=others, keepdims=True).astype(np.float64)
    scale = (reach / top).astype(np.float32)
    scale[scale < np.finfo(np.float32).tiny] = 1
    return np.clip(np.rint(weight / scale), -top, top).astype(np.float32), scale


def _shifts(model: Any, means: dict[tuple[str, bool], Mean], settings: Settings) -> dict[str, list[float]]:
    """Feed each layer's mean input through the error of its rounded weights: E[(W' - W) x] = (W' - W) E[x].

    Nagel et al., "Data-free quantization through weight equalization and bias correction", 2019, eq. 15-17, with the
    measured mean in place of one derived from batch normalisation.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    known = graph.constants(model)
    holders = _biases(model)
    shapes = probe.shapes(model)
    nodes, inputs, weights, feeds = [], {}, [], {}
    for index, node in enumerate(layer for layer in model.graph.node if layer.name in holders):
        mean = means[node.input[0], _is_image(node)].value
        if mean is None:
            continue
        weight = graph.array(graph.weight_of(node, known))
        integers, scale = rounded(
            weight, graph.channel_axis(node, weight.ndim) if settings.channel else None, settings.top
        )
        name = f"{'image' if _is_image(node) else 'vector'}:{node.input[0]}"
        if _is_image(node):  # the mean everywhere, as the borders see padding
            mean = np.broadcast_to(mean, (*mean.shape[:2], *_size(shapes.get(node.input[0]), mean.ndim - 2)))
        feeds[name] = mean.astype(np.float32)
        inputs[name] = helper.make_tensor_value_info(name, 1, mean.shape)
        weights.append(numpy_helper.from_array(integers * scale - weight, f"w{index}"))
        copy = helper.make_node(node.op_type, [name, f"w{index}"], [f"y{index}"], node.name)
        copy.attribute.extend(node.attribute)
        nodes.append(copy)
    outputs = [helper.make_empty_tensor_value_info(node.output[0]) for node in nodes]
    errors = helper.make_model(
        helper.make_graph(nodes, "errors", list(inputs.values()), outputs, weights),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    found = graph.session(errors).run(None, feeds) if nodes else []
    shifts = {}
    for node, value in zip(nodes, found, strict=True):
        channels = value.mean(axis=(0, *range(2, value.ndim))) if _is_image(node) else value.reshape(-1)
        shifts[node.name] = [float(item) for item in channels]
    return shifts


def _size(shape: list[int] | None, axes: int) -> list[int]:
    """Rows and columns of an image, as far as the file says."""
    known = (shape or [])[2:]
    return [size or _UNKNOWN_SIZE for size in known] if len(known) == axes else [_UNKNOWN_SIZE] * axes


def correct(model: Any, shifts: dict[str, list[float]]) -> int:
    """Subtract from the biases what rounding the weights adds; a layer without a bias is given one.

    Returns how many layers were corrected.
    """
    import numpy as np
    from onnx import numpy_helper

    known = graph.constants(model)
    for name, (node, place) in _biases(model).items():
        if name not in shifts:
            continue
        has = len(node.input) > place and node.input[place]
        before = graph.array(known[node.input[place]]) if has else 0.0
        corrected = f"{name}_bias_corrected"  # a bias of its own: others may share the old one
        values = (before - np.array(shifts[name])).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, corrected))
        node.input[place:] = [corrected]
    graph.remove_unused(model)
    return len(shifts)
