"""Post-training quantisation of ONNX files with ONNX Runtime's own tools."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import Call, ExportOptions, Output
from edgepipe.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    from edgepipe.schema import Artifact

STEPS = {
    "fp16": "weights and arithmetic in float16; inputs and outputs stay float32; on a CPU it saves size, not time",
    "dynamic": "int8 weights of MatMul and Gemm, activations quantised as they come; needs no data",
    "int8": "int8 weights per channel, uint8 activations calibrated on data (QDQ)",
}
DEFAULTS: dict[str, dict[str, Any]] = {"fp16": {}, "dynamic": {}, "int8": {"method": "minmax", "samples": 256}}
NEEDS_DATA = ("int8",)
LIBRARIES = ("onnx", "onnxruntime")
OPTIONS = ("reduce_range", "opset", "ir_version")
METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
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

    ``calibration`` is an .npz of one array for each input, by the input's name, samples first.

    Raises:
        UsageError: an unknown calibration method.
        IntegrityError: the quantised file needs a newer opset or IR version than the runtime reads.
    """
    if params.get("method", "minmax") not in METHODS:
        raise UsageError(f"no such calibration method: {params['method']}", "int8", f"use {', '.join(METHODS)}")
    name = Path(source.path).name
    arguments: dict[str, Any] = {"source": source.path, "target": str(folder / name)}
    if step == "int8":
        arguments |= {"calibration": str(calibration), "method": params["method"]}
    if step != "fp16":
        arguments |= {"reduce_range": options.reduce_range}
    facts = call(f"{__name__}:{step}", arguments)
    for word, limit in (("opset", options.opset), ("ir_version", options.ir_version)):
        if limit and facts[word] > limit:
            what = f"{step} needs {word} {facts[word]}; the runtime reads up to {limit}"
            raise IntegrityError(what, name, "use another recipe or a newer runtime on the board")
    opset, version = facts["opset"], facts["ir_version"]
    return Output([name], source.inputs, source.outputs, source.preprocessing, opset, version, facts["note"])


def fp16(source: str, target: str) -> dict[str, Any]:
    """Cast to float16 and prove that the file loads (runs in the child: the loader has crashed on such files)."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    onnx.save(model, target)
    return _finish(target, "")


def dynamic(source: str, target: str, reduce_range: bool) -> dict[str, Any]:
    """Quantise MatMul and Gemm alone: with convolutions the file runs several times slower than float32."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    before = sum(count for name, count in _operators(source).items() if name in ("MatMul", "Gemm"))
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
    done = sum(count for name, count in _operators(target).items() if name in _QUANTISED) if before else 0
    if not done:
        shutil.copyfile(source, target)
        return _finish(target, "no effect: the file has no MatMul or Gemm with constant weights")
    convolutions = _operators(target)["Conv"]
    note = f"{done} of {before} MatMul and Gemm quantised"
    return _finish(target, note + (f"; {convolutions} Conv stay float32" if convolutions else ""))


def int8(source: str, target: str, calibration: str, method: str, reduce_range: bool) -> dict[str, Any]:
    """Quantise statically: QDQ, weights int8 per channel, activations uint8 over the calibrated range."""
    import numpy as np
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = str(Path(target).with_suffix(".prepared.onnx"))
    quant_pre_process(source, prepared, skip_symbolic_shape=False)
    with np.load(calibration, allow_pickle=False) as arrays:
        feeds = list(_batches({name: arrays[name] for name in arrays.files}, _batch(source)))
    quantize_static(
        prepared,
        target,
        _Reader(feeds),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[METHODS[method]],
    )
    Path(prepared).unlink()
    operators = _operators(target)
    note = (
        f"{operators['QuantizeLinear']} tensors quantised; {method} over {sum(_length(feed) for feed in feeds)} samples"
    )
    return _finish(target, note)


class _Reader:
    """Feeds for the calibrator, one dict at a time, then None."""

    def __init__(self, feeds: list[dict[str, Any]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def _batches(arrays: dict[str, Any], batch: int) -> Any:
    """Cut the samples into feeds of ``batch``; a last one that is not full is left out, a single one is filled up."""
    import numpy as np

    samples = len(next(iter(arrays.values())))
    if samples < batch:
        arrays = {name: np.resize(array, (batch, *array.shape[1:])) for name, array in arrays.items()}
        samples = batch
    for start in range(0, samples - batch + 1, batch):
        yield {name: array[start : start + batch] for name, array in arrays.items()}


def _length(feed: dict[str, Any]) -> int:
    return len(next(iter(feed.values())))


def _batch(path: str) -> int:
    """The file's fixed batch; 32 where it is free."""
    import onnx

    return onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value or 32


def _operators(path: str) -> Counter[str]:
    import onnx

    return Counter(node.op_type for node in onnx.load(path).graph.node)


def _finish(path: str, note: str) -> dict[str, Any]:
    """Drop metadata, prove that the file loads, and read its versions back."""
    import onnx
    import onnxruntime

    from edgepipe.formats.onnx.export import strip

    model = onnx.load(path)
    strip(model)
    onnx.save(model, path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return {"opset": int(opset), "ir_version": int(model.ir_version), "note": note}
