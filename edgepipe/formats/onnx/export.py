"""ONNX: one file with named inputs and outputs, within the opset and IR version a runtime can read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import Call, ExportOptions, Output
from edgepipe.codec import to_dict
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.formats.onnx import apart, from_tensorflow
from edgepipe.schema import TensorSpec

if TYPE_CHECKING:
    from edgepipe.model import Model

SOURCES = ("torch", "tensorflow")
WHY_NOT = {
    "tflite": "TFLite fuses activations and scales into operators that ONNX has no exact counterpart of",
    "openvino": "OpenVINO's operators are its own, and it writes no other format",
}
LIBRARIES = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "tf2onnx")
OPTIONS = ("batch", "dynamic", "opset", "ir_version")
FILE = "model.onnx"

# ONNX Runtime 1.19, the oldest one for supported boards, reads up to opset 21 and IR 10 (its release notes).
OPSET, IR_VERSION = 20, 10
_EXPORTER_OPSET = 18  # the exporter's lowest: it keeps to this without a word when asked for less
_OLDEST_IR = 4  # below it, every weight must be an input too
_SAME = 1e-4  # largest difference of outputs, relative, that a conversion between opsets may cause


def export(model: Model, source: Path | None, folder: Path, options: ExportOptions, call: Call) -> Output:
    """Write ``model.onnx`` from the traced program ``source``, or from the ONNX file the model is.

    Of a network with adapters that were not merged (``model.learnt``), all other weights go into a second file.

    Raises:
        UsageError: a batch the file can't have, or an opset or IR version it can't be brought down to.
        IntegrityError: the file does not load, or conversion changed what it computes.
    """
    if options.ir_version and options.ir_version < _OLDEST_IR:
        what = f"no file for IR version {options.ir_version} can be made"
        raise UsageError(what, "ir_version", f"use {_OLDEST_IR} or more")
    facts = call(
        f"{__name__}:convert",
        {
            "source": str(source),
            "target": str(folder / FILE),
            "inputs": [to_dict(spec) for spec in model.inputs],
            "outputs": [to_dict(spec) for spec in model.outputs],
            "batch": -1 if options.dynamic_batch else options.batch,
            "opset": options.opset,
            "ir_version": options.ir_version,
            "own": apart.digests(model.module, model.learnt) if model.learnt else None,
        },
    )
    inputs, outputs = ([TensorSpec(**spec) for spec in facts[side]] for side in ("inputs", "outputs"))
    files = [FILE, apart.BASE] if model.learnt else [FILE]
    return Output(files, inputs, outputs, model.preprocessing, facts["opset"], facts["ir_version"])


def convert(
    source: str,
    target: str,
    inputs: list[dict[str, Any]],
    outputs: list[dict[str, Any]],
    batch: int,
    opset: int | None,
    ir_version: int | None,
    own: list[str] | None = None,
) -> dict[str, Any]:
    """Make the file and read back what it became (runs in the child). With ``own``, weights go into `apart.BASE`."""
    import onnx

    names = [spec["name"] for spec in inputs], [spec["name"] for spec in outputs]
    wanted = min(opset or OPSET, OPSET)
    if source.endswith(".onnx"):
        model = _adopt(source, batch, [spec["shape"] for spec in inputs])
        wanted = opset or 0
    elif source.endswith(".pb"):
        model = from_tensorflow.convert(source, *names)
    else:
        model = _from_program(source, names, max(wanted, _EXPORTER_OPSET))
    strip(model)
    if wanted and _opset(model) > wanted:
        model = _lower(model, wanted)
    limit = ir_version or (max(IR_VERSION, model.ir_version) if source.endswith(".onnx") else IR_VERSION)
    model.ir_version = min(model.ir_version, limit)
    onnx.checker.check_model(model, full_check=True)
    if own is not None:
        apart.split(model, Path(target).parent, own)
    onnx.save(model, target)
    session = _session(target)
    if source.endswith(".pb"):
        from_tensorflow.prove(session, source)
    return {
        "opset": _opset(onnx.load(target)),  # what the file says, not what was asked for
        "ir_version": model.ir_version,
        "inputs": _specs(inputs, [value.shape for value in session.get_inputs()]),
        "outputs": _specs(outputs, [value.shape for value in session.get_outputs()]),
    }


def _from_program(source: str, names: tuple[list[str], list[str]], opset: int) -> Any:
    import torch

    program = torch.onnx.export(
        torch.export.load(source),
        (),
        dynamo=True,
        external_data=False,
        opset_version=opset,
        input_names=names[0],
        output_names=names[1],
        verbose=False,
    )
    assert program is not None
    _part_names(program.model.graph, {*names[0], *names[1]})
    return program.model_proto


def _part_names(graph: Any, names: set[str]) -> None:
    """Rename values inside that are called as an input or output is: the exporter names them after operators."""
    ends = {id(value) for value in (*graph.inputs, *graph.outputs)}
    for node in graph:
        for value in node.outputs:
            if value.name in names and id(value) not in ends:
                value.name = f"{value.name}_inside"


def _adopt(source: str, batch: int, shapes: list[list[int]]) -> Any:
    """The user's own file, its external data taken in, its free batch set, and what ``shapes`` says of free sizes.

    Raises:
        UsageError: the batch of the file is fixed at another size.
        IntegrityError: not a sound file, or shapes in it contradict each other.
    """
    import onnx

    from edgepipe.formats._inputs import fix_sizes
    from edgepipe.formats.onnx.load import read

    model, _ = read(source)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    told: list[tuple[Any, int]] = []
    for value, shape in zip(inputs, shapes, strict=True):
        dims = value.type.tensor_type.shape.dim
        has = dims[0].dim_value if dims else 0
        if has and batch not in (-1, has) and value is inputs[0]:  # of others it may be no batch
            fix = f"use --batch {has}, or export the model with a dynamic batch"
            raise UsageError(f"the file has a fixed batch of {has}", f"batch {batch}", fix)
        told += zip(dims, [batch, *shape[1:]][: len(shape)], strict=True)
    fix_sizes(model.graph, told)
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.shape_inference.InferenceError as error:
        what = f"the shapes in the file contradict each other: {' '.join(str(error).split())[-200:]}"
        raise IntegrityError(what, Path(source).name, "export the model again, or mend the shape it names") from None
    return model


def strip(model: Any) -> None:
    """Drop doc strings and metadata: the exporter's hold stack traces with paths of this machine, a fifth of a file."""
    for item in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.functions):
        item.doc_string = ""
        del item.metadata_props[:]
    for item in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]


