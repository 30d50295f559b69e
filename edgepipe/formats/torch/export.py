"""Trace a torch module into a portable program, ``model.pt2``: what every other format is exported from.

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

SOURCES = ("",)
LIBRARIES = ("torch",)
OPTIONS = ("batch", "dynamic_batch")
FILE = "model.pt2"


def export(model: Model, source: Path | None, folder: Path, options: ExportOptions, call: Call) -> Output:  # noqa: ARG001
    """Write ``model.pt2`` into ``folder``.

    Raises:
        UsageError: the module can't be traced.
    """
    import torch

    batch = 2 if options.dynamic_batch else options.batch  # 0 and 1 are taken for constants by the tracer
    example = tuple(torch.zeros([batch, *spec.shape[1:]], dtype=getattr(torch, spec.dtype)) for spec in model.inputs)
    shapes = tuple({0: torch.export.Dim("batch")} for _ in example) if options.dynamic_batch else None
    try:
        program = torch.export.export(model.module, example, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # the tracer raises a dozen kinds
        what = f"the model can't be traced: {type(error).__name__}: {str(error)[:300]}"
        raise UsageError(what, model.name, "remove branches and shapes that depend on the data") from error
    torch.export.save(program, folder / FILE)
    size = -1 if options.dynamic_batch else options.batch
    return Output([FILE], _fixed(model.inputs, size), _fixed(model.outputs, size), model.preprocessing)


def reload(path: Path) -> Any:
    """The traced program as a torch module (for comparing; it can't be trained or changed)."""
    import torch

    return torch.export.load(path).module()


def _fixed(specs: list[TensorSpec], batch: int) -> list[TensorSpec]:
    return [TensorSpec(spec.name, [batch, *spec.shape[1:]], spec.dtype, spec.layout) for spec in specs]
