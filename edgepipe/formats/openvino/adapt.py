"""Preprocessing and layout inside an OpenVINO file: a few operations between its first input and whatever reads it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.formats import _inputs
from edgepipe.formats.openvino.quantize import write

if TYPE_CHECKING:
    from edgepipe.artifact import Call, ExportOptions, Output
    from edgepipe.schema import Artifact

LIBRARIES = ("openvino",)


def adapt(source: Artifact, folder: Path, options: ExportOptions, call: Call) -> Output:
    """Write ``source`` with what the options ask of its first input into ``folder``."""
    made = _inputs.front(source, options)
    names = [ref.name for ref in source.files]
    facts = call(f"{__name__}:work", {"source": source.path, "target": str(folder / names[0]), "front": asdict(made)})
    return _inputs.output(source, options, made, names, ir_version=facts["ir_version"])


def work(source: str, target: str, front: dict[str, Any]) -> dict[str, Any]:
    """Put the operations in (runs in the child)."""
    import numpy as np
    import openvino
    from openvino import opset8 as ops

    wanted = _inputs.Front(**front)
    model = openvino.Core().read_model(source)
    port = next(each for each in model.inputs if wanted.name in each.get_names())
    old = port.get_node()
    readers = list(port.get_target_inputs())
    dims = list(port.get_partial_shape())
    for place, dim in zip(wanted.order, list(dims), strict=False):
        dims[place] = dim
    new = ops.parameter(openvino.PartialShape(dims), port.get_element_type(), name=old.get_friendly_name())
    names = port.get_names()
    port.set_names(set())
    new.output(0).set_names(names)
    end: Any = new
    if wanted.scale:
        end = ops.multiply(end, ops.constant(wanted.across(wanted.scale)))
    if wanted.shift:
        end = ops.add(end, ops.constant(wanted.across(wanted.shift)))
    if wanted.flip:
        places = np.arange(wanted.shape[wanted.axis], dtype=np.int64)[::-1].copy()
        end = ops.gather(end, ops.constant(places), ops.constant(np.int64(wanted.axis)))
    if wanted.order:
        end = ops.transpose(end, ops.constant(np.asarray(wanted.order, np.int64)))
    for reader in readers:
        reader.replace_source_output(end.output(0))
    place = model.get_parameter_index(old)
    parameters = [new if at == place else node for at, node in enumerate(model.get_parameters())]
    changed = openvino.Model(model.get_results(), model.get_sinks(), parameters, model.get_friendly_name())
    return write(changed, target, "")