def _lower(model: Any, wanted: int) -> Any:
    """Convert to an older opset and prove on random inputs that the outputs stay the same.

    Raises:
        UsageError: there is no way down to ``wanted`` for this model.
        IntegrityError: there is one, but it changes the outputs.
    """
    import onnx

    fix = "use a newer runtime on the board, or a recipe or format without this operation"
    _drop_defaults(model)
    try:
        lower = onnx.version_converter.convert_version(model, wanted)
        onnx.checker.check_model(lower, full_check=True)
        difference = _difference(model, lower)
    except (
        Exception
    ) as error:  # the converter is native code that raises RuntimeError for any operator it can't bring down
        text = " ".join(str(error).rpartition("Assertion `false` failed: ")[2].split())[:200]
        raise UsageError(f"the model can't be brought down to opset {wanted}: {text}", f"opset {wanted}", fix) from None
    if not difference <= _SAME:
        what = f"bringing the model down to opset {wanted} changes its outputs by {difference:.2g}"
        raise IntegrityError(what, f"opset {wanted}", fix)
    return lower


def _drop_defaults(model: Any) -> None:
    """Remove an attribute of the Reduce operators that says the default and has no place in opset 17 and below."""
    for node in model.graph.node:
        kept = [item for item in node.attribute if item.name != "noop_with_empty_axes" or item.i]
        if len(kept) < len(node.attribute):
            del node.attribute[:]
            node.attribute.extend(kept)


def _difference(one: Any, other: Any) -> float:
    """The largest difference of the two models' outputs on the same random inputs, relative to the largest output."""
    import numpy as np

    first, second = _session(one.SerializeToString()), _session(other.SerializeToString())
    random = np.random.default_rng(0)
    feeds = {}
    for value in first.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in value.shape]
        kind = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}[value.type]
        feeds[value.name] = random.normal(size=shape).astype(kind)
    worst = 0.0
    for a, b in zip(first.run(None, feeds), second.run(None, feeds), strict=True):
        worst = max(worst, float(np.abs(a - b).max()) / max(float(np.abs(a).max()), 1e-9))
    return worst


def _session(model: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _opset(model: Any) -> int:
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))


def _specs(specs: list[dict[str, Any]], shapes: list[list[Any]]) -> list[dict[str, Any]]:
    fixed = [[size if isinstance(size, int) else -1 for size in shape] for shape in shapes]
    return [{**spec, "shape": shape} for spec, shape in zip(specs, fixed, strict=True)]
