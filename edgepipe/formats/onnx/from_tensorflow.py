"""ONNX from a frozen graph through tf2onnx (runs in the child)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgepipe.errors import IntegrityError, UsageError
from edgepipe.formats import _samples

_OPSET = 18  # the newest that tf2onnx 1.17 writes
_FIX = "export to tflite or openvino instead"


def convert(source: str, inputs: list[str], outputs: list[str]) -> Any:
    """The ONNX model of the graph, its inputs and outputs under the names given.

    Raises:
        UsageError: tf2onnx has no rule for an operator of it.
    """
    import os

    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    try:
        import tensorflow as tf
        import tf2onnx
    except ImportError as error:
        fix = "pip install 'edgepipe[keras]'"
        raise UsageError(f"the way from TensorFlow to ONNX is not installed: {error}", "tf2onnx", fix) from None
    definition = tf.compat.v1.GraphDef()
    definition.ParseFromString(Path(source).read_bytes())
    tensors = [[f"{name}:0" for name in names] for names in (inputs, outputs)]
    try:
        model, _ = tf2onnx.convert.from_graph_def(
            definition, input_names=tensors[0], output_names=tensors[1], opset=_OPSET
        )
    except Exception as error:  # it raises whatever its rules do
        raise UsageError(f"tf2onnx can't convert the model: {str(error)[:200]}", Path(source).name, _FIX) from None
    foreign = sorted({node.op_type for node in model.graph.node if node.domain not in ("", "ai.onnx", "ai.onnx.ml")})
    if foreign:
        what = f"tf2onnx has no rule for {', '.join(foreign)[:200]}"
        raise UsageError(what, Path(source).name, _FIX)
    _rename(model.graph, {f"{name}:0": name for name in (*inputs, *outputs)})
    return model


def _rename(graph: Any, names: dict[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    _rename(inner, names)


def prove(session: Any, source: str) -> None:
    """Hold the file against what the model itself made of the samples beside its frozen graph.

    Raises:
        IntegrityError: they differ.
    """
    given, wanted = _samples.load(Path(source).parent)
    made = session.run(None, dict(zip([port.name for port in session.get_inputs()], given, strict=True)))
    if not _samples.close(wanted, made):
        raise IntegrityError("the ONNX file does not compute what the model does", Path(source).name, _FIX)
