"""A TensorFlow model as a frozen graph, ``model.pb``: what TFLite and OpenVINO files are made from.

Beside it lies ``samples.npz``: seeded inputs and what the model itself made of them, for whoever converts further.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe.artifact import Call, ExportOptions, Output
from edgepipe.codec import to_dict
from edgepipe.errors import UsageError
from edgepipe.schema import TensorSpec

if TYPE_CHECKING:
    from edgepipe.model import Model

SOURCES = ("keras",)
LIBRARIES = ("tensorflow", "keras")
OPTIONS = ("batch", "dynamic")
FILE = "model.pb"


def export(model: Model, source: Path | None, folder: Path, options: ExportOptions, call: Call) -> Output:
    """Write ``model.pb`` with a fixed batch, or an open one, from the file ``source``.

    Raises:
        UsageError: the model has another fixed batch.
        IntegrityError: see `formats.keras.load`.
    """
    size = -1 if options.dynamic_batch else options.batch
    for spec in model.inputs:
        if spec.shape and spec.shape[0] not in (-1, size):
            fix = f"use --batch {spec.shape[0]}"
            raise UsageError(f"the model has a fixed batch of {spec.shape[0]}", f"batch {size}", fix)
    facts = call(
        f"edgepipe.formats.{model.format}.freeze:freeze",
        {
            "source": str(source),
            "target": str(folder / FILE),
            "inputs": [to_dict(spec) for spec in model.inputs],
            "outputs": [spec.name for spec in model.outputs],
            "batch": size,
        },
    )
    outputs = [TensorSpec(**spec) for spec in facts["outputs"]]
    inputs = [TensorSpec(spec.name, [size, *spec.shape[1:]], spec.dtype, spec.layout) for spec in model.inputs]
    return Output([FILE], inputs, outputs, model.preprocessing)
