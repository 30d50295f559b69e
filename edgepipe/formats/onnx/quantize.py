"""Post-training quantisation of ONNX files with ONNX Runtime's own tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import Call, ExportOptions, Output
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.formats import _quantisation as shared
from edgepipe.formats.onnx import graph, static, weights_only

if TYPE_CHECKING:
    from edgepipe.schema import Artifact

STEPS = {
    "fp16": "weights and arithmetic in float16; inputs and outputs stay float32; on a CPU it saves size, not time",
    "dynamic": "int8 weights of MatMul and Gemm, activations quantised as they come; needs no data",
    "int8": "int8 weights, activations of 8 or 16 bits calibrated on data (QDQ)",
    "mixed": shared.MIXED,
    "int8w": "int8 weights alone, one scale for each channel or group of inputs, widened to float32 on load; no data",
    "int4": "4-bit weights alone in groups: large matrix products compute on them, others are widened on load; no data",
}
DEFAULTS = shared.DEFAULTS
CHOICES = shared.CHOICES
LIMITS = {**shared.LIMITS, "int8w": {"group": (0, 256)}}
NEEDS_DATA = shared.NEEDS_DATA
LIBRARIES = ("onnx", "onnxruntime")
OPTIONS = ("reduce_range", "opset", "ir_version")
_QUANTISED = ("MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")


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
        UsageError: a size of groups there are no kernels for; a needed opset beyond what the runtime reads.
        IntegrityError: the file needs a newer opset or IR version than the runtime reads; NaN or infinity in it.
    """
    name = Path(source.path).name
    arguments: dict[str, Any] = {"source": source.path, "target": str(folder / name)}
    function = f"{__name__}:{step}"
    if step in NEEDS_DATA:
        function = f"{static.__name__}:int8"
        words = {key: params[key] for key in (*shared.WORDS, "percentile")}
        arguments |= {"calibration": str(calibration), "threads": options.threads, "keep": params.get("keep", [])}
        arguments |= {"opset": options.opset, "reduce_range": options.reduce_range, **words}
    elif "group" in params:
        if step == "int4" and params["group"] not in weights_only.GROUPS:
            fix = f"use group={', '.join(map(str, weights_only.GROUPS))}"
            raise UsageError(f"there are no kernels for groups of {params['group']}", step, fix)
        function = f"{weights_only.__name__}:{step}"
        arguments |= {"group": params["group"], "opset": options.opset}
    elif step == "dynamic":
        arguments["reduce_range"] = options.reduce_range
    facts = call(function, arguments)
    for word, limit in (("opset", options.opset), ("ir_version", options.ir_version)):
        if limit and facts[word] > limit:
            what = f"{step} needs {word} {facts[word]}; the runtime reads up to {limit}"
            raise IntegrityError(what, name, "use another recipe or a newer runtime on the board")
    opset, version = facts["opset"], facts["ir_version"]
    return Output([name], source.inputs, source.outputs, source.preprocessing, opset, version, facts["note"])


def layers(path: str) -> list[dict[str, Any]]:
    """The layers that int8 quantises, in the order of the graph (runs in the child): name, op, count of weights."""
    return graph.layers(path)


def fp16(source: str, target: str) -> dict[str, Any]:
    """Cast to float16 and prove that the file loads (runs in the child: the loader has crashed on such files)."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    return graph.finish(model, target, "")


def dynamic(source: str, target: str, reduce_range: bool) -> dict[str, Any]:
    """Quantise MatMul and Gemm alone: with convolutions the file runs several times slower than float32."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    before = sum(count for name, count in graph.operators(source).items() if name in ("MatMul", "Gemm"))
    if before:
        model = onnx.load(source)
        del model.graph.value_info[:]  # the tool turns Gemm round and would trip over the old shapes of its weights
        quantize_dynamic(
            model,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            reduce_range=reduce_range,
        )
    done = sum(count for name, count in graph.operators(target).items() if name in _QUANTISED) if before else 0
    if not done:
        return graph.unchanged(source, target, "the file has no MatMul or Gemm with constant weights")
    convolutions = graph.operators(target)["Conv"]
    note = f"{done} of {before} MatMul and Gemm quantised"
    return graph.finish(
        onnx.load(target), target, note + (f"; {convolutions} Conv stay float32" if convolutions else "")
    )
