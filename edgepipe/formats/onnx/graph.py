"""What the quantisation steps share: the optimised graph of a file, its layers, and how a file is finished.

A layer is a Conv, ConvTranspose, Gemm or MatMul node with constant weights, quantised or kept float as a whole. Layers
go by the node's name in the graph that ONNX Runtime's basic optimiser makes of the file; the same file always gives the
same names.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    import numpy as np

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MICROSOFT = "com.microsoft"


def session(model: Any, threads: int = 2, without: tuple[str, ...] = (), **settings: Any) -> Any:
    """An InferenceSession on the CPU of a path or of a ModelProto, ``without`` some of the runtime's rewrites.

    Raises:
        IntegrityError: ONNX Runtime can't load it (an operator it does not know, a contradiction in the graph).
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions, with the same text
    options.intra_op_num_threads = threads
    for name, value in settings.items():
        setattr(options, name, value)
    given = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    try:
        providers = ["CPUExecutionProvider"]
        return onnxruntime.InferenceSession(given, options, providers=providers, disabled_optimizers=list(without))
    except Exception as error:  # the binding has a class of its own for each status code
        why = " ".join(re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error)).split())[:300]
        where = Path(model).name if isinstance(model, str) else "the quantised file"
        raise IntegrityError(f"ONNX Runtime can't load the model: {why}", where, "see the reason above") from None


def optimised(path: str, without: tuple[str, ...] = ()) -> Any:
    """The ModelProto of a float file after the runtime's basic rewrites; every node has a name of its own.

    Constants are folded, batch normalisations are part of their convolutions, MatMul and Add are Gemm (unless
    ``without`` says otherwise): what is quantised is what will run.

    Raises:
        IntegrityError: a weight is NaN or infinite, or the file does not load.
    """
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="edgepipe-") as scratch:
        target = str(Path(scratch) / "optimised.onnx")
        level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        session(path, without=without, graph_optimization_level=level, optimized_model_filepath=target)
        model = onnx.load(target)
    used = {node.domain for node in model.graph.node}
    for entry in [entry for entry in model.opset_import if entry.domain not in ("", "ai.onnx", *used)]:
        model.opset_import.remove(entry)  # the optimiser lists all it knows
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.name or node.op_type}_{index}"
        taken.add(node.name)
    _check_finite(model, path)
    _plain_gemms(model)
    return model


def _plain_gemms(model: Any) -> None:
    """Give each Gemm with a constant weight no alpha and no beta, and a vector or nothing as its constant bias.

    ONNX Runtime's quantiser drops beta, and fails on a bias that is a scalar, a row or a matrix.
    """
    from onnx import helper

    known = constants(model)
    for node in [node for node in model.graph.node if node.op_type == "Gemm" and weight_of(node, known) is not None]:
        alpha, beta = (attribute(node, name, 1.0) for name in ("alpha", "beta"))
        bias = known.get(node.input[2]) if len(node.input) > 2 else None  # noqa: PLR2004
        width = known[node.input[1]].dims[channel_axis(node, 2)]
        if alpha != 1:
            node.input[1] = _constant(model, f"{node.name}_weight", array(known[node.input[1]]) * alpha)
        if bias is not None and (beta != 1 or list(bias.dims) != [width]):
            values, beta = array(bias) * beta, 1.0
            if values.size in (1, width):
                node.input[2] = _constant(model, f"{node.name}_bias", values.reshape(-1).repeat(width // values.size))
            else:
                product, result = f"{node.name}_product", node.output[0]
                node.output[0] = product
                del node.input[2]
                rest = _constant(model, f"{node.name}_bias", values)
                add = helper.make_node("Add", [product, rest], [result], f"{node.name}_add")
                model.graph.node.insert(list(model.graph.node).index(node) + 1, add)
        for name in ("alpha", "beta"):
            for item in [item for item in node.attribute if item.name == name and (name == "alpha" or beta == 1)]:
                node.attribute.remove(item)
    remove_unused(model)


def _constant(model: Any, name: str, values: Any) -> str:
    from onnx import numpy_helper

    model.graph.initializer.append(numpy_helper.from_array(values.astype("float32"), name))
    return name


def _check_finite(model: Any, path: str) -> None:
    import numpy as np
    from onnx import TensorProto

    for tensor in model.graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            if np.isfinite(array(tensor)).all():
                continue
            what = f"the weights hold NaN or infinity: tensor {tensor.name[:120]}"
            raise IntegrityError(what, Path(path).name, "train or export the model again")


def array(tensor: Any) -> np.ndarray[Any, Any]:
    """The values of an initialiser."""
    from onnx import numpy_helper

    values: np.ndarray[Any, Any] = numpy_helper.to_array(tensor)
    return values


def constants(model: Any) -> dict[str, Any]:
    """Initialisers by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def attribute(node: Any, name: str, default: Any) -> Any:
    """The value of a node's attribute, or ``default``."""
    from onnx import helper

    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def weight_of(node: Any, known: dict[str, Any]) -> Any:
    """The constant weight of a layer with the layer's input beside it: the second input, a float tensor; else None."""
    from onnx import TensorProto

    tensor = known.get(node.input[1]) if node.op_type in LAYERS and len(node.input) > 1 else None
    return tensor if tensor is not None and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1 else None


def channel_axis(node: Any, rank: int) -> int:
    """The axis of a layer's weight that runs over its output channels."""
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": rank - 1}[node.op_type]


def layers(path: str) -> list[dict[str, Any]]:
    """The quantisable layers of a float file in graph order (runs in the child).

    Each is ``{"name": what `keep` takes, "op": operator, "weights": number of weights without the bias}``.
    """
    model = optimised(path)
    known = constants(model)
    weights = [(node, weight_of(node, known)) for node in model.graph.node]
    return [{"name": node.name, "op": node.op_type, "weights": count(x)} for node, x in weights if x is not None]


def count(tensor: Any) -> int:
    """Number of values of an initialiser."""
    total = 1
    for size in tensor.dims:
        total *= int(size)
    return total


def opset(model: Any) -> int:
    """The version of the default operator set that the model asks for."""
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))


