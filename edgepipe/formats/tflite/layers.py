"""Which operations of a TFLite file int8 quantises: its layers, and what can be computed in integers between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgepipe.formats.tflite import graph

_EXACT = frozenset(
    "BATCH_MATMUL DIV EQUAL NOT_EQUAL RSQRT SOFTMAX SQRT SQUARED_DIFFERENCE STABLEHLO_COMPOSITE".split()  # noqa: SIM905
)
"""Operations that stay in float, with what feeds them or reads them and has no weights. Layer normalisations and
attention are more exact that way, and on CPUs no slower."""


@dataclass(frozen=True)
class Layer:
    """An operation with constant float weights.

    ``data``, ``weights`` and ``bias`` are indices of tensors (bias -1: none); ``axis`` is the dimension of the weights
    that runs over output channels.
    """

    index: int
    op: str
    data: int
    weights: int
    bias: int
    axis: int


# operation -> places of data, weights and bias among its inputs, and the axis of the output channels in its weights
_PLACES = {
    "CONV_2D": (0, 1, 2, 0),
    "DEPTHWISE_CONV_2D": (0, 1, 2, 3),
    "FULLY_CONNECTED": (0, 1, 2, 0),
    "TRANSPOSE_CONV": (2, 1, 3, 0),
}


def layers(path: str) -> list[dict[str, Any]]:
    """The layers of a float file, in the order of the file (runs in the child).

    Each is ``{"name": what ``keep`` takes, "op": its kind, "weights": how many, without the bias}``.
    """
    model = graph.read(path)
    return [
        {
            "name": graph.name_of(model, layer.index),
            "op": layer.op,
            "weights": int(graph.constant(model, layer.weights).size),
        }
        for layer in find(model)
    ]


def find(model: Any) -> list[Layer]:
    """The layers of the main graph in its order; those whose weights or biases are computed are none."""
    found = []
    for index, op in enumerate(model.subgraphs[0].operators):
        kind = graph.operator(model, op)
        if kind not in _PLACES:
            continue
        data, weights, bias, axis = _PLACES[kind]
        inputs = [int(tensor) for tensor in op.inputs]
        layer = Layer(index, kind, inputs[data], inputs[weights], inputs[bias] if len(inputs) > bias else -1, axis)
        steady = graph.constant(model, layer.weights) is not None and (
            layer.bias < 0 or graph.constant(model, layer.bias) is not None
        )
        if steady and graph.is_float(model, layer.weights) and graph.is_float(model, layer.data):
            found.append(layer)
    return found


def tables(model: Any) -> set[int]:
    """The places of look-ups in constant float tables: embeddings, which are stored as integers and read as floats."""
    operators = model.subgraphs[0].operators
    lookups = [index for index, op in enumerate(operators) if graph.operator(model, op) == "EMBEDDING_LOOKUP"]
    held = {index: int(operators[index].inputs[1]) for index in lookups}
    return {i for i, table in held.items() if graph.is_float(model, table) and graph.constant(model, table) is not None}


def in_float(model: Any, keep: set[str], supported: Callable[[str], bool]) -> set[int]:
    """The operations of the main graph that stay in float, by their places.

    Those are: what the quantizer does not support or `_EXACT` names; then, again and again, operations without weights
    that are fed or read by one in float; then the layers ``keep`` names, and operations without weights that have
    nothing but float before them or behind them.
    """
    operators = model.subgraphs[0].operators
    kinds = [graph.operator(model, op) for op in operators]
    weighted = {layer.index for layer in find(model)}
    free = [index for index in range(len(operators)) if index not in weighted and kinds[index] not in _PLACES]
    feeders, readers = _neighbours(model)
    found = {index for index, kind in enumerate(kinds) if kind in _EXACT or not supported(kind)}
    found |= {index for index, kind in enumerate(kinds) if kind in _PLACES and index not in weighted}
    _spread(found, free, lambda index: bool((feeders[index] | readers[index]) & found))
    found |= {index for index in weighted if graph.name_of(model, index) in keep}
    _spread(found, free, lambda index: any(side and side <= found for side in (feeders[index], readers[index])))
    return found


def _spread(found: set[int], free: list[int], joins: Callable[[int], bool]) -> None:
    """Add the operations of ``free`` that join, until no more do."""
    before = -1
    while len(found) > before:
        before = len(found)
        found.update(index for index in free if index not in found and joins(index))


def _neighbours(model: Any) -> tuple[list[set[int]], list[set[int]]]:
    """For each operation: those whose float results it reads, and those that read its float results."""
    operators = model.subgraphs[0].operators
    made = {int(tensor): index for index, op in enumerate(operators) for tensor in op.outputs}
    feeders: list[set[int]] = [set() for _ in operators]
    readers: list[set[int]] = [set() for _ in operators]
    for index, op in enumerate(operators):
        for tensor in map(int, op.inputs):
            if tensor in made and graph.is_float(model, tensor):
                feeders[index].add(made[tensor])
                readers[made[tensor]].add(index)
    return feeders, readers
