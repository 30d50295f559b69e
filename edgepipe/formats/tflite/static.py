"""Static quantisation of TFLite files: int8 weights, activations of 8 or 16 bits over calibrated ranges."""

from __future__ import annotations

import shutil
from typing import Any

from edgepipe.errors import IntegrityError, UsageError
from edgepipe.formats.tflite import graph, layers
from edgepipe.formats.tflite.prove import prove
from edgepipe.formats.tflite.ranges import Observed, Settings, observe

_LARGEST = 127  # of a weight: ranges are symmetric
_LARGEST_BIAS = 2.0**29  # of an integer bias; its correction and the sum of products have the rest of the 32 bits
_NOT_16 = ("GELU",)  # tflite-runtime 2.14 has it in 8 bits alone
_BIAS = 2  # place of the bias among the inputs of the operations that are corrected
_NARROWEST = 2.0**-16  # of a channel's range, against the widest channel of the layer


def int8(
    source: str,
    target: str,
    calibration: str,
    names: list[str],
    threads: int,
    keep: list[str] | None = None,
    observed: str = "",
    **words: Any,
) -> str:
    """Quantise every layer but those of ``keep`` (runs in the child); inputs and outputs stay float32.

    No caller has to know scales and zero points that way. ``observed`` names a file of `ranges.calibrate` with the same
    words, which saves the calibration. Return a note of what was done.

    Raises:
        UsageError: a layer of ``keep`` that is not there; calibration data that does not fit the inputs.
        IntegrityError: NaN or infinity in a weight or an activation, or a file that does not load.
    """
    settings = Settings(**words)
    model = graph.named(source)
    found = layers.find(model)
    kept = set(keep or [])
    if unknown := kept - {graph.name_of(model, layer.index) for layer in found}:
        raise UsageError(f"no such layers: {', '.join(sorted(unknown))[:200]}", "keep", "see `layers`")
    floats = layers.in_float(model, kept, lambda kind: _supported(kind, settings))
    chosen = [layer for layer in found if layer.index not in floats]
    if not chosen:
        shutil.copyfile(source, target)
        return "no effect: " + ("every layer is kept in float" if found else "the file has no layer with float weights")
    _check(model, chosen)
    seen = Observed.load(observed) if observed else observe(source, model, calibration, names, threads, settings)
    reaches = _reaches(model, chosen, seen, settings)
    if settings.bias == "on":
        _correct(model, chosen, seen, reaches)
    _quantise(model, floats, seen, reaches, settings, target)
    others = len(model.subgraphs[0].operators) - len(floats) - len(chosen)
    tables = len(layers.tables(model))
    prove(source, target)
    note = f"{settings.method} over {seen.samples} samples; {len(chosen)} of {len(found)} layers"
    note += f" and {others} other operations computed in int{settings.bits}"
    return note + "; embeddings stored as int8" * bool(tables)


def _check(model: Any, chosen: list[layers.Layer]) -> None:
    import numpy as np

    for layer in chosen:
        for tensor in (layer.weights, layer.bias):
            values = graph.constant(model, tensor)
            if values is not None and not np.isfinite(values).all():
                what = f"the weights of {graph.name_of(model, layer.index)} hold NaN or infinity"
                raise IntegrityError(what, "int8", "train the model again, or export it again")


def _reaches(model: Any, chosen: list[layers.Layer], seen: Observed, settings: Settings) -> dict[int, Any]:
    """Tensor of weights -> the largest magnitude its integers stand for, by channel (dimensions kept) or for all.

    Mostly that of the weights. But a channel of zeros would get no scale, and one of next to nothing a scale in which
    its integer bias, in units of the scales of data and weights, overflows: those get a wider range.
    """
    import numpy as np

    found: dict[int, Any] = {}
    for layer in chosen:
        weights, bias = graph.constant(model, layer.weights), graph.constant(model, layer.bias)
        rows = settings.weights == "channel" and not (layer.op == "FULLY_CONNECTED" and settings.scheme == "w8a16")
        others = tuple(axis for axis in range(weights.ndim) if axis != layer.axis) if rows else None
        reach = np.abs(weights).max(axis=others, keepdims=True).astype(np.float64)
        least = np.full_like(reach, (reach.max() or 1.0) * _NARROWEST)
        if bias is not None and layer.data in seen.ranges:
            low, high = seen.ranges[layer.data]
            step = max(-low, high) / (2 ** (settings.bits - 1) - 1) if settings.symmetric else (high - low) / 255
            needed = (
                np.abs(bias.astype(np.float64)) * 2 / (step * _LARGEST_BIAS) * _LARGEST
            )  # twice: it may be corrected
            least = np.maximum(least, needed.reshape(reach.shape) if reach.size > 1 else needed.max())
        reach = np.maximum(np.maximum(reach, least), found.get(layer.weights, 0.0))
        found[layer.weights] = reach.astype(np.float32)
    return found


