"""The graph of an OpenVINO model as quantisation sees it: layers, weights, quantisers, attention."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from edgepipe.errors import IntegrityError

_WEIGHTED = (
    "Convolution",
    "GroupConvolution",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
    "MatMul",
    "LSTMSequence",
    "GRUSequence",
)
_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2")
# What moves values or chooses among them: a quantiser in front of it holds for what comes after it too.
_MOVING = (
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Convert",
    "Split",
    "VariadicSplit",
    "Slice",
    "StridedSlice",
    "Gather",
    "Concat",
    "Pad",
    "Tile",
    "Broadcast",
    "MaxPool",
    "ReduceMax",
    "ShuffleChannels",
    "DepthToSpace",
    "SpaceToDepth",
)
QUANTISER = "FakeQuantize"


def layers(model: Any) -> list[dict[str, Any]]:
    """The layers of a graph that holds its quantisers, in order: those that take in what a quantiser gives."""
    found = []
    for op in model.get_ordered_ops():
        if op.get_type_name() in (QUANTISER, "Result", *_MOVING):
            continue
        sources = [_behind(port.get_source_output().get_node(), _MOVING) for port in op.inputs()]
        if any(source.get_type_name() == QUANTISER for source in sources):
            weights = sum(math.prod(item.get_output_shape(0)) for item in _constants(sources))
            found.append({"name": op.get_friendly_name(), "op": op.get_type_name(), "weights": weights})
    return found


def _constants(sources: list[Any]) -> Iterator[Any]:
    """The constants that quantisers among ``sources`` take in."""
    for source in sources:
        if source.get_type_name() == QUANTISER:
            origin = _behind(source.input_value(0).get_node(), ("Convert",))
            if origin.get_type_name() == "Constant":
                yield origin


def _behind(node: Any, kinds: tuple[str, ...]) -> Any:
    """The first node upwards along first inputs that is none of ``kinds``."""
    while node.get_type_name() in kinds:
        node = node.input_value(0).get_node()
    return node


def weighted(model: Any) -> Iterator[tuple[Any, Any]]:
    """Layers with weights of a float graph, and each constant of theirs."""
    for op in model.get_ordered_ops():
        if op.get_type_name() in _WEIGHTED:
            for port in op.inputs():
                node = _behind(port.get_source_output().get_node(), ("Convert", "Reshape", "Transpose"))
                if node.get_type_name() == "Constant" and node.get_element_type().is_real():
                    yield op, node


def check_weights(model: Any, where: str) -> None:
    """See to it that all weights of layers are numbers.

    Raises:
        IntegrityError: one is NaN or infinite.
    """
    import numpy as np

    for op, constant in weighted(model):
        if not np.isfinite(constant.get_data().astype(np.float32)).all():
            what = f"the weights of layer {op.get_friendly_name()[:120]} hold NaN or infinity"
            raise IntegrityError(what, where, "train the model again, or leave the layer out")


def activations(model: Any) -> list[Any]:
    """The quantisers of activations, in order: those that don't take in a constant."""
    return [
        op
        for op in model.get_ordered_ops()
        if op.get_type_name() == QUANTISER
        and _behind(op.input_value(0).get_node(), ("Convert",)).get_type_name() != "Constant"
    ]


def groups(quantisers: list[Any]) -> list[list[str]]:
    """Names of quantisers that must share a range, as they feed one concatenation; all others alone."""
    joined: dict[str, list[str]] = {}
    for op in quantisers:
        targets = [target.get_node() for target in op.output(0).get_target_inputs()]
        concats = [node.get_friendly_name() for node in targets if node.get_type_name() == "Concat"]
        joined.setdefault(f"concat {concats[0]}" if concats else op.get_friendly_name(), []).append(
            op.get_friendly_name()
        )
    return list(joined.values())


def unquantised(output: Any) -> tuple[str, int]:
    """The node and the index of its output that an output comes from when quantisers are taken away."""
    while output.get_node().get_type_name() == QUANTISER:
        output = output.get_node().input_value(0)
    return output.get_node().get_friendly_name(), output.get_index()


Reduce = tuple[str, tuple[int, ...]]
"""What an output is reduced by: "min", "max" or "mean", and over which axes."""


def bare(model: Any, watched: Iterable[tuple[tuple[str, int], Reduce | None]]) -> Any:
    """A copy without any quantiser, whose outputs are those of ``model``, then the ``watched`` (see `unquantised`).

    What is wanted reduced is reduced inside the graph, with the axes kept: less leaves it, and less is in memory.
    """
    import numpy as np
    import openvino
    from openvino import opset13

    copy = model.clone()
    nodes = {op.get_friendly_name(): op for op in copy.get_ordered_ops()}
    for op in nodes.values():
        if op.get_type_name() == QUANTISER:
            for target in op.output(0).get_target_inputs():
                target.replace_source_output(op.input_value(0))
    extra = []
    for (name, index), reduce in watched:
        output = nodes[name].output(index)
        if reduce and reduce[1]:
            output = getattr(opset13, f"reduce_{reduce[0]}")(output, np.array(reduce[1]), keep_dims=True).output(0)
        extra.append(opset13.result(output))
    return openvino.Model([*copy.get_results(), *extra], copy.get_parameters())


def size(model: Any) -> int:
    """Bytes of all that the operations of a graph give, but for constants and what has open sizes."""
    ports = [port for op in model.get_ops() if op.get_type_name() != "Constant" for port in op.outputs()]
    shapes = [(port.get_partial_shape(), port.get_element_type().size) for port in ports]
    return sum(math.prod(shape.to_shape()) * each for shape, each in shapes if shape.is_static)


def has_attention(model: Any) -> bool:
    """Whether two activations are multiplied after a softmax, or an operation of the graph is attention itself."""
    for op in model.get_ops():
        if op.get_type_name() == "ScaledDotProductAttention":
            return True
        if op.get_type_name() == "Softmax":
            after = [target.get_node() for target in op.output(0).get_target_inputs()]
            while after:
                node = after.pop()
                if node.get_type_name() == "MatMul":
                    sources = [_behind(port.get_source_output().get_node(), _MOVING) for port in node.inputs()]
                    if all(source.get_type_name() not in ("Constant", QUANTISER) for source in sources):
                        return True
                elif node.get_type_name() in _MOVING:
                    after += [target.get_node() for target in node.output(0).get_target_inputs()]
    return False


def keep_reduced_axes(model: Any) -> None:
    """Rewrite reductions in front of matrix products: reduce with the axis kept, then squeeze it away.

    The CPU plug-in (2026.4) computes garbage from a reduction that drops its axis, followed by a factor for each
    channel and a quantiser, which is what SmoothQuant makes of it: 10 dB where 130 dB are due.
    """
    from openvino import opset13

    for op in model.get_ordered_ops():
        if op.get_type_name() not in _REDUCTIONS or op.get_attributes()["keep_dims"]:
            continue
        targets = [item for item in op.output(0).get_target_inputs() if item.get_node().get_type_name() == "MatMul"]
        if targets:
            name = op.get_type_name().removeprefix("Reduce").lower()
            kept = getattr(opset13, f"reduce_{name}")(op.input_value(0), op.input_value(1), keep_dims=True)
            kept.set_friendly_name(op.get_friendly_name())
            op.set_friendly_name(f"{op.get_friendly_name()}/dropped")
            squeezed = opset13.squeeze(kept, op.input_value(1))
            for target in targets:
                target.replace_source_output(squeezed.output(0))
