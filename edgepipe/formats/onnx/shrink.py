"""A quantised file without what its quantiser left over: a quarter of a small model's file."""

from __future__ import annotations

import itertools
from typing import Any

from edgepipe.formats.onnx import graph

_PAIRS = ("QuantizeLinear", "DequantizeLinear")
_BIAS = 2  # the input of Conv and Gemm that is the bias
_SUFFIXES = ("_quantized", "_bias_corrected")


def shrink(model: Any) -> None:
    """Compute the scales of biases, share equal zero points, and give short names to what the quantiser added."""
    _compute_scales(model)
    graph.remove_unused(model)
    _rename(model)


def _compute_scales(model: Any) -> None:
    """Let a bias's scale be the product of the input's and the weights', as it is; runtimes fold that when they load.

    Stored, it takes as many bytes as the bias itself.
    """
    import numpy as np
    import onnx

    known = graph.constants(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    added = []
    for node in model.graph.node:
        pairs = [makers.get(name) for name in node.input]
        if node.op_type not in ("Conv", "Gemm") or len(pairs) <= _BIAS:
            continue
        if any(pair is None or pair.op_type != "DequantizeLinear" for pair in pairs):
            continue
        *factors, scale = (pair.input[1] for pair in pairs if pair is not None)
        if not all(name in known for name in (*factors, scale)):
            continue
        stored = graph.array(known[scale])
        product = np.multiply(*(graph.array(known[name]) for name in factors), dtype=np.float32)
        if stored.size > 1 and np.array_equal(stored, product.reshape(-1)):
            added.append(onnx.helper.make_node("Mul", factors, [f"{scale}_product"]))
            bias = pairs[_BIAS]
            assert bias is not None
            bias.input[1] = f"{scale}_product"
    model.graph.node.extend(added)


def _rename(model: Any) -> None:
    added = [node for node in model.graph.node if node.op_type in _PAIRS]
    known = graph.constants(model)
    names = {value.name: value.name for value in model.graph.output}  # old name -> new name
    renamed = {name for node in added for name in (*node.input[1:], *node.output)} - names.keys()
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)} | known.keys()
    taken -= renamed
    fresh = (name for name in map("q{}".format, itertools.count()) if name not in taken)
    shared: dict[Any, str] = {}
    for node in added:
        node.name = ""
        if node.input[0] in known:
            names[node.input[0]] = _plain(node.input[0], taken)
        for name in (*node.input[1:], *node.output):
            zero = name in known and name == node.input[-1]
            content = (known[name].data_type, graph.array(known[name]).tobytes(), *known[name].dims) if zero else name
            if content not in shared:
                shared[content] = next(fresh)
            names.setdefault(name, shared[content])
    for node in model.graph.node:
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]
    kept = {names.get(name, name): tensor for name, tensor in known.items()}
    del model.graph.initializer[:]
    for name, tensor in kept.items():
        tensor.name = name
    model.graph.initializer.extend(kept.values())


def _plain(name: str, taken: set[str]) -> str:
    """A constant's name before it was quantised, if nothing else is called so."""
    for suffix in _SUFFIXES:
        plain = name.removesuffix(suffix)
        if plain not in taken:
            taken.add(plain)
            name = plain
    return name
