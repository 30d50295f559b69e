"""Write the ONNX file of a Llama network: onnxruntime's own operators, a key-value cache, weights in 32, 8 or 4 bits.

Inputs: ``tokens`` [1, S]; ``rows`` [R], the positions among S whose next token is wanted; ``last`` [1] and ``total``,
what the cache holds after these tokens, less one and as it is; ``past_key.0``, ``past_value.0`` ... [1, K, P, D].
Outputs: ``logits`` [R, V], ``next_key.0`` ... [1, K, P', D]. Where past and next are one buffer of P = P' places, each
call writes into it; where they are not, P is what was seen before and P' is ``total``.

The weights lie beside the file in ``model.onnx.data``, which the runtime maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, external_data_helper, helper, numpy_helper, save

from edgepipe import cache
from edgepipe.llm.files import IR, NAME, OPSET
from edgepipe.llm.packed import Packed, summing
from edgepipe.llm.sizes import Sizes
from edgepipe.llm.weights import Weights

DATA = f"{NAME}.data"
OWN = "com.microsoft"
_ALIGNED, _SMALL = 64, 1024
_PIECE = 8192  # outputs of the last product that are packed at once


class Writer:
    """A graph that grows node by node. ``accuracy`` is the form that inputs of packed products are rounded to."""

    def __init__(self, folder: Path, accuracy: int) -> None:
        self._folder, self._accuracy = folder, accuracy
        self._nodes: list[Any] = []
        self._tensors: dict[str, Any] = {}
        self._data = (folder / DATA).open("wb")

    def node(self, kind: str, given: list[str], result: str, domain: str = "", **attributes: Any) -> str:
        """Add a node of one output, and return its name. Everything is named by it."""
        self._nodes.append(helper.make_node(kind, given, [result], result, domain=domain, **attributes))
        return result

    def nodes(self, kind: str, given: list[str], results: list[str], domain: str = "", **attributes: Any) -> None:
        """Add a node of several outputs."""
        self._nodes.append(helper.make_node(kind, given, results, results[0], domain=domain, **attributes))

    def tensor(self, name: str, value: Any) -> str:
        """Keep a constant, once; large ones go to the data file."""
        if name in self._tensors:
            return name
        value = np.ascontiguousarray(value)
        if value.nbytes <= _SMALL:
            self._tensors[name] = numpy_helper.from_array(value, name)
            return name
        self._data.write(bytes(-self._data.tell() % _ALIGNED))
        found = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(value.dtype), dims=value.shape)
        _outside(found, self._data.tell(), value.nbytes)
        self._data.write(value.tobytes())
        self._tensors[name] = found
        return name

    def alias(self, name: str, of: str, shape: list[int], start: int = 0) -> str:
        """Values of another constant from ``start`` on, in another shape; they lie in the file once.

        The runtime lets go of a constant that a product has packed for itself, but not of one that another node reads.
        """
        found, source = TensorProto(), self._tensors[of]
        found.CopyFrom(source)
        found.name, found.dims[:] = name, shape
        each = helper.tensor_dtype_to_np_dtype(source.data_type).itemsize
        begin, length = start * each, prod(shape) * each
        if source.external_data:
            begin += int(next(entry.value for entry in source.external_data if entry.key == "offset"))
            _outside(found, begin, length)
        else:
            found.raw_data = source.raw_data[begin : begin + length]
        self._tensors[name] = found
        return name

    def product(self, given: str, weights: Packed | Any, result: str) -> str:
        """``given`` [..., K] times weights [N, K], floats or packed."""
        if not isinstance(weights, Packed):
            return self.node("MatMul", [given, self.tensor(f"{result}_w", weights.T)], result)
        names = [
            self.tensor(f"{result}_w", weights.weights),
            self.tensor(f"{result}_s", weights.scales.reshape(-1)),
        ]
        if weights.zeros is not None:
            names.append(self.tensor(f"{result}_z", weights.zeros.reshape(-1)))
        return self.packed(given, weights, names, result)

    def packed(self, given: str, weights: Packed, names: list[str], result: str) -> str:
        """The product with packed weights that are kept under ``names`` already."""
        if weights.width > weights.inputs:
            matrix = self.tensor(f"sums_{weights.inputs}_{weights.size}", summing(weights.inputs, weights.size))
            sums = self.node("MatMul", [given, matrix], f"{result}_sums")
            given = self.node("Concat", [given, sums], f"{result}_in", axis=-1)
        sizes = {"K": weights.width, "N": len(weights.weights), "bits": weights.bits, "block_size": weights.size}
        sizes["accuracy_level"] = self._accuracy
        return self.node("MatMulNBits", [given, *names], result, OWN, **sizes)

    def close(self, inputs: list[Any], outputs: list[Any]) -> None:
        """Write the file."""
        self._data.close()
        graph = helper.make_graph(self._nodes, "llama", inputs, outputs, list(self._tensors.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(OWN, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR)
        # The main file carries the hash of the other, so that its own stands for both.
        helper.set_model_props(model, {f"{DATA} sha256": cache.hash_file(self._folder / DATA)})
        save(model, self._folder / NAME)


def write(folder: Path, s: Sizes, weights: Weights, accuracy: int, scales: Sequence[Any] = ()) -> None:
    """Write the file of a network of sizes ``s`` to ``folder``.

    ``scales`` are the steps of keys and values kept in 8 bits, [K * D] for each layer and kind; without them they are
    floats.
    """
    w = Writer(folder, accuracy)
    last, total = "last", "total"
    inputs = [
        _value("tokens", TensorProto.INT64, [1, "step"]),
        _value("rows", TensorProto.INT64, ["rows"]),
        _value(last, TensorProto.INT32, [1]),
        _value(total, TensorProto.INT32, []),
    ]
    outputs = [_value("logits", TensorProto.FLOAT, ["rows", s.vocabulary])]
    table = weights.table
    x = _embedded(w, table)
    first = w.tensor("layers.0.attn_norm", weights.norm("layers.0.attn_norm"))
    h = w.node("SimplifiedLayerNormalization", [x, first], "layers.0.attn_in", axis=-1, epsilon=s.epsilon)
    for layer in range(s.layers):
        x, h = _layer(w, s, weights, layer, x, h, scales[2 * layer : 2 * layer + 2])
        stored = TensorProto.INT8 if scales else TensorProto.FLOAT
        for kind in ("key", "value"):
            inputs.append(_value(f"past_{kind}.{layer}", stored, [1, s.kv_heads, "past", s.head]))
            outputs.append(_value(f"next_{kind}.{layer}", stored, [1, s.kv_heads, "kept", s.head]))
    wanted = w.node("Gather", [h, "rows"], "wanted", axis=1)
    row = w.node("Reshape", [wanted, w.tensor("flat", np.array([-1, s.width], np.int64))], "row")
    _output(w, weights.output, table, row)
    w.close(inputs, outputs)


def _layer(w: Writer, s: Sizes, weights: Weights, layer: int, x: str, h: str, scales: Sequence[Any]) -> tuple[str, str]:
    """Attention, then the gated feed-forward: what goes on beside the layers, and the next one's input."""
    name = f"layers.{layer}"
    turns = [w.tensor("cosine", weights.cosine), w.tensor("sine", weights.sine)]
    past, kept = ([f"{when}_{kind}.{layer}" for kind in ("key", "value")] for when in ("past", "next"))
    qkv = w.product(h, weights.product(name, ("attn_q", "attn_k", "attn_v")), f"{name}.qkv")
    given, how = [qkv, "", "", *past, "last", "total", *turns], dict[str, Any]()
    if len(scales):
        steps = [w.tensor(f"{name}.{kind}_s", each) for kind, each in zip(("key", "value"), scales, strict=True)]
        given += ["", "", "", *steps]  # no places, bias or sinks
        how = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
    heads = {"num_heads": s.heads, "kv_num_heads": s.kv_heads, "do_rotary": 1}
    w.nodes("GroupQueryAttention", given, [f"{name}.mixed", *kept], OWN, **heads, **how)
    out = w.product(f"{name}.mixed", weights.product(name, ("attn_output",)), f"{name}.attn_out")
    x, h = _added(w, s, weights, f"{name}.ffn_norm", out, x)
    both = w.product(h, weights.product(name, ("ffn_gate", "ffn_up")), f"{name}.gate_up")
    w.nodes("Split", [both], [f"{name}.gate", f"{name}.up"], axis=-1, num_outputs=2)
    gate = w.node("QuickGelu", [f"{name}.gate"], f"{name}.gated", OWN, alpha=1.0)
    inner = w.node("Mul", [gate, f"{name}.up"], f"{name}.inner")
    down = w.product(inner, weights.product(name, ("ffn_down",)), f"{name}.ffn_out")
    following = f"layers.{layer + 1}.attn_norm" if layer + 1 < s.layers else "norm"
    return _added(w, s, weights, following, down, x)


