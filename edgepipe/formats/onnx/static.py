"""Static quantisation: int8 weights, activations of 8 or 16 bits over calibrated ranges, as QuantizeLinear pairs."""

from __future__ import annotations

from typing import Any

from edgepipe.errors import UsageError
from edgepipe.formats.onnx import graph, ranges, shrink

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
    known = graph.constants(model)
    names = [node.name for node in model.graph.node if graph.weight_of(node, known) is not None]
    kept = set(keep or [])
    if kept - set(names):
        raise UsageError(f"no such layers: {', '.join(sorted(kept - set(names)))[:200]}", "keep", "see `layers`")
    if not set(names) - kept:
        return graph.unchanged(source, target, f"the file has no {', '.join(graph.LAYERS)} with constant weights")
    found = ranges.observe(model, calibration, settings, threads)
    model = graph.raise_opset(model, _PER_CHANNEL_OPSET if settings.channel else 10, opset, "int8")
    corrected = ranges.correct(model, {name: shift for name, shift in found.shifts.items() if name not in kept})
    nodes = ranges.chosen(model, kept)
    model = _insert(model, found.ranges, settings, nodes)
    _leave_float(model, nodes)
    shrink.shrink(model)
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


def _insert(model: Any, limits: dict[str, tuple[float, float]], settings: ranges.Settings, nodes: set[str]) -> Any:
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
    whole = {tensor.name: [{"symmetric": True}] for tensor in _stacks(model)}  # kernels take no scales per column here
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
        nodes_to_quantize=sorted(nodes),
        nodes_to_exclude=[],
        op_types_to_quantize=sorted({node.op_type for node in model.graph.node}),
        extra_options={
            "ActivationSymmetric": settings.symmetric,
            "TensorQuantOverrides": whole,
        },
    )
    quantiser.quantize_model()
    return quantiser.model.model


def _stacks(model: Any) -> Any:
    """Constant weights of MatMul nodes that are no matrices."""
    known = graph.constants(model)
    for node in model.graph.node:
        weight = graph.weight_of(node, known) if node.op_type == "MatMul" else None
        if weight is not None and len(weight.dims) > 2:  # noqa: PLR2004
            yield weight


def _leave_float(model: Any, nodes: set[str]) -> None:
    """Take the quantisers off what goes from a Gemm or MatMul to no quantised node: their kernels can write floats.

    That is so of a classifier's scores, where 8 bits would only make ties.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for pair in [node for node in model.graph.node if node.op_type == "QuantizeLinear"]:
        layer, back = makers.get(pair.input[0]), readers.get(pair.output[0], [])
        if layer is None or layer.op_type not in ("Gemm", "MatMul") or len(back) != 1:
            continue
        after = readers.get(back[0].output[0], [])
        if all(node.name not in nodes and node.op_type != "QuantizeLinear" for node in after):
            layer.output[0] = back[0].output[0]
            model.graph.node.remove(back[0])
            model.graph.node.remove(pair)
