"""Weight-only quantisation: weights stored in 8 or 4 bits, arithmetic in float32; needs no data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.formats.onnx import graph, widen

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

GROUPS = (16, 32, 64, 128, 256)  # block sizes of the MatMulNBits kernels
_SMALLEST = 16  # a 4-bit block of fewer weights saves nothing over 8 bits: its scale weighs more
_WORTH = 1 << 16  # weights of a matrix from which on MatMulNBits was as fast as float32 (AVX2, 1 to 196 rows)


def int8w(source: str, target: str, group: int, opset: int | None = None) -> dict[str, Any]:
    """Store the weights of layers and embedding tables as int8, with a scale for each ``group`` weights of a channel.

    ``group`` 0 is one scale per output channel. Runs in the child.
    """
    model = graph.optimised(source, without=("MatMulAddFusion",))
    model = graph.raise_opset(model, widen.LEAST_OPSET, opset, "int8w")
    found = _weights(model)
    if not found:
        return graph.unchanged(source, target, f"the file has no {', '.join(graph.LAYERS)} or Gather of weights")
    for tensor, axis in found:
        widen.insert(model, tensor, widen.blocks(tuple(tensor.dims), axis, group), 8)
    note = f"{len(found)} tensors stored in 8 bits and widened to float32 on load: a smaller file, the same speed"
    return graph.finish(model, target, note)


def int4(source: str, target: str, group: int, opset: int | None = None) -> dict[str, Any]:
    """Store weights in 4 bits, in blocks of ``group`` (one of `GROUPS`). Runs in the child.

    A large MatMul or Gemm becomes MatMulNBits, whose kernels read the 4 bits; the weights of the others, of
    convolutions and of embedding tables are widened on load. Blocks of fewer than 16 weights (depthwise kernels) stay
    at 8 bits.
    """
    model = graph.optimised(source, without=("MatMulAddFusion",))
    model = graph.raise_opset(model, widen.LEAST_OPSET, opset, "int4")
    known = graph.constants(model)
    blocked = [node for node in model.graph.node if _is_large_matrix(node, known)]
    for node in blocked:
        _to_blocks(model, node, known, group)
    graph.remove_unused(model)
    found = _weights(model)
    if not blocked and not found:
        return graph.unchanged(source, target, f"the file has no {', '.join(graph.LAYERS)} or Gather of weights")
    bytes_ = 0
    for tensor, axis in found:
        cut = widen.blocks(tuple(tensor.dims), axis, group)
        small = graph.count(tensor) % 2 or cut.size < _SMALLEST
        bytes_ += bool(small)
        widen.insert(model, tensor, cut, 8 if small else 4)
    notes = [f"{len(blocked)} large MatMul and Gemm compute on 4-bit weights"] * bool(blocked)
    notes += [f"{len(found)} tensors are widened to float32 on load: smaller, not faster"] * bool(found)
    notes += [f"{bytes_} of them stored in 8 bits, their blocks being too small"] * bool(bytes_)
    return graph.finish(model, target, "; ".join(notes))


def _weights(model: Any) -> list[tuple[Any, int]]:
    """Float constants worth storing in fewer bits, each once, with the axis of its output channels or table rows."""
    from onnx import TensorProto

    known = graph.constants(model)
    found: dict[str, tuple[Any, int]] = {}
    for node in model.graph.node:
        tensor = graph.weight_of(node, known)
        if tensor is not None:
            found.setdefault(tensor.name, (tensor, graph.channel_axis(node, len(tensor.dims))))
        elif node.op_type == "Gather" and node.input[0] in known and not graph.attribute(node, "axis", 0):
            table = known[node.input[0]]
            if table.data_type == TensorProto.FLOAT and len(table.dims) > 1:
                found.setdefault(table.name, (table, 0))
    return list(found.values())


def _is_large_matrix(node: Any, known: dict[str, Any]) -> bool:
    """Whether MatMulNBits can stand for the node, and gains by it."""
    weight = graph.weight_of(node, known)
    if weight is None or len(weight.dims) != 2 or graph.count(weight) < _WORTH:  # noqa: PLR2004
        return False
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    return node.op_type == "MatMul" or (
        node.op_type == "Gemm" and all(graph.attribute(node, name, value) == value for name, value in plain.items())
    )


def _to_blocks(model: Any, node: Any, known: dict[str, Any], group: int) -> None:
    """Put MatMulNBits in the place of a MatMul or Gemm: https://github.com/microsoft/onnxruntime ContribOperators.md.

    Its weight is [N, blocks of K, bytes], the even values of a block in the low nibbles.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    weight = graph.array(known[node.input[1]])
    rows = weight if node.op_type == "Gemm" and graph.attribute(node, "transB", 0) else weight.T
    channels, inner = rows.shape
    group = min(group, max(GROUPS[0], 1 << (inner - 1).bit_length()))  # no larger than the padded row
    number = -(-inner // group)
    padded = np.pad(rows, ((0, 0), (0, number * group - inner)))
    integers, scale, zero = widen.to_nibbles(padded, widen.Blocks((channels, number, group), (2,)))
    zeros = np.pad(zero.reshape(channels, number), ((0, 0), (0, number % 2)))
    parts = {
        "packed": integers[..., ::2] | (integers[..., 1::2] << 4),
        "scales": scale.reshape(-1),
        "zeros": (zeros[:, ::2] | (zeros[:, 1::2] << 4)).reshape(-1),
    }
    names = [f"{node.name}_{part}" for part in parts]
    model.graph.initializer.extend(
        numpy_helper.from_array(values, name) for name, values in zip(names, parts.values(), strict=True)
    )
    bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] else ""  # noqa: PLR2004
    output = f"{node.name}_product" if bias else node.output[0]
    made = [
        helper.make_node(
            "MatMulNBits",
            [node.input[0], *names],
            [output],
            node.name,
            domain=graph.MICROSOFT,
            K=inner,
            N=channels,
            bits=4,
            block_size=group,
            accuracy_level=4,  # the kernels may quantise the activations to int8 on the way; level 0 is slower
        )
    ]
    if bias:
        made.append(helper.make_node("Add", [output, bias], [node.output[0]], f"{node.name}_bias"))
    place = list(model.graph.node).index(node)
    model.graph.node.remove(node)
    for offset, new in enumerate(made):
        model.graph.node.insert(place + offset, new)
    graph.add_domain(model)