def _added(w: Writer, s: Sizes, weights: Weights, norm: str, one: str, other: str) -> tuple[str, str]:
    """The sum, and the sum normalised."""
    given = [one, other, w.tensor(norm, weights.norm(norm))]
    results = [f"{norm}_in", "", "", f"{norm}_sum"]
    w.nodes("SkipSimplifiedLayerNormalization", given, results, OWN, epsilon=s.epsilon)
    return results[3], results[0]


def _embedded(w: Writer, table: Packed | Any) -> str:
    """Rows of the embedding, which the output layer shares where the model says so."""
    if not isinstance(table, Packed):
        return w.node("Gather", [w.tensor("table", table), "tokens"], "embedded")
    flat = [len(table.weights), table.inputs]
    given = [w.tensor("table", table.weights.reshape(flat)), "tokens", w.tensor("table_s", table.scales)]
    return w.node(
        "GatherBlockQuantized", given, "embedded", OWN, bits=table.bits, block_size=table.size, quantize_axis=1
    )


def _output(w: Writer, output: Packed | Any | None, table: Packed | Any, row: str) -> None:
    """Logits of a row, by the embedding where there is no output layer of its own."""
    if output is not None:
        w.product(row, output, "logits")
    elif isinstance(table, Packed):
        _shared(w, table, row)
    else:
        w.node("Gemm", [row, "table"], "logits", transB=1)


def _shared(w: Writer, table: Packed, row: str) -> None:
    """The output layer by the embedding, in pieces: the runtime holds one twice while it packs it for itself."""
    count, blocks, size = table.weights.shape
    pieces = []
    for start in range(0, count, _PIECE):
        rows, name = min(_PIECE, count - start), f"logits_{start}"
        names = [
            w.alias(f"{name}_w", "table", [rows, blocks, size], start * blocks * size),
            w.alias(f"{name}_s", "table_s", [rows * blocks], start * blocks),
        ]
        part = replace(table, weights=table.weights[start : start + rows])
        pieces.append(w.packed(row, part, names, name))
    w.node("Concat", pieces, "logits", axis=-1)


def _outside(tensor: Any, offset: int, length: int) -> None:
    """Say that the values of a tensor lie in the data file."""
    tensor.raw_data = b"\0"  # wanted by the helper, and replaced by where they lie
    external_data_helper.set_external_data(tensor, DATA, offset, length)
    tensor.ClearField("raw_data")


def _value(name: str, kind: int, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)
