"""Preprocessing and layout inside an ONNX file: a few nodes between its first input and whatever reads it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.formats import _inputs
from edgepipe.formats.onnx import graph

if TYPE_CHECKING:
    from edgepipe.artifact import Call, ExportOptions, Output
    from edgepipe.schema import Artifact

LIBRARIES = ("onnx", "onnxruntime")


def adapt(source: Artifact, folder: Path, options: ExportOptions, call: Call) -> Output:
    """Write ``source`` with what the options ask of its first input into ``folder``."""
    made = _inputs.front(source, options)
    name = Path(source.path).name
    facts = call(f"{__name__}:work", {"source": source.path, "target": str(folder / name), "front": asdict(made)})
    return _inputs.output(source, options, made, [name], opset=facts["opset"], ir_version=facts["ir_version"])


def work(source: str, target: str, front: dict[str, Any]) -> dict[str, Any]:
    """Put the nodes in (runs in the child)."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    wanted = _inputs.Front(**front)
    model = onnx.load(source)
    main = model.graph
    value = next(item for item in main.input if item.name == wanted.name)
    free = _free(main)
    nodes = []
    name = wanted.name

    def add(op: str, operand: Any = None, **attributes: Any) -> None:
        nonlocal name
        inputs, result = [name], free(f"{wanted.name}_{op.lower()}")
        if operand is not None:
            inputs.append(free(f"{result}_by"))
            main.initializer.append(numpy_helper.from_array(operand, inputs[1]))
        nodes.append(helper.make_node(op, inputs, [result], result, **attributes))
        name = result

    if wanted.scale:
        add("Mul", wanted.across(wanted.scale))
    if wanted.shift:
        add("Add", wanted.across(wanted.shift))
    if wanted.flip:
        add("Gather", np.arange(wanted.shape[wanted.axis], dtype=np.int64)[::-1].copy(), axis=wanted.axis)
    if wanted.order:
        add("Transpose", perm=wanted.order)
        dims = [onnx.TensorShapeProto.Dimension() for _ in wanted.order]
        for place, dim in zip(wanted.order, value.type.tensor_type.shape.dim, strict=True):
            dims[place].CopyFrom(dim)
        del value.type.tensor_type.shape.dim[:]
        value.type.tensor_type.shape.dim.extend(dims)
    _rename(main, wanted.name, name)
    for place, node in enumerate(nodes):
        main.node.insert(place, node)
    return graph.finish(model, target, "")


def _free(main: Any) -> Any:
    """A function that makes a name no tensor of the graph has."""
    taken = {name for node in main.node for name in (*node.input, *node.output)}
    taken |= {item.name for item in (*main.input, *main.initializer)}

    def free(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    return free


def _rename(main: Any, old: str, new: str) -> None:
    """Have everything that reads ``old`` read ``new``, in the graphs inside nodes too; also where it is an output."""
    for node in main.node:
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    _rename(inner, old, new)
