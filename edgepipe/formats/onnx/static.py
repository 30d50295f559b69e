"""Static quantisation: int8 weights, activations of 8 or 16 bits over calibrated ranges, as QuantizeLinear pairs."""

from __future__ import annotations

from typing import Any

from edgepipe.errors import UsageError
from edgepipe.formats.onnx import graph, ranges

_PER_CHANNEL_OPSET = 13  # the first QuantizeLinear with an axis


def int8(
    source: str,
    target: str,
    calibration: str,
    threads: int = 2,
    opset: int | None = None,
    keep: list[str] | None = None,
    **words: Any,
) -> dict[str, Any]:
    """Quantise every layer but those of ``keep`` (runs in the child).

    ``words`` are scheme, method, percentile, weights, activations, bias and reduce_range; ``opset`` is the highest one
    allowed.

    Raises:
        UsageError: a layer of ``keep`` that is not there; a needed opset beyond ``opset``.
        IntegrityError: NaN or infinity in a weight or in a tensor under calibration.
    """
    settings = _settings(**words)
    model = graph.optimised(source)
    names = [node.name for node in model.graph.node if node.op_type in graph.LAYERS]
    kept = set(keep or [])
    if kept - set(names):
        raise UsageError(f"no such layers: {', '.join(sorted(kept - set(names)))[:200]}", "keep", "see `layers`")
    if not set(names) - kept:
        return graph.unchanged(source, target, f"there is no {', '.join(graph.LAYERS)} to quantise")
    found = ranges.observe(model, calibration, settings, threads)
    model = graph.raise_opset(model, _PER_CHANNEL_OPSET if settings.channel else 10, opset, "int8")
    corrected = ranges.correct(model, {name: shift for name, shift in found.shifts.items() if name not in kept})
    model = _insert(model, found.ranges, settings, kept)
    _float_outputs(model)
    graph.remove_unused(model)
    tensors = sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
    parts = [f"{len(names) - len(kept)} layers and {tensors} tensors quantised"]
    parts.append(f"{settings.method} over {found.samples} samples")
    parts += [f"{corrected} biases corrected"] * bool(corrected) + [f"{len(kept)} layers stay float32"] * bool(kept)
    if settings.bits > 8:  # noqa: PLR2004
        parts.append("ONNX Runtime computes 16-bit activations in float32 on a CPU: size and accuracy, not speed")
    return graph.finish(model, target, "; ".join(parts))


def _settings(
    scheme: str = "w8a8",
    method: str = "minmax",
    percentile: float = 99.99,
    weights: str = "channel",
    activations: str = "asymmetric",
    bias: str = "on",
    reduce_range: bool = False,
) -> ranges.Settings:
    return ranges.Settings(
        method,
        percentile,
        16 if scheme == "w8a16" else 8,
        activations == "symmetric",
        weights == "channel",
        bias == "on",
        reduce_range,
    )


def _insert(model: Any, limits: dict[str, tuple[float, float]], settings: ranges.Settings, kept: set[str]) -> Any:
    """Put QuantizeLinear and DequantizeLinear around what is quantised, by ONNX Runtime's own quantiser."""
    import numpy as np
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import TensorData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    del model.graph.value_info[:]
    for name in limits:  # the quantiser takes no tensor whose type it does not know
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    model.metadata_props.add(key="onnx.infer", value="onnxruntime.quant")  # or it would infer all shapes, on disk
    kinds = {(8, False): "QUInt8", (8, True): "QInt8", (16, False): "QUInt16", (16, True): "QInt16"}
    quantiser = QDQQuantizer(
        model,
        per_channel=settings.channel,
        reduce_range=settings.reduce_range,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType[kinds[settings.bits, settings.symmetric]],
        tensors_range={
            name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in limits.items()
        },
        nodes_to_quantize=[],
        nodes_to_exclude=sorted(kept),
        op_types_to_quantize=list(ranges.QUANTISED),
        extra_options={"ActivationSymmetric": settings.symmetric, "QDQOpTypePerChannelSupportToAxis": {"MatMul": -1}},
    )
    return quantiser.quantize_model()


def _float_outputs(model: Any) -> None:
    """Take the pair of quantisers off the model's outputs behind a Gemm or MatMul: their kernels can write floats.

    Rounding the scores to 8 bits would only make ties.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    for output in model.graph.output:
        last = makers.get(output.name)
        before = makers.get(last.input[0]) if last is not None and last.op_type == "DequantizeLinear" else None
        layer = makers.get(before.input[0]) if before is not None and before.op_type == "QuantizeLinear" else None
        if last is None or before is None or layer is None:
            continue
        if layer.op_type in ("Gemm", "MatMul"):
            readers = sum(name in (before.input[0], before.output[0]) for n in model.graph.node for name in n.input)
            if readers == 2:  # noqa: PLR2004  the pair itself
                layer.output[0] = output.name
                model.graph.node.remove(last)
                model.graph.node.remove(before)
