"""Post-training quantisation of OpenVINO files with NNCF."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import Call, ExportOptions, Output
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.formats import _quantisation as shared

if TYPE_CHECKING:
    from edgepipe.schema import Artifact

STEPS = {
    "fp16": "weights stored as float16; what is computed in float16 is the CPU's choice",
    "dynamic": "int8 weights; activations stay float, or are quantised as they come where the CPU plug-in can",
    "int8": "int8 weights and int8 activations calibrated on data",
    "mixed": shared.MIXED,
    "int8w": "int8 weights alone, one scale for each channel; needs no data",
    "int4": "int4 weights of matrix products in groups, int8 for the other layers; needs no data",
}
DEFAULTS = shared.DEFAULTS
CHOICES = shared.CHOICES
LIMITS = shared.LIMITS
NEEDS_DATA = shared.NEEDS_DATA
LIBRARIES = ("openvino", "nncf")
OPTIONS = ("reduce_range",)
LAYERS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul")


def quantize(
    source: Artifact,
    step: str,
    params: dict[str, Any],
    calibration: Path | None,
    folder: Path,
    options: ExportOptions,
    call: Call,
) -> Output:
    """Quantise ``source`` by ``step`` into ``folder``.

    ``calibration`` is an .npz of one array for each input, by the input's name, samples first. ``keep`` in ``params``
    names layers that stay in float.

    Raises:
        UsageError: what OpenVINO and NNCF can't do, with what they can.
        IntegrityError: the calibration data is not finite.
    """
    names = [ref.name for ref in source.files]
    arguments: dict[str, Any] = {"source": source.path, "target": str(folder / names[0])}
    if step in NEEDS_DATA:
        _check(params)
        chosen = {key: params[key] for key in ("method", "percentile", "weights", "activations", "bias")}
        arguments |= {"calibration": str(calibration), "names": [spec.name for spec in source.inputs], "params": chosen}
        arguments |= {"reduce_range": options.reduce_range, "keep": params.get("keep", [])}
    elif step == "int8w":
        if params["group"]:
            fix = "write int8w, or int4 for groups"
            raise UsageError("OpenVINO's int8 weights have one scale for each channel, not groups", "int8w", fix)
    elif step == "int4":
        arguments["group"] = params["group"]
    function = "int8" if step == "mixed" else step
    facts = call(f"{__name__}:{function}", arguments)
    return Output(names, source.inputs, source.outputs, source.preprocessing, None, facts["ir_version"], facts["note"])


def _check(params: dict[str, Any]) -> None:
    if params["scheme"] != "w8a8":
        fix = "use w8a8, or w8a16 with onnx or tflite"
        raise UsageError("OpenVINO's CPU plug-in has no kernels for 16-bit activations", "int8:w8a16", fix)
    if params["method"] == "entropy":
        fix = "use minmax, percentile or mse"
        raise UsageError("NNCF, which quantises for OpenVINO, has no entropy calibration", "int8:entropy", fix)


def layers(path: str) -> list[dict[str, Any]]:
    """The layers that int8 quantises, in the order of the graph (runs in the child): name, op, count of weights."""
    import openvino

    found = []
    for op in openvino.Core().read_model(path).get_ordered_ops():
        if op.get_type_name() in LAYERS:
            count = sum(_size(_origin(op.input_value(port).get_node())) for port in range(2))
            if count:
                found.append({"name": op.get_friendly_name(), "op": op.get_type_name(), "weights": count})
    return found


def _origin(node: Any) -> Any:
    """The constant behind conversions and reshapes, or the node itself."""
    while node.get_type_name() in ("Convert", "Reshape", "Transpose", "Multiply", "Subtract") and node.inputs():
        node = node.input_value(0).get_node()
    return node


def _size(node: Any) -> int:
    import math

    return math.prod(node.get_output_shape(0)) if node.get_type_name() == "Constant" else 0


def fp16(source: str, target: str) -> dict[str, Any]:
    """Store constants as float16 (runs in the child)."""
    import openvino

    model = openvino.Core().read_model(source)
    return _write(model, target, "", compress=True)


def dynamic(source: str, target: str) -> dict[str, Any]:
    """Compress weights to int8. NNCF does this for matrix products, embeddings and convolutions."""
    return _weights(source, target, "INT8_SYM", "; activations as the CPU plug-in chooses (float on most)")


def int8w(source: str, target: str) -> dict[str, Any]:
    """Compress weights to int8, one scale for each channel."""
    return _weights(source, target, "INT8_SYM", "; computed in float: it saves size, not time")


def int4(source: str, target: str, group: int) -> dict[str, Any]:
    """Compress weights of matrix products to int4 in groups; NNCF stores those of convolutions as int8."""
    return _weights(source, target, "INT4_SYM", "; computed in float: it saves size, not time", group_size=group)


def _weights(source: str, target: str, mode: str, said: str, **more: Any) -> dict[str, Any]:
    import nncf
    import openvino

    model = openvino.Core().read_model(source)
    before = _bytes_of(model)
    if mode == "INT4_SYM":
        # A group that does not divide a layer's inputs is made smaller; a layer too thin for any group stays int8.
        fallback = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
        more |= {"all_layers": True, "advanced_parameters": fallback}
    model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode[mode], **more)
    after = _bytes_of(model)
    small = {kind: sum(after[k] - before[k] for k in (f"i{kind}", f"u{kind}")) for kind in (8, 4)}
    if not any(small.values()):
        return _write(model, target, "no effect: no weight was large enough to compress")
    counts = ", ".join(f"{count:,} weights as int{kind}" for kind, count in small.items() if count > 0)
    if mode == "INT4_SYM" and not small[4]:
        counts = f"no effect beyond int8w: no matrix product takes int4; {counts}"
    return _write(model, target, counts + said)


def int8(
    source: str,
    target: str,
    calibration: str,
    names: list[str],
    params: dict[str, Any],
    reduce_range: bool,
    keep: list[str],
) -> dict[str, Any]:
    """Quantise statically with NNCF: ranges by ``method``, biases corrected for what rounding shifted.

    ``reduce_range`` keeps all weights to 7 bits; otherwise NNCF does so for the first layer alone.

    Raises:
        IntegrityError: the calibration data is not finite.
    """
    import nncf
    import numpy as np
    import openvino

    model = openvino.Core().read_model(source)
    with np.load(calibration, allow_pickle=False) as arrays:
        samples = [arrays[name] for name in names]
    if not all(np.isfinite(array).all() for array in samples if array.dtype.kind == "f"):
        raise IntegrityError("the calibration data holds NaN or infinity", "int8", "make the data set again")
    feeds = list(_feeds(samples, model))
    kinds = {op.get_type_name() for op in model.get_ops()}
    attention = "ScaledDotProductAttention" in kinds or {"Softmax", "MVN"} <= kinds
    kind = (
        nncf.QuantizationPreset.PERFORMANCE if params["activations"] == "symmetric" else nncf.QuantizationPreset.MIXED
    )
    # Bias correction and ranges want all the data there is: the default stops at 300 samples.
    model = nncf.quantize(
        model,
        nncf.Dataset(feeds),
        subset_size=len(feeds),
        preset=kind,
        model_type=nncf.ModelType.TRANSFORMER if attention else None,
        ignored_scope=nncf.IgnoredScope(names=keep, validate=False) if keep else None,
        advanced_parameters=_advanced(params, reduce_range),
    )
    count = sum(op.get_type_name() == "FakeQuantize" for op in model.get_ops())
    if not count:
        return _write(model, target, "no effect: nothing of the file can be quantised, or all of it is kept")
    note = f"{count} tensors quantised, {params['method']} over {len(samples[0])} samples"
    return _write(model, target, note + ("; as a transformer, with SmoothQuant" if attention else ""))


def _advanced(params: dict[str, Any], reduce_range: bool) -> Any:
    import nncf
    from nncf.quantization import advanced_parameters as advanced
    from nncf.quantization import range_estimator as ranges

    found = nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.ENABLE if reduce_range else nncf.OverflowFix.FIRST_LAYER,
        disable_bias_correction=params["bias"] == "off",
    )
    if params["weights"] == "tensor":
        found.weights_quantization_params = advanced.QuantizationParameters(per_channel=False)
    if params["method"] == "percentile":
        outside = 1 - params["percentile"] / 100
        found.activations_range_estimator_params = ranges.RangeEstimatorParameters(
            *(
                ranges.StatisticsCollectorParameters(
                    statistics_type=ranges.StatisticsType.QUANTILE,
                    aggregator_type=ranges.AggregatorType.MEAN,
                    quantile_outlier_prob=outside,
                )
                for _ in range(2)
            )
        )
    elif params["method"] == "mse":  # the range with the least squared error over a histogram
        found.activations_range_estimator_params = ranges.RangeEstimatorParametersSet.HISTOGRAM
    else:
        found.activations_range_estimator_params = ranges.RangeEstimatorParametersSet.MINMAX
    return found


def _feeds(samples: list[Any], model: Any) -> Any:
    import numpy as np

    size = model.inputs[0].get_partial_shape()[0]
    batch = size.get_length() if size.is_static else 1
    count = len(samples[0])
    if count < batch:
        samples = [np.resize(array, (batch, *array.shape[1:])) for array in samples]
        count = batch
    for start in range(0, count - batch + 1, batch):
        feed = [array[start : start + batch] for array in samples]
        yield feed[0] if len(feed) == 1 else feed


def _bytes_of(model: Any) -> Counter[str]:
    """Elements of the constants by element type."""
    import math

    sizes: Counter[str] = Counter()
    for op in model.get_ops():
        if op.get_type_name() == "Constant":
            sizes[op.get_element_type().to_string()] += math.prod(op.get_output_shape(0))
    return sizes


def _write(model: Any, target: str, note: str, *, compress: bool = False) -> dict[str, Any]:
    """Save, seal, and prove that the CPU plug-in compiles the file."""
    import openvino

    from edgepipe.formats.openvino.export import seal

    openvino.save_model(model, target, compress_to_fp16=compress)
    version = seal(target)
    openvino.Core().compile_model(target, "CPU")
    return {"ir_version": version, "note": note}
