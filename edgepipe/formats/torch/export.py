"""Trace a torch module, or an ONNX graph, into a portable program, ``model.pt2``: what other formats are exported from.

The program leaves Python code behind, so the converters' child processes need neither the model's source nor pickle.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import Call, ExportOptions, Output
from edgepipe.errors import UsageError
from edgepipe.schema import TensorSpec

if TYPE_CHECKING:
    from edgepipe.model import Model

SOURCES = ("", "onnx")
LIBRARIES = ("torch", "onnx", "onnxruntime")
OPTIONS = ("batch", "dynamic")
FILE = "model.pt2"


def export(model: Model, source: Path | None, folder: Path, options: ExportOptions, call: Call) -> Output:
    """Write ``model.pt2`` into ``folder``, from the module or from the ONNX file ``source``.

    Raises:
        UsageError: the module can't be traced, or a node of the graph has no rule.
        IntegrityError: the program does not compute what the ONNX file does.
    """
    if model.network is None:
        return _from_graph(model, source, folder, options, call)
    import torch

    size = -1 if options.dynamic_batch else options.batch
    fixed = next((spec.shape[0] for spec in model.inputs if spec.shape[0] not in (-1, size)), None)
    if fixed is not None:
        fix = f"use --batch {fixed}, or export the program with a dynamic batch" if fixed > 0 else "leave --dynamic out"
        raise UsageError(f"the program has a fixed batch of {fixed}", f"batch {size}", fix)
    batch = 2 if options.dynamic_batch else options.batch  # 0 and 1 are taken for constants by the tracer
    example = tuple(torch.zeros([batch, *spec.shape[1:]], dtype=getattr(torch, spec.dtype)) for spec in model.inputs)
    batched = {0: torch.export.Dim("batch")} if options.dynamic_batch else {}
    inputs = options.freed(_fixed(model.inputs, size))
    free = [[axis for axis, size in enumerate(spec.shape) if axis and size < 0] for spec in inputs]
    shapes = tuple({**batched, **dict.fromkeys(axes, torch.export.Dim.DYNAMIC)} for axes in free)
    try:
        program = torch.export.export(
            model.module, example, dynamic_shapes=shapes if options.dynamic else None, strict=False
        )
    except Exception as error:  # the tracer raises a dozen kinds
        what = f"the model can't be traced: {type(error).__name__}: {str(error)[:300]}"
        fix = "remove branches and shapes that depend on the data" + (
            ", or leave out --dynamic" if options.dynamic else ""
        )
        raise UsageError(what, model.name, fix) from error
    torch.export.save(program, folder / FILE)
    return Output([FILE], inputs, _fixed(model.outputs, size), model.preprocessing)


def _from_graph(model: Model, source: Path | None, folder: Path, options: ExportOptions, call: Call) -> Output:
    batches = [spec.shape[0] for spec in model.inputs if spec.shape]
    if options.batch != 1 and not any(size in (-1, 0, options.batch) for size in batches):
        raise UsageError("the file has no free batch", f"batch {options.batch}", "leave it out, or export it anew")
    shapes = [spec.shape for spec in model.inputs]
    told = {"source": str(source), "target": str(folder / FILE), "batch": options.batch, "shapes": shapes}
    facts = call(f"{__package__}.from_onnx:convert", told)
    inputs, outputs = (
        [TensorSpec(spec.name, shape, dtype, spec.layout) for spec, (shape, dtype) in zip(specs, made, strict=True)]
        for specs, made in ((model.inputs, facts["inputs"]), (model.outputs, facts["outputs"]))
    )
    return Output([FILE], inputs, outputs, model.preprocessing)


def reload(path: Path) -> Any:
    """The traced program as a torch module (for comparing; it can't be trained or changed)."""
    import torch

    return torch.export.load(path).module()


def _fixed(specs: list[TensorSpec], batch: int) -> list[TensorSpec]:
    return [TensorSpec(spec.name, [batch, *spec.shape[1:]], spec.dtype, spec.layout) for spec in specs]
