"""Any TensorFlow model as one frozen function. Everything here runs in a child process."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepipe.errors import EdgepipeError, IntegrityError, UsageError
from edgepipe.formats.keras import checks

_NUMBERS = ("float32", "float16", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")
_AGAIN = "get the model again, or save it again"
_IDLE = ("NoOp", "Assert", "Const", "Placeholder", "CheckNumerics")
_LIMIT = 2 << 30  # protobuf's own
# As Keras 2 and 3 say it.
_UNKNOWN = re.compile(r"(?:Unknown (?:layer|object)|Could not locate (?:class|function)):? '?(\w{1,60})")


@dataclass(frozen=True)
class Function:
    """A function without variables; ``names`` are those of its inputs and outputs, in order."""

    call: Any
    inputs: list[str]
    outputs: list[str]
    producer: dict[str, Any]


def tensorflow() -> Any:
    """TensorFlow without its chatter and without a GPU.

    Raises:
        UsageError: it is not installed.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    try:
        import tensorflow as tf
    except ImportError as error:
        fix = "pip install 'edgepipe[keras]'"
        raise UsageError(f"TensorFlow can't be imported: {error}", "tensorflow", fix) from None
    tf.get_logger().setLevel("ERROR")
    return tf


def function(path: str) -> Function:
    """The model in ``path`` as a frozen function with named inputs and outputs.

    Raises:
        UsageError: it holds code, strings or complex numbers, or something other than tensors.
        IntegrityError: it is damaged, or reaches for other files.
    """
    try:
        if path.endswith(".keras"):
            checks.keras_archive(path)
            found = _keras(path)
        elif path.endswith((".h5", ".hdf5")):
            checks.hdf5(path, path, Path(path).stat().st_size, whole=True)
            found = _keras(path)
        elif Path(path).name == "saved_model.pb":
            found = _saved_model(path)
        else:
            found = _graph(path)
    except EdgepipeError:
        raise
    except Exception as error:  # TensorFlow and Keras raise anything on a damaged file
        text = " ".join(str(error).split())
        if unknown := _UNKNOWN.search(text):
            raise checks.not_in_it(unknown[1], path) from None
        text = text[:200]
        raise IntegrityError(f"TensorFlow can't load it: {type(error).__name__}: {text}", path, _AGAIN) from None
    _check(found, path)
    return found


def _keras(path: str) -> Function:
    tf = tensorflow()
    import keras

    model = keras.models.load_model(path, compile=False, safe_mode=True)
    if not getattr(model, "inputs", None):
        raise UsageError("the model was never built: its inputs are not known", path, "call it once, then save it")
    inputs, outputs = _flat_names(model.inputs, "input"), _flat_names(model.outputs, "output")
    specs = [tf.TensorSpec(each.shape, each.dtype, name) for each, name in zip(model.inputs, inputs, strict=True)]

    structure = getattr(model, "_inputs_struct", None)  # a list or a dict where there are several

    def run(*args: Any) -> Any:
        given = tf.nest.pack_sequence_as(structure, args) if structure is not None else args[0]
        return model(given, training=False)

    return _frozen(tf.function(run).get_concrete_function(*specs), inputs, outputs, {"keras": keras.__version__})


def _saved_model(path: str) -> Function:
    tf = tensorflow()
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString(_bytes(path))
    if not proto.meta_graphs:
        raise IntegrityError("the SavedModel holds no graph", path, _AGAIN)
    for graph in proto.meta_graphs:
        checks.nodes(graph.graph_def, path)
    tags = list(proto.meta_graphs[0].meta_info_def.tags) or None
    loaded = tf.saved_model.load(str(Path(path).parent), tags=tags)
    known = dict(loaded.signatures)
    if not known:
        raise UsageError("the SavedModel has no signature", path, "save it with signatures=...")
    name = "serving_default" if "serving_default" in known else sorted(known)[0]
    chosen = known[name]
    specs = chosen.structured_input_signature[1]
    inputs, outputs = sorted(specs), sorted(chosen.structured_outputs)

    def run(*args: Any) -> Any:
        found = chosen(**dict(zip(inputs, args, strict=True)))
        return [found[each] for each in outputs]

    concrete = tf.function(run).get_concrete_function(
        *(tf.TensorSpec(specs[each].shape, specs[each].dtype, _flat(each)) for each in inputs)
    )
    told = {"signature": name, "tensorflow": proto.meta_graphs[0].meta_info_def.tensorflow_version}
    return _frozen(concrete, [_flat(each) for each in inputs], [_flat(each) for each in outputs], told)


