"""Post-training quantisation of TFLite files with the AI Edge quantizer."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import Call, ExportOptions, Output
from edgepipe.cache import Cache, code, key, versions
from edgepipe.errors import UsageError
from edgepipe.formats import _quantisation as shared
from edgepipe.formats.tflite import graph, ranges, static, weights_only
from edgepipe.formats.tflite import layers as layers_of
from edgepipe.formats.tflite.prove import prove

if TYPE_CHECKING:
    from edgepipe.schema import Artifact

STEPS = {
    "fp16": "weights stored as float16 and widened to float32 when the file is loaded: half the size, the same speed",
    "dynamic": "int8 weights, one scale for each tensor, activations quantised as they come; needs no data",
    "int8": "int8 weights and activations calibrated on data; inputs and outputs stay float32",
    "mixed": shared.MIXED,
    "int8w": "int8 weights alone, computed in float32; one scale for each channel; needs no data",
    "int4": "int4 weights alone, in groups for matrix products, else one scale for each channel; needs no data",
}
DEFAULTS = shared.DEFAULTS
CHOICES = shared.CHOICES
LIMITS = shared.LIMITS
NEEDS_DATA = shared.NEEDS_DATA
LIBRARIES = ("ai-edge-quantizer", "ai-edge-litert")
OPTIONS: tuple[str, ...] = ()
_RANGES = "ranges.json"
_ESTIMATOR = Path(__file__).parents[2] / "calibrate.py"  # it imports numpy, and listing steps must not


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
    names layers that stay in float; the ranges of such calls are cached, as they come many times.

    Raises:
        UsageError: a size of groups there are no kernels for; calibration data that does not fit the inputs.
        IntegrityError: a weight, or an activation on the calibration data, is NaN or infinite.
    """
    name = Path(source.path).name
    arguments: dict[str, Any] = {"source": source.path, "target": str(folder / name)}
    function = f"{__name__}:{step}"
    if step in NEEDS_DATA:
        function = f"{static.__name__}:int8"
        words = {key: params[key] for key in (*shared.WORDS, "percentile")}
        data = {"calibration": str(calibration), "names": [spec.name for spec in source.inputs]}
        arguments |= {**data, **words, "threads": options.threads, "keep": params.get("keep", [])}
        if "keep" in params:
            assert calibration is not None
            arguments["observed"] = _observed(source, calibration, {**data, **words}, options, call)
    elif step in ("int8w", "int4"):
        function = f"{weights_only.__name__}:{step}"
        if step == "int4":
            arguments["group"] = params["group"]
        known = weights_only.GROUPS if step == "int4" else (0,)
        if params["group"] not in known:
            what = f"LiteRT has no {step} kernels for groups of {params['group']}"
            fix = f"use group={', '.join(map(str, known))}" if step == "int4" else "leave group out, or use int4"
            raise UsageError(what, f"{step}:group={params['group']}", fix)
    note = call(function, arguments)
    return Output([name], source.inputs, source.outputs, source.preprocessing, note=note)


def _observed(source: Artifact, calibration: Path, words: dict[str, Any], options: ExportOptions, call: Call) -> str:
    """Path of what calibration saw of a file, made once for the same file, data and words."""
    import numpy as np

    digest = hashlib.sha256()
    with np.load(calibration, allow_pickle=False) as arrays:  # the archive itself tells the time of day
        for name in words["names"]:
            digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
            digest.update(np.ascontiguousarray(arrays[name]).data)
    entry = key(
        "ranges",
        file=source.sha256,
        data=digest.hexdigest(),
        words={**words, "calibration": ""},
        versions=versions(LIBRARIES),
        code=code(ranges.__file__, graph.__file__, layers_of.__file__, _ESTIMATOR),
    )

    def fill(folder: Path) -> None:
        target = str(folder / _RANGES)
        call(
            f"{ranges.__name__}:calibrate",
            {**words, "source": source.path, "target": target, "threads": options.threads},
        )

    folder, _ = Cache().make(entry, fill)
    return str(folder / _RANGES)


def layers(path: str) -> list[dict[str, Any]]:
    """The layers that int8 quantises, in the order of the file (runs in the child): name, op, count of weights."""
    return layers_of.layers(path)


def fp16(source: str, target: str) -> str:
    """Store constants as float16 (runs in the child)."""
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName

    tool = quantizer.Quantizer(graph.pack(graph.named(source)))
    tool.add_weight_only_config(
        regex=".*",
        operation_name=TFLOperationName.ALL_SUPPORTED,
        num_bits=16,
        algorithm_key=AlgorithmName.FLOAT_CASTING,
    )
    tool.quantize().export_model(target, overwrite=True)
    return _done(source, target)


def dynamic(source: str, target: str) -> str:
    """Quantise weights with one scale for each tensor: tflite-runtime 2.14 computes garbage from scales per channel.

    Depthwise convolutions stay float32: with one scale the runtimes compute garbage from them too (LiteRT 2.3 gives a
    cosine of -0.03), and they hold few weights.
    """
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName

    tool = quantizer.Quantizer(graph.pack(graph.named(source)))
    tool.add_dynamic_config(
        regex=".*",
        operation_name=TFLOperationName.ALL_SUPPORTED,
        num_bits=8,
        granularity=QuantGranularity.TENSORWISE,
    )
    tool.update_quantization_recipe(
        regex=".*",
        operation_name=TFLOperationName.DEPTHWISE_CONV_2D,
        algorithm_key=AlgorithmName.NO_QUANTIZE,
    )
    tool.quantize().export_model(target, overwrite=True)
    return _done(source, target)


def _done(source: str, target: str) -> str:
    """Prove that the file runs; where nothing could be quantised, put the source in its place."""
    count = prove(source, target)
    if not count:
        shutil.copyfile(source, target)
        return "no effect: no operation of the file can be quantised"
    return f"{count} tensors quantised"
