"""TFLite files as models: read in a child process by the interpreter itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from edgepipe import isolate
from edgepipe.cache import hash_file
from edgepipe.codec import from_dict
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.formats.tflite import preflight
from edgepipe.model import Card, Loaded
from edgepipe.schema import TensorSpec

EXTENSIONS = (".tflite",)
_MAGIC = b"TFL3"  # the file identifier of the TFLite flatbuffer schema, at offset 4


def load(path: Path, card: Card) -> Loaded:
    """Inspect the file ``path``; shapes and types are the file's own, names and layouts the card's where it has them.

    Raises:
        IntegrityError: not a sound TFLite model.
        UsageError: it has operators that the interpreter lacks.
        BoardError: the interpreter crashed on it.
    """
    with path.open("rb") as file:
        if file.read(8)[4:] != _MAGIC:
            raise IntegrityError("not a TFLite model", str(path), "get the file again, or export it again")
    facts = isolate.read(f"{__name__}:inspect", path)
    inputs, outputs = ([from_dict(TensorSpec, spec) for spec in facts[side]] for side in ("inputs", "outputs"))
    if inputs:
        layout = card.preprocessing.layout
        inputs[0] = TensorSpec(inputs[0].name, inputs[0].shape, inputs[0].dtype, layout)
    digest = hash_file(path)
    reason = "multiply-accumulates of TFLite files are not counted"
    identity = f"{digest}-{card.preprocessing!r}"
    return Loaded("tflite", inputs, outputs, digest, identity, None, facts["parameters"], None, reason)


def inspect(path: str) -> dict[str, Any]:
    """What is in the file (runs in the child): inputs, outputs and the elements of constant tensors."""
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_path=path, num_threads=1)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        if missing := preflight.for_source(path, [], 0, None, None):
            fix = "leave those operations out of the model"
            raise UsageError("; ".join(why for why, _ in missing), path, fix) from None
        text = " ".join(str(error).split())[:200]
        raise IntegrityError(
            f"not a sound TFLite model: {text}", path, "get the file again, or export it again"
        ) from None
    return {
        "inputs": [_spec(detail) for detail in interpreter.get_input_details()],
        "outputs": [_spec(detail) for detail in interpreter.get_output_details()],
        "parameters": _constants(path),
    }


def _constants(path: str) -> int:
    """Elements of all tensors of the first graph that have content in the file, scalars apart."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(Path(path).read_bytes(), 0)
    graph, total = model.Subgraphs(0), 0
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        if model.Buffers(tensor.Buffer()).DataLength() and tensor.ShapeLength():
            total += math.prod(int(size) for size in tensor.ShapeAsNumpy())
    return total


def _spec(detail: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    shape = [int(size) for size in detail["shape_signature"]]
    return {"name": str(detail["name"]), "shape": shape, "dtype": np.dtype(detail["dtype"]).name}
