"""Post-training quantisation of OpenVINO files with NNCF."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import Call, ExportOptions, Output

if TYPE_CHECKING:
    from edgepipe.schema import Artifact

STEPS = {
    "fp16": "weights stored as float16; what is computed in float16 is the CPU's choice",
    "dynamic": "int8 weights; activations stay float, or are quantised as they come where the CPU plug-in can",
    "int8": "int8 weights per channel and int8 activations calibrated on data",
}
DEFAULTS: dict[str, dict[str, Any]] = {"fp16": {}, "dynamic": {}, "int8": {"preset": "mixed", "samples": 256}}
NEEDS_DATA = ("int8",)
LIBRARIES = ("openvino", "nncf")
OPTIONS = ("reduce_range",)
PRESETS = ("mixed", "performance")


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

    ``calibration`` is an .npz of one array for each input, by the input's name, samples first. ``preset`` "mixed"
    keeps the sign of activations, "performance" makes all of them symmetric.

    Raises:
        UsageError: an unknown preset.
    """
    from edgepipe.errors import UsageError

    if params.get("preset", "mixed") not in PRESETS:
        raise UsageError(f"no such preset: {params['preset']}", "int8", f"use {' or '.join(PRESETS)}")
    names = [ref.name for ref in source.files]
    arguments: dict[str, Any] = {"source": source.path, "target": str(folder / names[0])}
    if step == "int8":
        inputs = [spec.name for spec in source.inputs]
        arguments |= {"calibration": str(calibration), "names": inputs, "preset": params["preset"]}
        arguments["reduce_range"] = options.reduce_range
    facts = call(f"{__name__}:{step}", arguments)
    return Output(names, source.inputs, source.outputs, source.preprocessing, None, facts["ir_version"], facts["note"])


def fp16(source: str, target: str) -> dict[str, Any]:
    """Store constants as float16 (runs in the child)."""
    import openvino

    model = openvino.Core().read_model(source)
    return _write(model, target, "", compress=True)


def dynamic(source: str, target: str) -> dict[str, Any]:
    """Compress weights to int8. NNCF does this for matrix products, embeddings and convolutions."""
    import nncf
    import openvino

    model = openvino.Core().read_model(source)
    before = _bytes_of(model)["i8"] + _bytes_of(model)["u8"]
    model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    sizes = _bytes_of(model)
    small = sizes["i8"] + sizes["u8"] - before
    if not small:
        return _write(model, target, "no effect: no weight was large enough to compress")
    note = (
        f"{small} weights as int8, one scale for each channel; activations as the CPU plug-in chooses (float on most)"
    )
    return _write(model, target, note)


def int8(
    source: str, target: str, calibration: str, names: list[str], preset: str, reduce_range: bool
) -> dict[str, Any]:
    """Quantise statically with NNCF's min/max ranges and its correction of biases.

    ``reduce_range`` keeps all weights to 7 bits; otherwise NNCF does so for the first layer alone.
    """
    import nncf
    import numpy as np
    import openvino

    model = openvino.Core().read_model(source)
    with np.load(calibration, allow_pickle=False) as arrays:
        samples = [arrays[name] for name in names]
    feeds = list(_feeds(samples, model))
    kind = nncf.QuantizationPreset.MIXED if preset == "mixed" else nncf.QuantizationPreset.PERFORMANCE
    overflow = nncf.OverflowFix.ENABLE if reduce_range else nncf.OverflowFix.FIRST_LAYER
    # Fast bias correction and ranges want all the data there is: the default stops at 300 samples.
    model = nncf.quantize(
        model,
        nncf.Dataset(feeds),
        subset_size=len(feeds),
        preset=kind,
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=overflow),
    )
    count = sum(op.get_type_name() == "FakeQuantize" for op in model.get_ops())
    return _write(model, target, f"{count} tensors quantised over {len(samples[0])} samples")


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
