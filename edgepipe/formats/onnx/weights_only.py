"""Weight-only quantisation: matrix products as MatMulNBits, convolutions as integers that are widened when loaded."""

from __future__ import annotations

from typing import Any

from edgepipe.formats.onnx import graph
from edgepipe.formats.onnx.ranges import rounded

_INT8, _MATRIX = 8, 2
_BLOCK_OPSET, _CHANNEL_OPSET = 21, 13  # DequantizeLinear: int4 and blocks; an axis


def int8w(source: str, target: str, group: int, opset: int | None) -> dict[str, Any]:
    """Store weights as int8, one scale for each channel or for each ``group`` inputs (runs in the child)."""
    return _store(source, target, 8, group, opset)


def int4(source: str, target: str, group: int, opset: int | None) -> dict[str, Any]:
    """Store weights as int4, one scale for each ``group`` inputs (runs in the child)."""
    return _store(source, target, 4, group, opset)


def _store(source: str, target: str, bits: int, group: int, opset: int | None) -> dict[str, Any]:
    import onnx

    model = graph.optimised(source)
    known = graph.constants(model)
    products = sum(n.op_type == "MatMul" and graph.weight_of(n, known) is not None for n in model.graph.node)
    blocks = bool(products and group)
    if blocks:
        model = _products(model, bits, group)
        known = graph.constants(model)
    rest = [n for n in model.graph.node if n.domain in ("", "ai.onnx") and graph.weight_of(n, known) is not None]
    if not rest and not blocks:
        return graph.unchanged(source, target, "no layer has constant weights")
    if rest:
        model = graph.raise_opset(model, _BLOCK_OPSET if bits < _INT8 else _CHANNEL_OPSET, opset, f"int{bits} weights")
        known = graph.constants(model)
        names = {node.name for node in rest}
        for node in [node for node in model.graph.node if node.name in names]:
            _widened(model, node, known[node.input[1]], bits, group)
    graph.remove_unused(model)
    if bits < _INT8:  # the first IR version with 4-bit tensors
        model.ir_version = max(model.ir_version, onnx.IR_VERSION_2024_3_25)
    parts = [f"{products} matrix products in groups of {group}, computed on int{bits}"] * blocks
    parts += [f"{len(rest)} layers stored as int{bits} and widened when loaded: it saves size, not time"] * bool(rest)
    return graph.finish(model, target, "; ".join(parts))


def _products(model: Any, bits: int, group: int) -> Any:
    """MatMul with constant weights -> MatMulNBits, by ONNX Runtime's own tool."""
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    how = DefaultWeightOnlyQuantConfig(block_size=group, is_symmetric=True, accuracy_level=4, bits=bits)
    tool = MatMulNBitsQuantizer(model, algo_config=how)
    tool.process()
    found = tool.model.model
    graph.add_domain(found)
    return found


def _widened(model: Any, node: Any, tensor: Any, bits: int, group: int) -> None:
    """Store one layer's weight as integers behind a DequantizeLinear: by groups of inputs where they divide."""
    import numpy as np
    from onnx import helper, numpy_helper

    weight = graph.array(tensor)
    axis = graph.channel_axis(node, weight.ndim)
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    along = 1 if axis == 0 else 0  # the axis of a matrix that runs over its inputs
    blocked = bool(group) and weight.ndim == _MATRIX and rows.shape[1] % group == 0 and bits < _INT8
    top = 2 ** (bits - 1) - 1
    if blocked:
        split = weight.reshape(weight.shape[0], -1, group) if along else weight.reshape(-1, group, weight.shape[1])
        reach = np.abs(split).max(axis=2 if along else 1)
        scale = np.where(reach > 0, reach / top, 1.0).astype(np.float32)
        integers = np.clip(np.rint(weight / np.repeat(scale, group, axis=along)), -top, top)
    else:
        integers, scale = rounded(weight, axis, top)
        scale = scale.reshape(-1)
    name = f"{node.name}_weight"
    stored = _tensor(f"{name}_int{bits}", integers.astype(np.int8), bits)
    model.graph.initializer.extend([stored, numpy_helper.from_array(scale, f"{name}_scale")])
    attributes = {"axis": along, "block_size": group} if blocked else {"axis": axis}
    inputs = [stored.name, f"{name}_scale"]
    widen = helper.make_node("DequantizeLinear", inputs, [f"{name}_float"], f"{name}_widen", **attributes)
    node.input[1] = f"{name}_float"
    model.graph.node.insert(list(model.graph.node).index(node), widen)


def _tensor(name: str, integers: Any, bits: int) -> Any:
    """A tensor of int8, or of int4 with two values in a byte, the first one in the low half."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    if bits == _INT8:
        return numpy_helper.from_array(integers, name)
    flat = integers.ravel().view(np.uint8) & 15
    pairs = np.append(flat, np.zeros(flat.size % 2, np.uint8)).reshape(-1, 2)
    packed = (pairs[:, 0] | pairs[:, 1] << 4).astype(np.uint8)
    return helper.make_tensor(name, TensorProto.INT4, integers.shape, packed.tobytes(), raw=True)
