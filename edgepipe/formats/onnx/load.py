"""ONNX files as models: read in a child process, external data only from flat files beside the model."""

from __future__ import annotations

import math
import re
import stat
from pathlib import Path
from typing import Any

from edgepipe import isolate
from edgepipe.cache import hash_file
from edgepipe.codec import from_dict
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.model import Card, Loaded
from edgepipe.schema import TensorSpec

EXTENSIONS = (".onnx",)
_FLAT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}\Z")
_WEIGHT_TYPES = {1, 2, 3, 10, 11, 16, 21, 22}  # float, (u)int8, float16, double, bfloat16, (u)int4 of TensorProto


def load(path: Path, card: Card) -> Loaded:
    """Inspect the file ``path``; names, shapes and types are the file's own, layouts the card's.

    Raises:
        IntegrityError: not a sound ONNX model, NaN in a weight, or external data outside its folder.
    """
    facts = isolate.read(f"{__name__}:inspect", path)
    inputs = [from_dict(TensorSpec, spec) for spec in facts["inputs"]]
    if inputs:
        inputs[0] = TensorSpec(inputs[0].name, inputs[0].shape, inputs[0].dtype, card.preprocessing.layout)
    outputs = [from_dict(TensorSpec, spec) for spec in facts["outputs"]]
    digest = hash_file(path)
    parts = [digest, *(hash_file(path.parent / name) for name in facts["external"])]
    identity = "-".join([*parts, repr(card.preprocessing)])
    return Loaded("onnx", inputs, outputs, digest, identity, None, facts["parameters"], facts["macs"], facts["reason"])


def companions(path: Path) -> list[str]:
    """Names of the files beside ``path`` that hold its weights; none for most."""
    if b"location" not in path.read_bytes():  # the key that external data are found by
        return []
    return sorted(isolate.read(f"{__name__}:inspect", path)["external"])


def read(path: str) -> tuple[Any, list[str]]:
    """Read and check an ONNX file with its external data; return the model and the names of the external files.

    Raises:
        IntegrityError: see `load`.
    """
    import onnx
    from onnx.external_data_helper import load_external_data_for_model

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises several kinds
        raise _damaged(path, str(error)) from None
    if not model.graph.node or not model.opset_import:
        raise _damaged(path, "it holds no graph")
    newest = onnx.defs.onnx_opset_version()
    if opset(model) > newest:
        what = f"the file asks for opset {opset(model)}, and the newest there is here is {newest}"
        raise UsageError(what, path, "export it again with an older opset, or update onnx")
    external = _external(model, Path(path).parent)
    try:
        if external:
            load_external_data_for_model(model, str(Path(path).parent))
        _free_sizes(model)
        _name_output_shapes(model)
        onnx.checker.check_model(model)
    except Exception as error:
        raise _damaged(path, " ".join(str(error).split())[:200]) from None
    _check_finite(model, path)
    return model, external


def inspect(path: str) -> dict[str, Any]:
    """What is in the file (runs in the child): inputs, outputs, counts, versions, names of external files."""
    import onnx

    model, external = read(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [_spec(value) for value in model.graph.input if value.name not in weights]
    held = [item.t for node in model.graph.node if node.op_type == "Constant" for item in node.attribute]
    tensors = [*model.graph.initializer, *held]  # some writers keep weights as constants
    stored = [tensor for tensor in tensors if tensor.dims and tensor.data_type in _WEIGHT_TYPES]
    parameters = sum(math.prod(tensor.dims) for tensor in stored)
    for value in model.graph.input:  # one sample, for counting
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].dim_value:
            dims[0].dim_value = 1
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        macs, reason = count_macs(inferred.graph)
    except Exception as error:
        macs, reason = None, f"shapes can't be inferred: {str(error)[:100]}"
    return {
        "inputs": inputs,
        "outputs": [_spec(value) for value in model.graph.output],
        "parameters": parameters,
        "macs": macs,
        "reason": reason,
        "opset": opset(model),
        "ir_version": model.ir_version,
        "external": external,
    }


def opset(model: Any) -> int:
    """The version of the default operator set that the file asks for."""
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))


def count_macs(graph: Any) -> tuple[int | None, str]:
    """Multiply-accumulates of one run of Conv, Gemm and MatMul nodes, from inferred shapes; or None and why."""
    shapes: dict[str, list[int]] = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    total = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        first, second, out = shapes.get(node.input[0]), shapes.get(node.input[1]), shapes.get(node.output[0])
        if not first or not second or not out or not all((*first, *second, *out)):
            return None, f"the shapes at {node.op_type} {node.name[:60]} are not known"
        total += _node_macs(node, first, second, out)
    return (total, "") if total else (None, "no operation of it is one whose multiply-accumulates are counted")


def _node_macs(node: Any, first: list[int], second: list[int], out: list[int]) -> int:
    if node.op_type == "Conv":  # weight [out, in / groups, kernel...]
        return math.prod(out) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":  # weight [in, out / groups, kernel...]
        return math.prod(first) * math.prod(second[1:])
    flipped = node.op_type == "Gemm" and any(item.name == "transA" and item.i for item in node.attribute)
    return math.prod(out) * (first[0] if flipped else first[-1])


def _external(model: Any, folder: Path) -> list[str]:
    """Names of external data files, each proven to be a plain file in ``folder`` (CVE-2022-25882, CVE-2024-27318)."""
    names = set()
    for tensor in _tensors(model.graph):
        for entry in tensor.external_data if tensor.data_location == 1 else ():
            if entry.key == "location":
                names.add(entry.value)
    for name in names:
        try:
            plain = bool(_FLAT.match(name)) and stat.S_ISREG((folder / name).lstat().st_mode)
        except OSError:
            plain = False
        if not plain:
            fix = "put the data file beside the model, under a flat name, not as a link"
            raise IntegrityError(f"the model's data is not a plain file in its folder: {name[:80]!r}", str(folder), fix)
    return sorted(names)


def _free_sizes(model: Any) -> None:
    """Sizes of -1, as some writers say it, become what the standard has for a free size: nothing."""
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.Clear()


def _name_output_shapes(model: Any) -> None:
    """Give outputs without a shape the one that follows from the graph: runtimes ask for none, the standard does."""
    import onnx

    bare = [value for value in model.graph.output if not value.type.tensor_type.HasField("shape")]
    if not any(value.type.HasField("tensor_type") for value in bare):
        return
    inferred = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.output}
    for value in bare:
        if inferred[value.name].type.tensor_type.HasField("shape"):
            value.type.CopyFrom(inferred[value.name].type)


def _tensors(graph: Any) -> Any:
    """All tensors of a graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from [attribute.t, *attribute.tensors]
            for inner in [attribute.g, *attribute.graphs]:
                if inner.node or inner.initializer:
                    yield from _tensors(inner)


def _check_finite(model: Any, path: str) -> None:
    import numpy as np
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        if tensor.data_type in (1, 10, 11) and not np.isfinite(numpy_helper.to_array(tensor)).all():
            raise IntegrityError(
                f"the weights hold NaN or infinity: {tensor.name[:80]}", path, "train or export it again"
            )


def _spec(value: Any) -> dict[str, Any]:
    from onnx import helper

    tensor = value.type.tensor_type
    shape = [dim.dim_value or -1 for dim in tensor.shape.dim]
    return {"name": value.name, "shape": shape, "dtype": str(helper.tensor_dtype_to_np_dtype(tensor.elem_type))}


def _damaged(path: str, why: str) -> IntegrityError:
    return IntegrityError(f"not a sound ONNX model: {why[:200]}", path, "get the file again, or export it again")
