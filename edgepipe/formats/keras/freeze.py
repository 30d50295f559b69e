"""Write a model as a frozen graph with the names and the batch asked for, and prove it on seeded inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgepipe.errors import IntegrityError, UsageError
from edgepipe.formats import _samples
from edgepipe.formats.keras import read


def freeze(source: str, target: str, inputs: list[dict[str, Any]], outputs: list[str], batch: int) -> dict[str, Any]:
    """Make ``target`` and the samples beside it (runs in the child).

    Raises:
        UsageError: an input has no part in the outputs.
        IntegrityError: the graph does not compute what the model does.
    """
    tf = read.tensorflow()
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    found = read.function(source)
    size = None if batch == -1 else batch
    wanted = [tf.TensorSpec([size, *spec["shape"][1:]], spec["dtype"], spec["name"]) for spec in inputs]

    def run(*args: Any) -> Any:
        made = tf.nest.flatten(found.call(*args))
        for value, told in zip(made, found.call.outputs, strict=True):
            value.set_shape([size, *told.shape.as_list()[1:]] if told.shape.rank else [])  # loops lose them
        return [tf.identity(value, name=name) for value, name in zip(made, outputs, strict=True)]

    frozen = convert_variables_to_constants_v2(
        tf.function(run).get_concrete_function(*wanted), lower_control_flow=False
    )
    given = _samples.inputs(inputs, 1 if batch == -1 else batch)
    results = [value.numpy() for value in tf.nest.flatten(found.call(*(tf.constant(value) for value in given)))]
    after = [value.numpy() for value in tf.nest.flatten(frozen(*(tf.constant(value) for value in given)))]
    _samples.save(Path(target).parent, given, results)
    if not _samples.close(results, after):
        raise IntegrityError("the frozen graph does not compute what the model does", source, "save the model again")
    definition = tf.compat.v1.graph_util.extract_sub_graph(frozen.graph.as_graph_def(), outputs)
    kept = {node.name for node in definition.node}
    unused = [spec["name"] for spec in inputs if spec["name"] not in kept]
    if unused:
        raise UsageError(f"the model does not use its input {unused[0]}", source, "leave the input out")
    Path(target).write_bytes(definition.SerializeToString(deterministic=True))
    shapes = [[batch, *value.shape[1:]] if value.ndim else [] for value in results]
    kinds = [value.dtype.name for value in results]
    return {
        "outputs": [
            {"name": name, "shape": shape, "dtype": kind}
            for name, shape, kind in zip(outputs, shapes, kinds, strict=True)
        ]
    }
