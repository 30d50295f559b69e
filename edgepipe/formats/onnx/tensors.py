"""The layers of an ONNX file: which it wants computed in integers, and what flows between them."""

from __future__ import annotations

from typing import Any

from edgepipe.formats.onnx import graph

_INTEGER = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "QGemm")
_BYTES = (2, 3)  # uint8 and int8 of TensorProto
_NO_TENSORS = ("Sequence", "Split", "Optional", "Concat", "String")  # operators that may give other things than tensors
_FLOATS = (1, 10, 11, 16)  # float, float16, double, bfloat16 of TensorProto


def integer_layers(path: str) -> int:
    """How many layers the file says are to be computed on 8-bit activations and weights (runs in the child)."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    makers = {name: node for node in model.graph.node for name in node.output}
    known = graph.constants(model)
    return sum(
        node.op_type in _INTEGER
        or (node.op_type in graph.LAYERS and all(_in_bytes(name, makers, known) for name in node.input[:2]))
        for node in model.graph.node
    )


def _in_bytes(name: str, makers: dict[str, Any], known: dict[str, Any]) -> bool:
    """Whether a tensor is dequantised from 8-bit numbers."""
    node = makers.get(name)
    if node is None or node.op_type != "DequantizeLinear":
        return False
    source = node.input[0]
    if source not in known and source in makers:
        node, source = makers[source], makers[source].input[-1]  # the zero point of the QuantizeLinear
    tensor = known.get(source)
    return tensor is not None and tensor.data_type in _BYTES


def tensors(path: str) -> list[dict[str, Any]]:
    """Float tensors that depend on the inputs, in the order they are computed (runs in the child).

    Each is ``{"name", "layer": the node's name, "op": its operator, "inputs": tensors the node reads}``.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    kinds = _kinds(model)
    weights = set(graph.constants(model))
    alive = {value.name for value in model.graph.input} - weights
    found = []
    for index, node in enumerate(model.graph.node):
        if not alive & _reads(node):
            continue
        alive.update(name for name in node.output if name)
        unknown = 0 if node.op_type.startswith(_NO_TENSORS) else 1
        for name in node.output:
            if name and kinds.get(name, unknown) in _FLOATS:
                layer = node.name or f"{node.op_type}_{index}"
                found.append({"name": name, "layer": layer, "op": node.op_type, "inputs": list(node.input)})
    return found


def _reads(node: Any) -> set[str]:
    """Names a node reads, also from within the graphs inside it."""
    names = set(node.input)
    for item in node.attribute:
        for inner in (item.g, *item.graphs):
            for each in inner.node:
                names |= _reads(each)
    return names


def _kinds(model: Any) -> dict[str, int]:
    """Element types by tensor, as far as inference tells."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # native code; types that are not known are tried
        inferred = model
    values = (*inferred.graph.value_info, *inferred.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values if value.type.tensor_type.elem_type}


def expose(source: str, target: str, names: list[str]) -> list[str]:
    """Write the file with these tensors as its only outputs; return the names of the files (runs in the child)."""
    from pathlib import Path

    import onnx

    model = onnx.load(source)
    known = {value.name: value for value in (*model.graph.output, *model.graph.value_info)}
    found = [known.get(name) or onnx.helper.make_empty_tensor_value_info(name) for name in names]
    del model.graph.output[:]
    model.graph.output.extend(found)
    onnx.save(model, target)
    return [Path(target).name]
