"""TFLite from a frozen graph through TensorFlow's own converter (runs in the child)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from edgepipe.errors import IntegrityError, UsageError
from edgepipe.formats import _samples


def convert(
    source: str, target: str, shapes: list[list[int]], dtypes: list[str], inputs: list[str], outputs: list[str]
) -> dict[str, Any]:
    """Make the file, run it on the samples beside ``source``, and read back its inputs and outputs.

    The result is as that of `export.convert`: [index in the model's own order, shape, dtype], in the file's order.

    Raises:
        UsageError: an operator that TFLite does not have.
        IntegrityError: the file does not compute what the model does.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    import tensorflow as tf

    definition = tf.compat.v1.GraphDef()
    definition.ParseFromString(Path(source).read_bytes())
    wrapped = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(definition, name=""), [])
    ends = [[wrapped.graph.get_tensor_by_name(f"{name}:0") for name in names] for names in (inputs, outputs)]
    pruned = wrapped.prune(*ends)
    specs = [tf.TensorSpec(*each) for each in zip(shapes, dtypes, inputs, strict=True)]
    concrete = tf.function(pruned).get_concrete_function(*specs)
    try:
        content = tf.lite.TFLiteConverter.from_concrete_functions([concrete]).convert()
    except Exception as error:  # ConverterError, ValueError and whatever the passes raise
        raise UsageError(
            f"TFLite can't hold the model: {_words(error)}", source, "export to openvino instead"
        ) from None
    Path(target).write_bytes(content)
    return _read_back(target, inputs, Path(source).parent)


def _words(error: Exception) -> str:
    """The line that says which operators it is about, else the first lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("Flex ops:", "Custom ops:"))]
    return (" ".join(told) or " ".join(lines[:3]))[:250]


def _read_back(target: str, names: list[str], folder: Path) -> dict[str, Any]:
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=target, num_threads=1)
    interpreter.allocate_tensors()
    details = interpreter.get_input_details(), interpreter.get_output_details()
    given, wanted = _samples.load(folder)
    order = [_place(detail["name"], names, index) for index, detail in enumerate(details[0])]
    for index, detail in zip(order, details[0], strict=True):
        interpreter.set_tensor(detail["index"], given[index])
    interpreter.invoke()
    have = [interpreter.get_tensor(detail["index"]) for detail in details[1]]
    if not _samples.close(wanted, have):
        raise IntegrityError(
            "the TFLite file does not compute what the model does", target, "export to openvino instead"
        )

    def facts(index: int, detail: dict[str, Any]) -> list[Any]:
        return [index, [int(size) for size in detail["shape"]], np.dtype(detail["dtype"]).name]

    return {
        "inputs": [facts(index, detail) for index, detail in zip(order, details[0], strict=True)],
        "outputs": [facts(index, detail) for index, detail in enumerate(details[1])],
    }


def _place(name: str, names: list[str], otherwise: int) -> int:
    plain = name.removeprefix("serving_default_").partition(":")[0]
    return names.index(plain) if plain in names else otherwise
