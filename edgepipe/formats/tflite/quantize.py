"""Post-training quantisation of TFLite files with the AI Edge quantizer."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import Call, ExportOptions, Output
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.formats import _quantisation as shared

if TYPE_CHECKING:
    from edgepipe.schema import Artifact

STEPS = {
    "fp16": "weights stored as float16 and widened to float32 when the file is loaded: half the size, the same speed",
    "dynamic": "int8 weights, one scale for each tensor, activations quantised as they come; needs no data",
    "int8": "int8 weights and activations calibrated on data; inputs and outputs stay float32",
    "mixed": shared.MIXED,
    "int8w": "int8 weights alone, computed in float32; one scale for each channel; needs no data",
    "int4": "int4 weights alone, computed in float32; one scale for each channel; needs no data",
}
DEFAULTS = shared.defaults(int4_group=0)
CHOICES = shared.CHOICES
LIMITS = shared.LIMITS
NEEDS_DATA = shared.NEEDS_DATA
LIBRARIES = ("ai-edge-quantizer", "ai-edge-litert")
OPTIONS: tuple[str, ...] = ()


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
        UsageError: groups, which the quantizer has not for weights alone.
        IntegrityError: a weight, or an activation on the calibration data, is NaN or infinite.
    """
    name = Path(source.path).name
    arguments: dict[str, Any] = {"source": source.path, "target": str(folder / name)}
    if step in NEEDS_DATA:
        chosen = {key: params[key] for key in shared.WORDS} | {"percentile": params["percentile"]}
        arguments |= {"calibration": str(calibration), "names": [spec.name for spec in source.inputs]}
        arguments |= {"threads": options.threads, "params": chosen, "keep": params.get("keep", [])}
    elif params.get("group"):
        what = "the quantizer has no groups for weights that are computed in float"
        raise UsageError(what, f"{step}:group={params['group']}", f"write {step}, or use onnx or openvino for groups")
    note = call(f"{__name__}:{'int8' if step == 'mixed' else step}", arguments)
    return Output([name], source.inputs, source.outputs, source.preprocessing, note=note)


def layers(path: str) -> list[dict[str, Any]]:
    """The layers that int8 quantises, in the order of the file (runs in the child): name, op, count of weights."""
    from edgepipe.formats.tflite import graph

    return [{"name": item.name, "op": item.op, "weights": item.weights} for item in graph.read(path).layers]


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


def int8w(source: str, target: str) -> str:
    """Quantise weights alone to int8; the runtime widens them to float32."""
    return _weight_only(source, target, 8)


def int4(source: str, target: str) -> str:
    """Quantise weights alone to int4; the runtime widens them to float32."""
    return _weight_only(source, target, 4)


def _weight_only(source: str, target: str, bits: int) -> str:
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.qtyping import TFLOperationName

    tool = quantizer.Quantizer(source)
    tool.add_weight_only_config(regex=".*", operation_name=TFLOperationName.ALL_SUPPORTED, num_bits=bits)
    tool.quantize().export_model(target, overwrite=True)
    return f"{_load_test(source, target)}, one scale for each channel; it saves size, not time"


def int8(
    source: str, target: str, calibration: str, names: list[str], threads: int, params: dict[str, Any], keep: list[str]
) -> str:
    """Quantise statically, leaving the inputs and outputs float32: no caller has to know scales and zero points.

    The quantizer's own calibrator averages ranges from the first sample on; here they are estimated by
    `edgepipe.calibrate`, as for the other formats, and handed to it.

    Raises:
        IntegrityError: a weight, or an activation on the calibration data, is NaN or infinite.
    """
    import numpy as np
    from ai_edge_quantizer import calibrator

    from edgepipe.formats.tflite import graph

    found = graph.read(source)
    if found.layers and {layer.name for layer in found.layers} <= set(keep):
        shutil.copyfile(source, target)
        return "no effect: every layer is kept in float"
    if broken := found.broken():
        raise IntegrityError(f"the weights hold NaN or infinity: tensor {broken}", "int8", "train the model again")
    with np.load(calibration, allow_pickle=False) as arrays:
        samples = [arrays[name] for name in names]
    keys = _signature(source)
    feeds = list(_feeds(samples, keys["inputs"], keys.pop("batch")))
    bits = 16 if params["scheme"] == "w8a16" else 8
    seen = graph.watch(source, feeds, threads, params, bits)
    content = found.corrected(seen.means, params["weights"] == "channel") if params["bias"] == "on" else None
    tool = _static(content or source, params, bits, keep)
    # One sample through the quantizer's own calibrator says which tensors it wants to know of. The recipe manager is
    # private, and the only way to it: the pin of the quantizer's version in pyproject.toml is exact for this reason.
    watcher = calibrator.Calibrator(Path(source).read_bytes(), num_threads=threads)
    watcher.calibrate({keys["signature"]: feeds[:1]}, tool._recipe_manager)
    tool.quantize(seen.ranges_for(watcher.get_model_qsvs())).export_model(target, overwrite=True)
    return f"{params['method']} over {len(samples[0])} samples; {_load_test(source, target)}"


def _static(model: str | bytes, params: dict[str, Any], bits: int, keep: list[str]) -> Any:
    """The quantizer with its recipe: all it can, but for the file's inputs and outputs and the layers to keep."""
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName

    tool = quantizer.Quantizer(model)
    tool.add_static_config(
        regex=".*",
        operation_name=TFLOperationName.ALL_SUPPORTED,
        activation_num_bits=bits,
        weight_num_bits=8,
        weight_granularity=QuantGranularity[f"{params['weights'].upper()}WISE"],
    )
    floats = [(".*", TFLOperationName.INPUT), (".*", TFLOperationName.OUTPUT)]
    for regex, operation in floats + [(_exactly(name), TFLOperationName.ALL_SUPPORTED) for name in keep]:
        tool.update_quantization_recipe(regex=regex, operation_name=operation, algorithm_key=AlgorithmName.NO_QUANTIZE)
    return tool


def _exactly(name: str) -> str:
    """A pattern for the operation whose output tensor has this name: the quantizer ends each name with a semicolon."""
    return f"^{re.escape(name)};"


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
    small = sum(kind in ("int8", "int4", "int16", "float16") for kind in kinds[1]) - sum(
        kind in ("int8", "int4", "int16", "float16") for kind in kinds[0]
    )
    if not small:
        shutil.copyfile(source, target)
        return "no effect: no operation of the file can be quantised"
    return f"{small} of {len(kinds[1])} tensors quantised"
