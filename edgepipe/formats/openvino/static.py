"""Static int8 of OpenVINO files: NNCF places the quantisers and scales the weights; ranges and biases come from here.

NNCF knows what the CPU plug-in can do, so it is asked, on one sample, where quantisers go. Ranges are estimated by
`edgepipe.calibrate`: a method means the same in every format (NNCF averages ranges over the samples, and lets NaN
pass). The means of the layers' inputs, seen on the way, correct the biases.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.errors import IntegrityError, UsageError
from edgepipe.formats.openvino import bias, graph

if TYPE_CHECKING:
    from edgepipe.calibrate import Collector, Mean, Rule
    from edgepipe.formats.openvino.bias import Correction

Feed = list[Any]  # one batch: an array for each input of the model
_LAST = 255  # number of the last of 256 levels
_BATCH = 8
_MEMORY = 128 << 20  # of all tensors of one run
_SAME = 1e-3  # how close the answers of one sample and of a batch must be, as a share of the largest


def int8(
    source: str,
    target: str,
    calibration: str,
    names: list[str],
    params: dict[str, Any],
    reduce_range: bool,
    keep: list[str],
) -> dict[str, Any]:
    """Quantise weights and activations (runs in the child).

    ``reduce_range`` keeps all weights to 7 bits; otherwise NNCF does so for the first layer alone, whose sums saturate
    most easily on CPUs without VNNI. Layers named in ``keep`` stay float.

    Raises:
        IntegrityError: a weight, the data or an activation is NaN or infinite, or the data does not fit the model.
        UsageError: a name in ``keep`` is no layer of the file.
    """
    import openvino
    from openvino._offline_transformations import compress_quantize_weights_transformation

    from edgepipe.calibrate import Rule
    from edgepipe.formats.openvino.quantize import copy, write

    model = openvino.Core().read_model(source)
    graph.check_weights(model, source)
    feeds = read(calibration, names, model)
    attention = graph.has_attention(model)
    model = place(model, feeds, params, attention=attention, reduce_range=reduce_range, keep=keep)
    quantisers = graph.activations(model)
    if not quantisers:
        return copy(source, target, "no effect: the file has nothing to quantise, or all of it stays in float")
    symmetric = params["activations"] == "symmetric"
    corrections = list(bias.corrections(model)) if params["bias"] == "on" else []
    seen = watch(model, quantisers, corrections, feeds, Rule(params["method"], 8, symmetric, params["percentile"]))
    for op in quantisers:
        _set_range(op, seen.ranges[op.get_friendly_name()], symmetric=symmetric)
    corrected = sum(item.apply(mean.value) for item, mean in zip(corrections, seen.means, strict=True))
    compress_quantize_weights_transformation(model)
    samples = sum(len(feed[0]) for feed in feeds)
    note = f"{len(quantisers)} activations quantised, {params['method']} over {samples} samples"
    note += f"; {corrected} biases corrected" if corrected else ""
    return write(model, target, note + ("; as a transformer, with SmoothQuant" if attention else ""))


def layers(path: str) -> list[dict[str, Any]]:
    """The layers that int8 quantises, in the order of the graph: where NNCF puts quantisers with nothing kept."""
    import numpy as np
    import openvino

    model = openvino.Core().read_model(path)
    shapes = [
        [size.get_length() if size.is_static else 1 for size in port.get_partial_shape()] for port in model.inputs
    ]
    feed = [
        np.zeros(shape, port.get_element_type().to_dtype()) for shape, port in zip(shapes, model.inputs, strict=True)
    ]
    params = {"weights": "channel", "activations": "asymmetric"}
    placed = place(model, [feed], params, attention=graph.has_attention(model), reduce_range=False, keep=[])
    return graph.layers(placed)


def read(path: str, names: list[str], model: Any) -> list[Feed]:
    """The calibration data as feeds of the model's batch; a last one that is not full is left out.

    Raises:
        IntegrityError: an input is missing, of another shape or not made of finite numbers.
    """
    import numpy as np

    fix = "make the calibration data again, prepared as the model wants it"
    with np.load(path, allow_pickle=False) as arrays:
        if missing := [name for name in names if name not in arrays.files]:
            raise IntegrityError(f"the calibration data lacks the input {missing[0]}", path, fix)
        samples = [arrays[name] for name in names]
    for name, array, port in zip(names, samples, model.inputs, strict=True):
        shape = port.get_partial_shape()
        fits = shape.rank.get_length() == array.ndim and all(
            want.is_dynamic or want.get_length() == have
            for want, have in zip(list(shape)[1:], array.shape[1:], strict=True)
        )
        if not fits or array.dtype.kind not in "fiu" or not len(array):
            what = f"the calibration data for {name} is {array.dtype} of shape {list(array.shape)}; it takes {shape}"
            raise IntegrityError(what, path, fix)
        if not np.isfinite(array).all():
            raise IntegrityError(f"the calibration data for {name} holds NaN or infinity", path, fix)
    samples = [
        array.astype(port.get_element_type().to_dtype(), copy=False)
        for array, port in zip(samples, model.inputs, strict=True)
    ]
    size = model.inputs[0].get_partial_shape()[0]
    return _cut(samples, size.get_length() if size.is_static else 1)


def _cut(samples: list[Any], batch: int) -> list[Feed]:
    """Feeds of ``batch`` samples: fewer samples are repeated to fill one, a last feed that is not full is left out."""
    import numpy as np

    if len(samples[0]) < batch:
        samples = [np.resize(array, (batch, *array.shape[1:])) for array in samples]
    count = len(samples[0])
    return [[array[at : at + batch] for array in samples] for at in range(0, count - batch + 1, batch)]


def place(
    model: Any, feeds: list[Feed], params: dict[str, Any], *, attention: bool, reduce_range: bool, keep: list[str]
) -> Any:
    """A copy of the float model with quantisers where NNCF puts them; those of activations have no sound ranges yet.

    Raises:
        UsageError: a name in ``keep`` is not one of the graph.
    """
    from edgepipe.formats.openvino.tool import load_nncf

    nncf = load_nncf()
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters

    known = {op.get_friendly_name() for op in model.get_ops()}
    if strange := [name for name in keep if name not in known]:
        raise UsageError(f"no such layer: {strange[0][:120]}", "int8, layers to keep", "take names from the layer list")
    if attention:
        graph.keep_reduced_axes(model)
    preset = nncf.QuantizationPreset
    chosen = feeds if attention else feeds[:1]  # SmoothQuant wants to see all the data
    placed = nncf.quantize(
        model,
        nncf.Dataset([feed[0] if len(feed) == 1 else feed for feed in chosen]),
        subset_size=len(chosen),
        preset=preset.PERFORMANCE if params["activations"] == "symmetric" else preset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER if attention else None,
        ignored_scope=nncf.IgnoredScope(names=keep, validate=False) if keep else None,
        advanced_parameters=AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.ENABLE if reduce_range else nncf.OverflowFix.FIRST_LAYER,
            disable_bias_correction=True,
            activations_quantization_params=QuantizationParameters(per_channel=False),
            weights_quantization_params=QuantizationParameters(per_channel=params["weights"] == "channel"),
            backend_params={"compress_weights": False},
        ),
    )
    del placed.get_rt_info()["nncf"]  # it would tell readers of the file of one sample and biases left as they were
    return placed


@dataclass(frozen=True)
class Seen:
    """What calibration saw: the statistics for each quantiser, by its name, and for the input of each correction."""

    ranges: dict[str, Collector]
    means: list[Mean]


def watch(model: Any, quantisers: list[Any], corrections: list[Correction], feeds: list[Feed], rule: Rule) -> Seen:
    """Run the model without its quantisers over the data.

    Raises:
        IntegrityError: an activation is NaN or infinite; the error names it.
    """
    from edgepipe.calibrate import Collector, Mean

    ranges: dict[str, Collector] = {}
    for group in graph.groups(quantisers):
        ranges |= dict.fromkeys(group, Collector(group[0].partition("/fq_")[0], rule))
    means = [Mean(item.axes) for item in corrections]
    takers: dict[tuple[tuple[str, int], graph.Reduce | None], list[Any]] = {}
    for op in quantisers:
        port = op.input_value(0)
        for reduce in _extremes(port) if rule.method == "minmax" else [None]:
            takers.setdefault((graph.unquantised(port), reduce), []).append(ranges[op.get_friendly_name()])
    for item, mean in zip(corrections, means, strict=True):
        takers.setdefault((item.source, ("mean", item.axes[1:])), []).append(mean)  # by sample
    own = len(model.outputs)
    for outputs in _run(graph.bare(model, takers), feeds):
        for values, found in zip(outputs[own:], takers.values(), strict=True):
            for taker in found:
                taker.add(values)
    return Seen(ranges, means)


def _extremes(port: Any) -> list[graph.Reduce | None]:
    """What shows the extremes of a tensor, sample by sample; and the mean, through which NaN is sure to pass."""
    rank = port.get_partial_shape().rank
    if rank.is_dynamic or rank.get_length() < 2:  # noqa: PLR2004
        return [None]
    axes = tuple(range(1, rank.get_length()))
    return [("min", axes), ("max", axes), ("mean", axes)]


def _run(model: Any, feeds: list[Feed]) -> Iterator[list[Any]]:
    """All outputs for each feed; many feeds at once where the model gives the same answers then."""
    request = _request(model)
    single = len(feeds[0][0])
    times = min(_BATCH // single, _MEMORY // max(graph.size(model), 1), len(feeds))
    if times > 1:
        first = _infer(request, feeds[0])[0].copy()
        del request  # one compiled model at a time: each has memory of its own for all tensors
        whole = len(feeds) // times * times
        batched = _batched(model, times * single)
        if batched and _agree(first, _infer(batched, _joined(feeds[:times]))[0]):
            yield from (_infer(batched, _joined(feeds[at : at + times])) for at in range(0, whole, times))
            feeds = feeds[whole:]
        del batched
        if not feeds:
            return
        request = _request(model)
    yield from (_infer(request, feed) for feed in feeds)


def _joined(feeds: list[Feed]) -> Feed:
    """Several feeds as one."""
    import numpy as np

    return [np.concatenate(column) for column in zip(*feeds, strict=True)]


def _request(model: Any) -> Any:
    import openvino

    # Without this, CPUs that can do so compute in bfloat16.
    return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()


def _infer(request: Any, feed: Feed) -> list[Any]:
    """The outputs, as views that the next call overwrites."""
    request.infer(feed)
    return [tensor.data for tensor in request.output_tensors]


def _batched(model: Any, batch: int) -> Any:
    """A request of a copy of the model that takes ``batch`` samples, or None where its graph fixes the batch."""
    copy = model.clone()
    try:
        copy.reshape({port: [batch, *list(port.get_partial_shape())[1:]] for port in copy.inputs})
        return _request(copy)
    except RuntimeError:  # a reshape inside it has the batch written in
        return None


def _agree(single: Any, many: Any) -> bool:
    """Whether the first answers of a batch are those that the samples got before."""
    import numpy as np

    head, most = many[: len(single)], float(np.abs(single).max())
    return head.shape == single.shape and bool((np.abs(head - single) <= _SAME * most).all())


def _set_range(op: Any, collector: Collector, *, symmetric: bool) -> None:
    """Put a range into a quantiser of 256 levels, moved so that zero is one of them."""
    import numpy as np
    from openvino import opset13

    low, high = collector.range()
    if symmetric:
        # Values of one sign take all levels on their side: uint8 with zero at its end, as the plug-in has kernels for.
        low = 0.0 if collector.extremes[0] >= 0 else -high * (_LAST + 1) / (_LAST - 1)
    else:
        step = (high - low) / _LAST
        zero = round(-low / step)
        low, high = -zero * step, (_LAST - zero) * step
    ends = [opset13.constant(np.float32(value)).output(0) for value in (low, high)]
    for port in range(1, 5):  # lowest and highest in, lowest and highest out
        op.input(port).replace_source_output(ends[(port - 1) % 2])