def _graph(path: str) -> Function:
    tf = tensorflow()
    definition = tf.compat.v1.GraphDef()
    content = _bytes(path)
    try:
        definition.ParseFromString(content)
    except Exception:
        raise IntegrityError("not a frozen graph", path, _AGAIN) from None
    if not definition.node:
        raise IntegrityError("not a frozen graph: it holds no nodes", path, _AGAIN)
    checks.nodes(definition, path)
    if any(node.op in ("VariableV2", "VarHandleOp", "Variable") for node in definition.node):
        raise UsageError("the graph has variables without their values", path, "freeze it, or give the SavedModel")
    used = {re.sub(r"^\^|:\d+$", "", name) for node in definition.node for name in node.input}
    inputs = [node.name for node in definition.node if node.op == "Placeholder"]
    ends = [node.name for node in definition.node if node.name not in used and node.op not in _IDLE]
    if not inputs or not ends:
        raise UsageError("the graph has no placeholder or no result", path, "freeze it with its inputs")
    wrapped = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(definition, name=""), [])
    tensors = [tensor for end in ends for tensor in wrapped.graph.get_operation_by_name(end).outputs]
    pruned = wrapped.prune([wrapped.graph.get_tensor_by_name(f"{name}:0") for name in inputs], tensors)
    specs = [
        tf.TensorSpec(tensor.shape, tensor.dtype, _flat(name))
        for tensor, name in zip(pruned.inputs, inputs, strict=True)
    ]
    concrete = tf.function(pruned).get_concrete_function(*specs)
    names = [_flat(tensor.name.removesuffix(":0")) for tensor in tensors]
    return _frozen(concrete, [_flat(name) for name in inputs], names, {"producer": definition.versions.producer})


def _frozen(concrete: Any, inputs: list[str], outputs: list[str], producer: dict[str, Any]) -> Function:
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False)
    if len(outputs) != len(frozen.outputs):
        outputs = _numbered("output", len(frozen.outputs))
    return Function(frozen, inputs, outputs, producer)


def _check(found: Function, path: str) -> None:
    for tensor, name in zip((*found.call.inputs, *found.call.outputs), (*found.inputs, *found.outputs), strict=True):
        if tensor.dtype.name not in _NUMBERS:
            raise UsageError(
                f"{name} is of type {tensor.dtype.name}", path, "no board runtime takes it: change the model"
            )
        if tensor.shape.rank is None:
            raise UsageError(f"the rank of {name} is not known", path, "save the model with a shape for it")
    checks.nodes(found.call.graph.as_graph_def(), path)


def inspect(path: str) -> dict[str, Any]:
    """Inputs, outputs and counts, as `load` needs them."""
    import numpy as np

    found = function(path)
    constants = [op for op in found.call.graph.get_operations() if op.type == "Const"]
    arrays = [op.outputs[0] for op in constants if op.outputs[0].dtype.is_floating and op.outputs[0].shape.rank]
    _finite(constants, path)
    macs, reason = count_macs(found.call.graph)
    return {
        "inputs": specs(found.call.inputs, found.inputs),
        "outputs": specs(found.call.outputs, found.outputs),
        "parameters": int(sum(np.prod(array.shape.as_list()) for array in arrays)),
        "macs": macs,
        "reason": reason,
    }


def _finite(constants: list[Any], path: str) -> None:
    import numpy as np
    from tensorflow.python.framework import tensor_util

    for op in constants:
        if op.outputs[0].dtype.is_floating and op.outputs[0].shape.rank:
            values = tensor_util.MakeNdarray(op.get_attr("value"))
            if np.isnan(values.astype(np.float32)).any():
                raise IntegrityError(f"the weights hold NaN: {op.name[:80]}", path, "train or save it again")


def count_macs(graph: Any) -> tuple[int | None, str]:
    """Multiply-accumulates of one sample through convolutions and matrix products; or None and why."""
    total = 0
    for op in graph.get_operations():
        if op.type not in ("Conv2D", "Conv3D", "DepthwiseConv2dNative", "MatMul", "BatchMatMulV2"):
            continue
        out, second = op.outputs[0].shape, op.inputs[1].shape
        if out.rank is None or second.rank is None or None in out.as_list()[1:] or None in second.as_list()[1:]:
            return None, f"the shapes at {op.type} {op.name[:60]} are not known"
        sizes, weight = [out.as_list()[0] or 1, *out.as_list()[1:]], [second.as_list()[0] or 1, *second.as_list()[1:]]
        count = 1
        for size in sizes:
            count *= size
        if op.type.startswith("Conv"):  # weight [kernel..., in / groups, out]
            inner = weight[:-1]
        elif op.type == "DepthwiseConv2dNative":  # weight [height, width, in, multiplier]
            inner = weight[:2]
        else:
            flag = "transpose_b" if op.type == "MatMul" else "adj_y"
            inner = [weight[-1 if op.get_attr(flag) else -2]]
        for size in inner:
            count *= size
        total += count
    return (total, "") if total else (None, "no operation of it is one whose multiply-accumulates are counted")


def specs(tensors: Any, names: list[str]) -> list[dict[str, Any]]:
    """Tensors as `schema.TensorSpec` has them; -1 where a size is open."""
    return [
        {"name": name, "shape": [size or -1 for size in tensor.shape.as_list()], "dtype": tensor.dtype.name}
        for tensor, name in zip(tensors, names, strict=True)
    ]


def _flat_names(tensors: Any, word: str) -> list[str]:
    names = [_flat(str(getattr(tensor, "name", "") or "")) for tensor in tensors]
    return names if all(names) and len(set(names)) == len(names) else _numbered(word, len(names))


def _numbered(word: str, count: int) -> list[str]:
    return [word] if count == 1 else [f"{word}{index}" for index in range(count)]


def _flat(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "_", name).strip("._")[:64]


def _bytes(path: str) -> bytes:
    if not 0 < Path(path).stat().st_size < _LIMIT:
        raise IntegrityError("the file is empty or larger than 2 GiB", path, _AGAIN)
    return Path(path).read_bytes()