def raise_opset(model: Any, least: int, limit: int | None, why: str) -> Any:
    """The same model with at least opset ``least``.

    Raises:
        UsageError: that is beyond ``limit``, the highest opset the runtime reads, or there is no way up.
    """
    import onnx

    if opset(model) >= least:
        return model
    if limit and limit < least:
        raise UsageError(f"{why} needs opset {least}; the runtime reads up to {limit}", "opset", "use another recipe")
    try:
        raised = onnx.version_converter.convert_version(model, least)
    except Exception as error:  # native code that raises RuntimeError for an operator it can't bring up
        text = " ".join(str(error).split())[:200]
        raise UsageError(f"{why} needs opset {least}, and the model can't be brought there: {text}", "opset") from None
    raised.ir_version = max(raised.ir_version, model.ir_version)
    return raised


def add_domain(model: Any) -> None:
    """Say that the model uses ONNX Runtime's own operators."""
    from onnx import helper

    if all(entry.domain != MICROSOFT for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))


def remove_unused(model: Any) -> None:
    """Drop initialisers that no node reads, in the graph or in a graph inside one of its nodes."""
    used = set(_read(model.graph)) | {item.name for item in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _read(graph: Any) -> Any:
    for node in graph.node:
        yield from node.input
        for item in node.attribute:
            for inner in (item.g, *item.graphs):
                yield from _read(inner)
                yield from (output.name for output in inner.output)


def operators(path: str) -> Counter[str]:
    """How often each operator is in a file."""
    import onnx

    return Counter(node.op_type for node in onnx.load(path).graph.node)


def finish(model: Any, target: str, note: str) -> dict[str, Any]:
    """Write the file without metadata, prove that it is sound and loads, and say its versions."""
    import onnx
    from onnxruntime.quantization.onnx_model import ONNXModel

    from edgepipe.formats.onnx.export import strip

    strip(model)
    del model.graph.value_info[:]
    ONNXModel(model).topological_sort()  # the runtime takes any order, the standard does not
    onnx.checker.check_model(model)
    onnx.save(model, target)
    session(target)
    return {"opset": opset(model), "ir_version": int(model.ir_version), "note": note}


def unchanged(source: str, target: str, note: str) -> dict[str, Any]:
    """The file as it is, where a step finds nothing to do; ``note`` says why."""
    import onnx

    return finish(onnx.load(source), target, f"no effect: {note}")
