"""OpenVINO IR files as models: the .xml, checked against its .bin, read in a child process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgepipe import isolate
from edgepipe.cache import hash_file
from edgepipe.codec import from_dict
from edgepipe.errors import IntegrityError
from edgepipe.model import Card, Loaded
from edgepipe.schema import TensorSpec

EXTENSIONS = (".xml",)
_PROMISE = re.compile(r'<bin_sha256 value="([0-9a-f]{64})"')


def companions(path: Path) -> list[str]:
    """The name of the file beside ``path`` that holds its weights."""
    return [path.with_suffix(".bin").name]


def load(path: Path, card: Card) -> Loaded:
    """Inspect ``path`` and the .bin beside it; names, shapes and types are the file's own, layouts the card's.

    Raises:
        IntegrityError: not a sound IR, no .bin, or another .bin than the .xml promises.
    """
    weights = path.with_suffix(".bin")
    fix = "get both files again, or export them again"
    if not weights.is_file():
        raise IntegrityError("the .bin of this OpenVINO model is missing", str(weights), fix)
    digest = hash_file(weights)
    promise = _PROMISE.search(path.read_text(encoding="utf-8", errors="replace"))
    if promise and promise.group(1) != digest:
        raise IntegrityError("the .bin is not the one this .xml was written with", str(weights), fix)
    facts = isolate.read(f"{__name__}:inspect", path)
    inputs, outputs = ([from_dict(TensorSpec, spec) for spec in facts[side]] for side in ("inputs", "outputs"))
    if inputs:
        inputs[0] = TensorSpec(inputs[0].name, inputs[0].shape, inputs[0].dtype, card.preprocessing.layout)
    both = hash_file(path)
    reason = "multiply-accumulates of OpenVINO files are not counted"
    identity = f"{both}-{digest}-{card.preprocessing!r}"
    return Loaded("openvino", inputs, outputs, both, identity, None, facts["parameters"], None, reason)


def inspect(path: str) -> dict[str, Any]:
    """What is in the file (runs in the child): inputs, outputs and the elements of floating or 8-bit constants."""
    import math

    import openvino

    try:
        model = openvino.Core().read_model(path)
    except RuntimeError as error:
        text = " ".join(str(error).split())[-200:]
        raise IntegrityError(f"not a sound OpenVINO model: {text}", path, "get both files again") from None
    if not model.outputs:
        raise IntegrityError("not a sound OpenVINO model: it has no outputs", path, "get both files again")
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    weights = [op for op in constants if op.get_element_type().to_string() in ("f32", "f16", "bf16", "i8", "u8")]
    return {
        "inputs": [_spec(port) for port in model.inputs],
        "outputs": [_spec(port) for port in model.outputs],
        "parameters": sum(math.prod(op.get_output_shape(0)) for op in weights),
    }


def _spec(port: Any) -> dict[str, Any]:
    import numpy as np

    shape = [size.get_length() if size.is_static else -1 for size in port.get_partial_shape()]
    return {"name": port.get_any_name(), "shape": shape, "dtype": np.dtype(port.get_element_type().to_dtype()).name}