def _correct(model: Any, chosen: list[layers.Layer], seen: Observed, reaches: dict[int, Any]) -> None:
    """Let each bias make up for what rounding the layer's weights shifts on average; layers without a bias get none.

    The mean of (W - Wq) x over data is (W - Wq) E[x]: Nagel et al., "Data-free quantization through weight equalization
    and bias correction", 2019, equation 15, with E[x] measured for each place of the kernel.
    """
    import numpy as np

    for layer in chosen:
        weights, bias = graph.constant(model, layer.weights), graph.constant(model, layer.bias)
        if bias is None or layer.index not in seen.means:
            continue
        scale = reaches[layer.weights].astype(np.float64) / _LARGEST
        lost = weights - np.clip(np.rint(weights / scale), -_LARGEST, _LARGEST) * scale
        met = seen.means[layer.index]
        if layer.op == "DEPTHWISE_CONV_2D":
            shift = (lost[0] * np.repeat(met, weights.shape[-1] // met.shape[-1], axis=-1)).sum((0, 1))
        else:
            shift = (lost * met).reshape(len(weights), -1).sum(1)
        graph.set_constant(model, layer.index, _BIAS, bias + shift)


def _quantise(
    model: Any, floats: set[int], seen: Observed, reaches: dict[int, Any], settings: Settings, target: str
) -> None:
    """Hand the ranges to the quantizer and write what it makes."""
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName

    tensors = model.subgraphs[0].tensors
    table = {tensors[index].name.decode("utf-8"): _entry(low, high) for index, (low, high) in seen.ranges.items()} | {
        tensors[index].name.decode("utf-8"): {"min": -reach, "max": reach} for index, reach in reaches.items()
    }
    tool = quantizer.Quantizer(graph.pack(model))
    everything = (".*", TFLOperationName.ALL_SUPPORTED)
    tool.update_quantization_recipe(*everything, _config(settings))
    if settings.scheme == "w8a16":  # tflite-runtime 2.14 computes garbage from scales by channel there
        tool.update_quantization_recipe(".*", TFLOperationName.FULLY_CONNECTED, _config(settings, by_channel=False))
    off = {"algorithm_key": AlgorithmName.NO_QUANTIZE}
    for border in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
        tool.update_quantization_recipe(".*", border, **off)
    tool.add_weight_only_config(".*", TFLOperationName.EMBEDDING_LOOKUP, 8)
    if scope := graph.pattern(model, floats - layers.tables(model), others=True):
        tool.update_quantization_recipe(scope, TFLOperationName.ALL_SUPPORTED, **off)
    result = tool.quantize(table, enable_progress_report=False, enable_progress_bar=False)
    result.export_model(target, overwrite=True)


def _entry(low: float, high: float) -> dict[str, Any]:
    import numpy as np

    return {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}


def _config(settings: Settings, by_channel: bool = True) -> Any:
    from ai_edge_quantizer import qtyping

    by_channel = by_channel and settings.weights == "channel"
    granularity = qtyping.QuantGranularity.CHANNELWISE if by_channel else qtyping.QuantGranularity.TENSORWISE
    return qtyping.OpQuantizationConfig(
        qtyping.TensorQuantizationConfig(settings.bits, settings.symmetric),
        qtyping.TensorQuantizationConfig(8, True, granularity),
        qtyping.ComputePrecision.INTEGER,
    )


def _supported(kind: str, settings: Settings) -> bool:
    """Whether there is an integer version of an operation for this scheme, in the quantizer and in all runtimes."""
    from ai_edge_quantizer import algorithm_manager, qtyping
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    code = getattr(qtyping.BuiltinOperator, kind, None)
    name = tfl_flatbuffer_utils.TFL_OP_CODE_TO_NAME.get(code)
    if name is None or (settings.scheme == "w8a16" and kind in _NOT_16):
        return False
    try:
        algorithm_manager.check_op_quantization_config(
            algorithm_manager.AlgorithmName.MIN_MAX_UNIFORM_QUANT, name, _config(settings)
        )
    except ValueError:
        return False
    return True
