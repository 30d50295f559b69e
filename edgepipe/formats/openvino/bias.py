"""Biases corrected for the shift that rounding the weights brings (Nagel et al., "Data-free quantization", 2019, 4.2).

A layer is linear, so the mean of its output moves by the rounding error of its weights times the mean of its input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgepipe.formats.openvino.graph import QUANTISER, unquantised

_KERNELS = ("Convolution", "GroupConvolution")


@dataclass(frozen=True)
class Correction:
    """A layer's bias and what rounding did to its weights: ``error`` of shape [groups, outputs, inputs] of a group.

    ``source`` is the layer's input (see `graph.unquantised`), whose mean over ``axes`` `apply` wants.
    """

    source: tuple[str, int]
    axes: tuple[int, ...]
    bias: Any
    error: Any

    def apply(self, mean: Any) -> bool:
        """Put the corrected bias in place; false where the shapes are not those of a channel each."""
        import numpy as np
        from openvino import opset13

        groups, _, inputs = self.error.shape
        old = self.bias.get_data()
        if mean is None or mean.size != groups * inputs or not np.isfinite(mean).all():
            return False
        shift = np.einsum("goi,gi->go", self.error, mean.reshape(groups, inputs)).ravel()
        if shift.size != old.size:
            return False
        new = opset13.constant((old - shift.reshape(old.shape)).astype(old.dtype))
        new.set_friendly_name(self.bias.get_friendly_name())
        for target in self.bias.output(0).get_target_inputs():
            target.replace_source_output(new.output(0))
        return True


def corrections(model: Any) -> Iterator[Correction]:
    """The layers of a graph with quantisers whose weights are quantised and whose biases are their own."""
    for op in model.get_ordered_ops():
        if op.get_type_name() not in (*_KERNELS, "MatMul"):
            continue
        quantiser, bias, rank = op.input_value(1).get_node(), _bias(op), op.input(0).get_partial_shape().rank
        weights = _values(quantiser.input_value(0).get_node()) if quantiser.get_type_name() == QUANTISER else None
        if weights is None or bias is None or rank.is_dynamic:
            continue
        error = _rounded(weights, quantiser) - weights
        channel = 1 if op.get_type_name() in _KERNELS else rank.get_length() - 1
        if op.get_type_name() == "MatMul":
            facts = op.get_attributes()
            if error.ndim != 2 or facts["transpose_a"]:  # noqa: PLR2004  inputs and outputs
                continue
            error = error if facts["transpose_b"] else error.T
        error = error[None] if op.get_type_name() != "GroupConvolution" else error
        error = error.sum(axis=tuple(range(3, error.ndim)))
        axes = tuple(axis for axis in range(rank.get_length()) if axis != channel)
        yield Correction(unquantised(op.input_value(0)), axes, bias, error)


def _bias(op: Any) -> Any:
    """The constant added to what a layer gives, or None."""
    targets = list(op.output(0).get_target_inputs())
    if len(targets) != 1 or targets[0].get_node().get_type_name() != "Add":
        return None
    other = targets[0].get_node().input_value(1 - targets[0].get_index()).get_node()
    own = other.get_type_name() == "Constant" and len(other.output(0).get_target_inputs()) == 1
    return other if own and other.get_element_type().is_real() else None


def _values(node: Any) -> Any:
    import numpy as np

    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return node.get_data().astype(np.float64) if node.get_type_name() == "Constant" else None


def _rounded(weights: Any, quantiser: Any) -> Any:
    """What the quantiser makes of the weights, by its definition in OpenVINO's specification of operations."""
    import numpy as np

    low, high, out_low, out_high = (_values(quantiser.input_value(port).get_node()) for port in range(1, 5))
    last = quantiser.get_attributes()["levels"] - 1
    level = np.round((np.clip(weights, low, high) - low) / (high - low) * last)
    return level / last * (out_high - out_low) + out_low
