"""The null format: a file that only says what it was made from. All the rest of edgepipe can be tested through it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe.artifact import Call, ExportOptions, Output
from edgepipe.codec import canonical, to_dict

if TYPE_CHECKING:
    from edgepipe.model import Model

SOURCES = ("",)
LIBRARIES: tuple[str, ...] = ()
OPTIONS = ("batch", "dynamic")
FILE = "model.null"


def export(model: Model, source: Path | None, folder: Path, options: ExportOptions, call: Call) -> Output:  # noqa: ARG001
    """Write ``model.null``: canonical JSON of the model's name, its weights' hash, inputs, and the outputs' shapes.

    The null runtime reads the shapes, each without its batch.
    """
    batch = -1 if options.dynamic_batch else options.batch
    inputs = [replace(spec, shape=[batch, *spec.shape[1:]]) for spec in model.inputs]
    outputs = [replace(spec, shape=[batch, *spec.shape[1:]]) for spec in model.outputs]
    content = {
        "format": "null",
        "model": model.name,
        "sha256": model.facts.sha256,
        "inputs": [to_dict(spec) for spec in inputs],
        "outputs": [spec.shape[1:] for spec in outputs],
    }
    (folder / FILE).write_bytes(canonical(content))
    return Output([FILE], inputs, outputs, model.preprocessing)
