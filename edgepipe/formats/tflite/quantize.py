"""Post-training quantisation of TFLite files with the AI Edge quantizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import Call, ExportOptions, Output
from edgepipe.errors import UsageError

if TYPE_CHECKING:
    from edgepipe.schema import Artifact

STEPS = {
    "fp16": "weights stored as float16 and widened to float32 when the file is loaded: half the size, the same speed",
    "dynamic": "int8 weights, one scale for each tensor, activations quantised as they come; needs no data",
    "int8": "int8 weights per channel and int8 activations calibrated on data; inputs and outputs stay float32",
}
DEFAULTS: dict[str, dict[str, Any]] = {"fp16": {}, "dynamic": {}, "int8": {"method": "minmax", "samples": 256}}
NEEDS_DATA = ("int8",)
LIBRARIES = ("ai-edge-quantizer", "ai-edge-litert")
OPTIONS: tuple[str, ...] = ()
METHODS = ("minmax", "average")


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
    """
    if params.get("method", "minmax") not in METHODS:
        raise UsageError(f"no such calibration method: {params['method']}", "int8", f"use {' or '.join(METHODS)}")
    name = Path(source.path).name
    arguments: dict[str, Any] = {"source": source.path, "target": str(folder / name)}
    if step == "int8":
        names = [spec.name for spec in source.inputs]
        arguments |= {"calibration": str(calibration), "names": names, "threads": options.threads, **params}
        arguments.pop("samples", None)
    note = call(f"{__name__}:{step}", arguments)
    return Output([name], source.inputs, source.outputs, source.preprocessing, note=note)


def fp16(source: str, target: str) -> str:
    """Store constants as float16 (runs in the child)."""
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName

    tool = quantizer.Quantizer(source)
    tool.add_weight_only_config(
        regex=".*",
        operation_name=TFLOperationName.ALL_SUPPORTED,
        num_bits=16,
        algorithm_key=AlgorithmName.FLOAT_CASTING,
    )
    tool.quantize().export_model(target, overwrite=True)
    return _load_test(source, target)


def dynamic(source: str, target: str) -> str:
    """Quantise weights with one scale for each tensor: tflite-runtime 2.14 computes garbage from scales per channel.

    Depthwise convolutions stay float32: with one scale the runtimes compute garbage from them too (LiteRT 2.3 gives a
    cosine of -0.03), and they hold few weights.
    """
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName

    tool = quantizer.Quantizer(source)
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
    return _load_test(source, target)


def int8(source: str, target: str, calibration: str, names: list[str], threads: int, method: str) -> str:
    """Quantise statically, leaving the inputs and outputs float32: no caller has to know scales and zero points.

    The quantizer's own calibrator averages ranges from the first sample on; "minmax" keeps what was really seen.
    """
    import numpy as np
    from ai_edge_quantizer import calibrator, quantizer, recipe
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName
    from ai_edge_quantizer.utils import qsv_utils

    tool = quantizer.Quantizer(source)
    tool.load_quantization_recipe(recipe.static_wi8_ai8())
    for border in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
        tool.update_quantization_recipe(regex=".*", operation_name=border, algorithm_key=AlgorithmName.NO_QUANTIZE)
    update = qsv_utils.min_max_update if method == "minmax" else qsv_utils.moving_average_update
    watcher = calibrator.Calibrator(Path(source).read_bytes(), num_threads=threads, qsv_update_func=update)
    with np.load(calibration, allow_pickle=False) as arrays:
        samples = [arrays[name] for name in names]
    keys = _signature(source)
    batch = keys.pop("batch")
    # The recipe manager is private, and the only way to a calibrator with an update of one's own: the pin of the
    # quantizer's version in pyproject.toml is exact for this reason.
    watcher.calibrate({keys["signature"]: list(_feeds(samples, keys["inputs"], batch))}, tool._recipe_manager)
    tool.quantize(watcher.get_model_qsvs()).export_model(target, overwrite=True)
    return f"{method} over {len(samples[0])} samples; {_load_test(source, target)}"


def _signature(path: str) -> dict[str, Any]:
    """Name of the first signature, its input names in the file's order of inputs, and the fixed batch."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=1)
    name, parts = next(iter(interpreter.get_signature_list().items()))
    runner = interpreter.get_signature_runner(name)
    by_index = {detail["index"]: key for key, detail in runner.get_input_details().items()}
    details = interpreter.get_input_details()
    ordered = [by_index.get(detail["index"], key) for detail, key in zip(details, parts["inputs"], strict=True)]
    return {"signature": name, "inputs": ordered, "batch": max(1, int(details[0]["shape"][0]))}


def _feeds(samples: list[Any], keys: list[str], batch: int) -> Any:
    import numpy as np

    count = len(samples[0])
    if count < batch:
        samples = [np.resize(array, (batch, *array.shape[1:])) for array in samples]
        count = batch
    for start in range(0, count - batch + 1, batch):
        yield {key: array[start : start + batch] for key, array in zip(keys, samples, strict=True)}


def _load_test(source: str, target: str) -> str:
    """Prove that the file loads and runs; say how many of its tensors hold 8 or 16 bits."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    kinds = []
    for path in (source, target):
        interpreter = Interpreter(model_path=path, num_threads=1)
        interpreter.allocate_tensors()
        for detail in interpreter.get_input_details():
            interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
        interpreter.invoke()
        kinds.append([np.dtype(detail["dtype"]).name for detail in interpreter.get_tensor_details()])
    small = sum(kind in ("int8", "float16") for kind in kinds[1]) - sum(
        kind in ("int8", "float16") for kind in kinds[0]
    )
    if not small:
        shutil.copyfile(source, target)
        return "no effect: no operation of the file can be quantised"
    return f"{small} of {len(kinds[1])} tensors quantised"
