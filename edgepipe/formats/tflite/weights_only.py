"""Weight-only quantisation of TFLite files: integers in the file, arithmetic in float."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from edgepipe.errors import IntegrityError
from edgepipe.formats.tflite import graph, layers
from edgepipe.formats.tflite.prove import prove

GROUPS = (0, 32, 64, 128, 256)
"""Sizes of groups with one scale that LiteRT has kernels for; 0 stands for a scale for each output channel."""

_INT8 = 8
_BLOCK_VERSION = 14
"""Of FULLY_CONNECTED, known to LiteRT 2.3 alone. The quantizer leaves the old version: tflite-runtime 2.14 takes such a
file and computes garbage or crashes. With the new one it refuses to load it."""


def int8w(source: str, target: str) -> str:
    """Store weights as int8, one scale for each output channel (runs in the child).

    Raises:
        IntegrityError: a weight is NaN or infinite; the file does not run.
    """
    return _store(source, target, 8, 0)


def int4(source: str, target: str, group: int) -> str:
    """Store weights as int4: fully connected layers in groups where ``group`` divides their inputs (runs in the child).

    Their least-squares clipping is that of Sakr et al., "Optimal clipping and magnitude-aware differentiation", 2022.
    Convolutions get one scale for each output channel. Depthwise and transposed ones are int8: scales would take more
    room than int4 saves, and they lose most.

    Raises:
        IntegrityError: as `int8w`.
    """
    return _store(source, target, 4, group)


def _store(source: str, target: str, bits: int, group: int) -> str:
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName

    model = graph.named(source)
    _check(model)
    grouped = _grouped(model, group)
    tool = quantizer.Quantizer(graph.pack(model))
    tool.add_weight_only_config(".*", TFLOperationName.ALL_SUPPORTED, 8)
    if bits < _INT8:
        for name in (TFLOperationName.CONV_2D, TFLOperationName.BATCH_MATMUL):
            tool.add_weight_only_config(".*", name, bits)
        for name in (TFLOperationName.FULLY_CONNECTED, TFLOperationName.EMBEDDING_LOOKUP):
            tool.add_weight_only_config(".*", name, bits, algorithm_key=AlgorithmName.OCTAV)
    if grouped:
        scope = graph.pattern(model, grouped)
        tool.update_quantization_recipe(scope, TFLOperationName.FULLY_CONNECTED, _blocks(group), AlgorithmName.OCTAV)
    result = tool.quantize(enable_progress_report=False, enable_progress_bar=False)
    result.export_model(target, overwrite=True)
    if grouped:
        _stamp(target)
    if not prove(source, target):
        shutil.copyfile(source, target)
        return "no effect: no layer has constant float weights"
    counts = _counts(target)
    widened = " and ".join(f"{count} as {kind}" for kind, count in counts.items() if count)
    parts = [f"{len(grouped)} layers in groups of {group}, on inputs rounded to int8"] * bool(grouped)
    parts += [f"weights of layers stored {widened}, widened when loaded: it saves size, not time"] * bool(widened)
    parts += ["tflite-runtime 2.14 can't load it"] * (bits < _INT8)
    return "; ".join(parts)


def _counts(path: str) -> dict[str, int]:
    """How many tensors of weights a file stores in which integers, apart from those in groups."""
    model = graph.read(path)
    tensors = [tensor for tensor in model.subgraphs[0].tensors if not graph.in_blocks(tensor)]
    kinds = [graph.kind(tensor) for tensor in tensors if _stored(model, tensor)]
    return {"int4": kinds.count("INT4"), "int8": kinds.count("INT8")}


def _stored(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def _check(model: Any) -> None:
    """Refuse weights that are no numbers.

    Raises:
        IntegrityError: they are; the layer is named.
    """
    import numpy as np

    for layer in layers.find(model):
        if not np.isfinite(graph.constant(model, layer.weights)).all():
            what = f"the weights of {graph.name_of(model, layer.index)} hold NaN or infinity"
            raise IntegrityError(what, "weights", "train the model again, or export it again")


def _grouped(model: Any, group: int) -> set[int]:
    """The fully connected layers, by their places, whose number of inputs is a multiple of ``group``."""
    found = [layer for layer in layers.find(model) if layer.op == "FULLY_CONNECTED" and group]
    return {layer.index for layer in found if graph.constant(model, layer.weights).shape[-1] % group == 0}


def _blocks(group: int) -> Any:
    from ai_edge_quantizer import qtyping

    weights = qtyping.TensorQuantizationConfig(4, True, qtyping.QuantGranularity[f"BLOCKWISE_{group}"])
    return qtyping.OpQuantizationConfig(None, weights, qtyping.ComputePrecision.INTEGER)


def _stamp(target: str) -> None:
    """Give the fully connected layers in groups the version of the operation that knows groups."""
    model = graph.read(target)
    main = model.subgraphs[0]
    for op in main.operators:
        if graph.operator(model, op) == "FULLY_CONNECTED" and graph.in_blocks(main.tensors[op.inputs[1]]):
            model.operatorCodes[op.opcodeIndex].version = _BLOCK_VERSION
    Path(target).write_bytes(graph.pack(model))
