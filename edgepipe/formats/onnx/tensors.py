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


def precision(path: str) -> str:
    """The coarsest precision the file stores weights in: int8 for integers of any width, float16, or float32."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    kinds = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
    domains = {node.domain for node in model.graph.node if node.op_type == "MatMulNBits"}
    if domains or kinds & {2, 3, 4, 5, 21, 22}:  # (u)int8, (u)int16, (u)int4 of TensorProto
        return "int8"
    return "float16" if kinds & {10, 16} else "float32"


def tensors(path: str) -> list[dict[str, Any]]:
    """Float tensors that depend on the inputs, in the order they are computed (runs in the child).

    Each is ``{"name", "alias", "layer": the node's name, "op": its operator, "inputs": tensors the node reads}``. A
    tensor that goes through a quantiser counts once, as what comes out of it, under the ``alias`` of what went in: the
    quantiser may do the work of an activation.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    kinds = _kinds(model)
    alive = {value.name for value in model.graph.input} - set(graph.constants(model))
    quantised, into = _quantisers(model)
    found: list[dict[str, Any]] = []
    made: dict[str, tuple[str, str, list[str]]] = {}
    for index, node in enumerate(model.graph.node):
        if not alive & _reads(node):
            continue
        alive.update(name for name in node.output if name)
        own = (node.name or f"{node.op_type}_{index}", node.op_type, list(node.input))
        unknown = 0 if node.op_type.startswith(_NO_TENSORS) else 1
        for name in node.output:
            made[name] = own
            if not name or name in quantised or kinds.get(name, unknown) not in _FLOATS:
                continue
            alias = into.get(name, name)
            layer, op, inputs = made.get(alias, own)
            found.append({"name": name, "alias": alias, "layer": layer, "op": op, "inputs": inputs})
    return found


def _quantisers(model: Any) -> tuple[set[str], dict[str, str]]:
    """Tensors that only quantisers read; and what comes out of a pair of quantisers -> what went in."""
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    kept = {value.name for value in model.graph.output}
    quantised = {name for name, ops in readers.items() if ops == {"QuantizeLinear"} and name not in kept}
    narrow = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    wide = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in narrow]
    into = {node.output[0]: narrow[node.input[0]] for node in wide}
    return quantised, {name: source for name, source in into.items() if source in quantised}


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


def cut(source: str, folder: str, most: int) -> dict[str, Any]:
    """Write copies of the file that put out what flows inside it, ``most`` tensors each (runs in the child).

    Returns ``{"tensors": see `tensors`, "files": names in ``folder`` of each copy, in the tensors' order}``.
    """
    from pathlib import Path

    import onnx

    rows = tensors(source)
    model = onnx.load(source)
    known = {value.name: value for value in (*model.graph.output, *model.graph.value_info)}
    files = []
    for start in range(0, len(rows), most):
        names = [row["name"] for row in rows[start : start + most]]
        found = [known.get(name) or onnx.helper.make_empty_tensor_value_info(name) for name in names]
        del model.graph.output[:]
        model.graph.output.extend(found)
        files.append([f"part{start}.onnx"])
        onnx.save(model, str(Path(folder) / files[-1][0]))
    return {"tensors": rows, "files": files}
