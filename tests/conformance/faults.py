"""Faults that converters really make, planted one at a time: is the layer named in which they are?

A weight flipped, a layout swapped, a pad on the wrong side; in ONNX files, in the OpenVINO files made of those, and in
TFLite files; each drawn by its seed. Only the layer counts: that the outputs differ is the ladder's business.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepipe import layerwise
from edgepipe.artifact import Output, build

if TYPE_CHECKING:
    from edgepipe.align import Seen
    from edgepipe.samples import Samples
    from edgepipe.schema import Artifact

KINDS = ("weight", "layout", "pad")
FORMATS = ("onnx", "openvino", "tflite")
_LAYERS = ("Conv", "Gemm", "MatMul")
_LARGE = 0.75  # quantile of the weights' magnitudes above which one is flipped: a weight near zero is no fault to find


@dataclass(frozen=True)
class Case:
    """One planted fault, and what was found: ``layer`` is where it is, ``named`` what was said."""

    seed: int
    format: str
    kind: str
    layer: str
    named: str
    found: bool


def draw(seed: int) -> tuple[str, str]:
    """The format and the kind of a case."""
    return FORMATS[seed % len(FORMATS)], KINDS[seed // len(FORMATS) % len(KINDS)]


def try_case(seed: int, sound: dict[str, Artifact], one: list[Seen], samples: Samples) -> Case:
    """Plant the fault of ``seed`` in one of the ``sound`` files (by format), and look for it from ``one``."""
    name, kind = draw(seed)
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="edgepipe-") as folder:
        if name == "tflite":
            faulty, layer = _in_tflite(sound["tflite"], Path(folder), kind, random)
        else:
            faulty, layer = _in_onnx(sound[name], sound["onnx"], Path(folder), kind, random)
        other = layerwise.observe(faulty, samples)
        first = layerwise.compare(one, other, "float32", ("sound", "faulty"), samples.source).first
    # What has no like in the other file (a pad that is part of its convolution) is named beside the layer it feeds;
    # OpenVINO names the parts it splits a node into itself, so there the like tells which node of the source it is.
    named = [first.layer, *first.before] if first else []
    if first and name == "openvino":
        named.append(first.between[0])
    return Case(seed, name, kind, layer, ", ".join(named) or "nothing", layer in named)


def _in_onnx(sound: Artifact, source: Artifact, folder: Path, kind: str, random: np.random.Generator):
    import onnx
    from onnx import numpy_helper

    model = onnx.load(source.path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    node = _chosen(model, weights, kind, random)
    if kind == "pad":
        pads = next(item for item in node.attribute if item.name == "pads")
        half = len(pads.ints) // 2
        pads.ints[:] = [0] * half + [a + b for a, b in zip(pads.ints[:half], pads.ints[half:], strict=True)]
    else:
        tensor = weights[node.input[1]]
        values = spoiled(numpy_helper.to_array(tensor), kind, random)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    files = [path.name]
    if sound.format == "openvino":
        import openvino

        openvino.save_model(openvino.convert_model(str(path)), str(folder / "model.xml"), compress_to_fp16=False)
        files = ["model.xml", "model.bin"]
    return _artifact(sound, folder, files), node.name


def _chosen(model, weights, kind: str, random: np.random.Generator):
    """A layer of the file that can have such a fault."""
    from onnx import numpy_helper

    def fits(node) -> bool:
        if node.op_type not in _LAYERS or node.input[1] not in weights:
            return False
        if kind == "pad":
            return any(item.name == "pads" and any(item.ints) for item in node.attribute)
        return kind == "weight" or matters(numpy_helper.to_array(weights[node.input[1]]))

    nodes = [node for node in model.graph.node if fits(node)]
    return nodes[random.integers(len(nodes))]


def matters(values: np.ndarray) -> bool:
    """Whether the weights read in the order of another layout are other weights."""
    return not np.array_equal(spoiled(values, "layout", np.random.default_rng(0)), values)


def spoiled(values: np.ndarray, kind: str, random: np.random.Generator) -> np.ndarray:
    """The weights with the sign of one of the larger ones flipped, or read in the order of another layout."""
    if kind == "layout":
        return np.ascontiguousarray(np.moveaxis(values, -1, 0)).reshape(values.shape)
    flat = values.copy().ravel()
    large = np.flatnonzero(np.abs(flat) >= np.quantile(np.abs(flat), _LARGE))
    flat[random.choice(large)] *= -1
    return flat.reshape(values.shape)


def _in_tflite(sound: Artifact, folder: Path, kind: str, random: np.random.Generator):
    from edgepipe.formats.tflite import graph

    model = graph.read(sound.path)
    places = []
    for place, op in enumerate(model.subgraphs[0].operators):
        name = graph.operator(model, op)
        if kind == "pad":
            fits = name in ("PAD", "PADV2")
        else:
            values = graph.constant(model, int(op.inputs[1])) if len(op.inputs) > 1 else None
            fits = name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED") and values is not None
            fits = fits and (kind == "weight" or matters(values))
        places += [place] * fits
    place = int(places[random.integers(len(places))])
    if kind == "pad":
        index = int(model.subgraphs[0].operators[place].inputs[1])
        place = next(at for at in places if model.subgraphs[0].operators[at].inputs[1] == index)  # it may be shared
        pads = graph.constant(model, index).copy()
        pads[:] = np.stack([np.zeros_like(pads[:, 0]), pads.sum(1)], 1)
        tensor = model.subgraphs[0].tensors[index]
        model.buffers[tensor.buffer].data = np.frombuffer(pads.tobytes(), np.uint8)
    else:
        values = graph.constant(model, int(model.subgraphs[0].operators[place].inputs[1]))
        graph.set_constant(model, place, 1, spoiled(values, kind, random))
    (folder / "model.tflite").write_bytes(graph.pack(model))
    return _artifact(sound, folder, ["model.tflite"]), graph.name_of(model, place)


def _artifact(sound: Artifact, folder: Path, files: list[str]) -> Artifact:
    output = Output(files, sound.inputs, sound.outputs, sound.preprocessing)
    made = build(sound.format, folder, output, model=sound.model, recipe="none", parent_sha256="")
    return replace(made, raw_layout=sound.raw_layout)
