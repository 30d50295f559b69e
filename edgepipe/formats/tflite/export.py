"""TFLite: through litert-torch or TensorFlow's converter, images with their channels last."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import Call, ExportOptions, Output
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.formats.tflite import graph
from edgepipe.schema import TensorSpec

if TYPE_CHECKING:
    from edgepipe.model import Model

SOURCES = ("torch", "tensorflow")
WHY_NOT = {"openvino": "OpenVINO's operators are its own, and it writes no other format"}
LIBRARIES = ("torch", "litert-torch", "litert-converter", "ai-edge-litert", "tensorflow")
OPTIONS = ("batch", "dynamic")
FILE = "model.tflite"
_CHANNELS_FIRST, _CHANNELS_LAST = "NCHW", "NHWC"


def export(model: Model, source: Path | None, folder: Path, options: ExportOptions, call: Call) -> Output:
    """Write ``model.tflite`` from the traced program ``source``, or take the TFLite file the model is.

    The first input becomes NHWC where the model's own layout is NCHW, as runtimes and cameras expect of TFLite.

    Raises:
        UsageError: a dynamic batch, or another batch than the file has.
        IntegrityError: the file does not run.
    """
    if options.dynamic_batch:
        raise UsageError("tflite files have a fixed batch", "dynamic batch", "leave it out, or export to onnx")
    assert source is not None
    target = folder / FILE
    if source.suffix == ".tflite":
        return _adopt(model, source, target, options)
    own = model.preprocessing.layout
    layout = _CHANNELS_LAST if own == _CHANNELS_FIRST and source.suffix != ".pb" else own
    told: dict[str, Any] = {"source": str(source), "target": str(target)}
    if source.suffix == ".pb":
        shapes = [[options.batch, *spec.shape[1:]] for spec in model.inputs]
        types = {"shapes": shapes, "dtypes": [spec.dtype for spec in model.inputs]}
        names = {"inputs": [x.name for x in model.inputs], "outputs": [x.name for x in model.outputs]}
        facts = call(f"{__package__}.from_tensorflow:convert", {**told, **types, **names})
    else:
        facts = call(f"{__name__}:convert", {**told, "channels_last": layout != own})
    inputs = [
        TensorSpec(model.inputs[index].name, shape, dtype, layout if index == 0 else model.inputs[index].layout)
        for index, shape, dtype in facts["inputs"]
    ]
    outputs = [
        TensorSpec(model.outputs[index].name, shape, dtype, model.outputs[index].layout)
        for index, shape, dtype in facts["outputs"]
    ]
    return Output([FILE], inputs, outputs, replace(model.preprocessing, layout=layout))


def _adopt(model: Model, source: Path, target: Path, options: ExportOptions) -> Output:
    batch = model.inputs[0].shape[0] if model.inputs and model.inputs[0].shape else options.batch
    if batch not in (-1, options.batch):
        raise UsageError(f"the file has a fixed batch of {batch}", f"batch {options.batch}", f"use --batch {batch}")
    shutil.copyfile(source, target)
    return Output([FILE], model.inputs, model.outputs, model.preprocessing)


def convert(source: str, target: str, channels_last: bool) -> dict[str, Any]:
    """Make the file, run it once, and read back its inputs and outputs (runs in the child).

    Each input and output is [index in the model's own order, shape, dtype], in the file's order.

    Raises:
        UsageError: the converter has no form for an operation of the program.
        IntegrityError: the file does not compute what the program does.
    """
    import litert_torch
    import torch

    program = torch.export.load(source)
    _refuse(program)
    module: Any = _steady(program.module())
    example = _example(module, program.example_inputs[0])
    if channels_last:
        module = litert_torch.to_channel_last_io(module, args=[0])
        example = (example[0].movedim(1, -1).contiguous(), *example[1:])
    try:
        litert_torch.convert(module, example).export(target)
    except Exception as error:  # its stages raise a dozen kinds
        raise _refusal(error) from None
    model = graph.read(target)
    graph.label(model)
    Path(target).write_bytes(graph.pack(model))
    return _read_back(target, module, example)


def _refuse(program: Any) -> None:
    """Refuse what would end the converter's process instead of raising."""
    for node in program.graph.nodes:
        target = str(node.target)
        if target.startswith("aten.conv_transpose3d") or (target.startswith("aten.convolution") and _transposed(node)):
            what = f"litert-torch has no transposed convolution in three dimensions ({node.name})"
            raise UsageError(what, "export to tflite", "export to onnx or openvino")


def _transposed(node: Any) -> bool:
    transposed, weight, volume = 6, 1, 5  # places of aten.convolution's arguments; the rank of a weight in 3-D
    return bool(node.args[transposed]) and node.args[weight].meta["val"].dim() == volume


def _example(module: Any, like: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs to trace with and to try the file on: whole numbers are 1, which divides, or 0 where 1 is no index."""
    import torch

    for made_up in (torch.ones_like, torch.zeros_like):
        found = tuple(torch.rand(x.shape) if x.is_floating_point() else made_up(x) for x in like)
        try:
            module(*found)
        except (RuntimeError, IndexError):
            continue
        return found
    return found


def _refusal(error: Exception) -> UsageError:
    """What the converter could not do, in the words that name the operation."""
    text = " ".join(str(error).split())
    found = re.search(
        r"Lowering not found: ([\w.:<>]+)|failed to legalize operation '([\w.]+)'[^:]*: ([^\n]{0,160})", text
    )
    said = " ".join(filter(None, found.groups())) if found else text[:200]
    what = f"litert-torch can't convert the model: {type(error).__name__}: {said}"
    return UsageError(what, "export to tflite", "leave the operation out of the model, or export to onnx or openvino")


def _steady(program: Any) -> Any:
    """The traced program as a module that bears ``eval()`` and ``train()``, which a traced one refuses."""
    import torch

    class Steady(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
        def __init__(self) -> None:
            super().__init__()
            self.program = program

        def forward(self, *inputs: Any) -> Any:
            return self.program(*inputs)

        def train(self, mode: bool = True) -> Any:  # noqa: ARG002
            return self

    return Steady()


def _read_back(target: str, module: Any, example: tuple[Any, ...]) -> dict[str, Any]:
    """Run the file on the example and hold it against the module: order, shapes and values.

    Raises:
        IntegrityError: the file does not compute what the module does.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=target, num_threads=1)
    try:
        interpreter.allocate_tensors()
    except RuntimeError as error:
        raise _unrunnable(error) from None
    details = interpreter.get_input_details(), interpreter.get_output_details()
    order = [_number(detail["name"], len(details[0])) for detail in details[0]]
    for index, detail in zip(order, details[0], strict=True):
        interpreter.set_tensor(detail["index"], example[index].numpy().astype(detail["dtype"]))
    try:
        interpreter.invoke()
    except RuntimeError as error:
        raise _unrunnable(error) from None
    result = module(*example)
    wanted = [item.detach().numpy() for item in (result if isinstance(result, tuple | list) else [result])]
    back = [_number(detail["name"], len(details[1])) for detail in details[1]]
    for index, detail in zip(back, details[1], strict=True):
        have = interpreter.get_tensor(detail["index"])
        if have.shape != wanted[index].shape or not _alike(have, wanted[index]):
            raise IntegrityError(
                "the TFLite file does not compute what the model does", target, "export to onnx instead"
            )
    return {
        "inputs": [_fact(index, detail) for index, detail in zip(order, details[0], strict=True)],
        "outputs": [_fact(index, detail) for index, detail in zip(back, details[1], strict=True)],
    }


def _unrunnable(error: RuntimeError) -> UsageError:
    """What LiteRT says of a file that was converted and that it can't run."""
    what = f"LiteRT can't run what was converted: {' '.join(str(error).split())[:200]}"
    return UsageError(what, "export to tflite", "leave the operation out of the model, or export to onnx or openvino")


def _alike(have: Any, wanted: Any) -> bool:
    """Whether no value is further off than a thousandth of the largest."""
    import numpy as np

    a, b = have.astype(np.float64), wanted.astype(np.float64)
    scale = max(float(np.abs(b[np.isfinite(b)]).max(initial=0.0)), 1e-6)
    return bool(np.allclose(a, b, rtol=0.0, atol=1e-3 * scale, equal_nan=True))


def _fact(index: int, detail: dict[str, Any]) -> list[Any]:
    import numpy as np

    return [index, [int(size) for size in detail["shape"]], np.dtype(detail["dtype"]).name]


def _number(name: str, count: int) -> int:
    """The place in the model's own order, from the tensor's name (``..._args_1``, ``..._output_0_...``)."""
    found = re.search(r"(?:args|output)_(\d+)", str(name))
    return int(found.group(1)) if found and count > 1 else 0
