"""OpenVINO IR: from an ONNX or TFLite file; the .xml carries the hash of its .bin, so that one hash covers both."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import Call, ExportOptions, Output
from edgepipe.codec import to_dict
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.formats import _samples
from edgepipe.formats.openvino import preflight
from edgepipe.schema import TensorSpec

if TYPE_CHECKING:
    from edgepipe.model import Model

SOURCES = ("onnx", "tflite", "tensorflow")
LIBRARIES = ("openvino",)
OPTIONS = ("batch", "dynamic")
FILES = ["model.xml", "model.bin"]
_END = "</net>"
_BETWEEN = re.compile(r">\s+<")  # of tags: XML has no bare < anywhere else
_TESTED = "use the tested version of openvino"


def export(model: Model, source: Path | None, folder: Path, options: ExportOptions, call: Call) -> Output:
    """Write ``model.xml`` and ``model.bin``, float32, from the ONNX or TFLite file ``source``, or take an IR.

    Raises:
        UsageError: a batch other than that of the user's own file.
        IntegrityError: the written files do not load.
    """
    facts = call(
        f"{__name__}:convert",
        {
            "source": str(source),
            "target": str(folder / FILES[0]),
            "batch": -1 if options.dynamic_batch else options.batch,
            "inputs": [to_dict(spec) for spec in options.freed(model.inputs)],
            "outputs": [to_dict(spec) for spec in model.outputs],
        },
    )
    inputs, outputs = ([TensorSpec(**spec) for spec in facts[side]] for side in ("inputs", "outputs"))
    return Output(FILES, inputs, outputs, model.preprocessing, ir_version=facts["ir_version"])


def convert(
    source: str, target: str, batch: int, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]
) -> dict[str, Any]:
    """Make both files, seal them and read them back (runs in the child)."""
    import openvino

    if source.endswith(".xml"):
        model = openvino.Core().read_model(source)
        if _fix(model, batch, inputs):
            openvino.save_model(model, target, compress_to_fp16=False)
        else:
            shutil.copyfile(source, target)
            shutil.copyfile(Path(source).with_suffix(".bin"), Path(target).with_suffix(".bin"))
    else:
        model = _of_graph(source, inputs, outputs) if source.endswith(".pb") else preflight.converted(source)
        if source.endswith(".tflite"):
            _name(model.inputs, inputs)
            _name(model.outputs, outputs)
        _fix(model, batch, inputs)
        openvino.save_model(model, target, compress_to_fp16=False)
    version = seal(target)
    loaded = openvino.Core().read_model(target)
    if source.endswith(".pb"):
        _prove(loaded, Path(source).parent)
    return {
        "ir_version": version,
        "inputs": _specs(inputs, loaded.inputs),
        "outputs": _specs(outputs, loaded.outputs),
    }


def _name(ports: Any, specs: list[dict[str, Any]]) -> None:
    """Give the ports the names that the interpreter knows them by: the frontend leaves off a number behind a colon."""
    for port, spec in zip(ports, specs, strict=True):
        name = spec["name"].partition(":")[0]
        if len(specs) > 1 and name not in {each.partition(":")[0] for each in port.get_names()}:
            raise IntegrityError(f"OpenVINO put the tensors in another order than the file, at {name}", name, _TESTED)
        port.get_tensor().add_names({spec["name"]})


def _of_graph(source: str, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> Any:
    """The model of a frozen graph, with its ports in order and under their own names."""
    import openvino

    model = preflight.converted(source)
    sides = (model.inputs, inputs), (model.outputs, outputs)
    ports, results = ([_port(ports, spec["name"]) for spec in specs] for ports, specs in sides)
    for found, specs in ((ports, inputs), (results, outputs)):
        for port, spec in zip(found, specs, strict=True):
            port.get_tensor().set_names({spec["name"]})
    return openvino.Model([port.get_node() for port in results], [port.get_node() for port in ports])


def _port(ports: Any, name: str) -> Any:
    return next(port for port in ports if f"{name}:0" in port.get_names())


def _prove(model: Any, folder: Path) -> None:
    """Hold the file against what the TensorFlow model made of the samples beside its frozen graph.

    Raises:
        IntegrityError: they differ.
    """
    import openvino

    given, wanted = _samples.load(folder)
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    made = compiled(given)
    if not _samples.close(wanted, [made[port] for port in compiled.outputs]):
        raise IntegrityError("the OpenVINO file does not compute what the model does", "openvino", _TESTED)


def seal(target: str) -> int:
    """Write the sha256 of the .bin into the .xml's ``rt_info``, which OpenVINO keeps; return the IR's version.

    The .xml loses its indentation, a sixth of its size: of a small int8 model it is the larger of the two files.

    Raises:
        IntegrityError: the .xml has no place for it, or OpenVINO does not find it there.
    """
    import openvino

    from edgepipe.cache import hash_file

    path = Path(target)
    digest = hash_file(path.with_suffix(".bin"))
    text = path.read_text(encoding="utf-8")
    entry = f'<edgepipe><bin_sha256 value="{digest}" /></edgepipe>'
    version = re.search(r'<net [^>]*version="(\d+)"', text)
    if not text.rstrip().endswith(_END) or not version:
        raise IntegrityError(
            "OpenVINO wrote an .xml of a kind unknown here", target, "use the tested version of openvino"
        )
    text = re.sub(r"\s*<edgepipe>.*?</edgepipe>", "", text, flags=re.DOTALL)
    head, inside, tail = text.rpartition("</rt_info>")
    if inside and not tail.replace(_END, "").strip():
        text = f"{head}\t{entry}\n\t{inside}{tail}"
    else:
        text = f"{text.rstrip().removesuffix(_END)}\t<rt_info>\n\t\t{entry}\n\t</rt_info>\n{_END}\n"
    path.write_text(_BETWEEN.sub("><", text), encoding="utf-8")
    found = openvino.Core().read_model(target).get_rt_info(["edgepipe", "bin_sha256"])
    if (found.value if hasattr(found, "value") else found) != digest:
        raise IntegrityError(
            "the hash of the .bin did not stay in the .xml", target, "use the tested version of openvino"
        )
    return int(version.group(1))


def _fix(model: Any, batch: int, inputs: list[dict[str, Any]]) -> bool:
    """Give free sizes of inputs what ``batch`` and the specs say of them; whether there were any.

    Raises:
        UsageError: an input has another fixed batch.
    """
    _check_batch(model, batch)
    shapes = {}
    for port, spec in zip(model.inputs, inputs, strict=True):
        shape = port.get_partial_shape()
        sizes = [batch, *spec["shape"][1:]] if len(shape) else []
        free = [axis for axis, size in enumerate(sizes) if size > 0 and shape[axis].is_dynamic]
        for axis in free:
            shape[axis] = sizes[axis]
        if free:
            shapes[port] = shape
    if shapes:
        model.reshape(shapes)
    return bool(shapes)


def _check_batch(model: Any, batch: int) -> None:
    shape = model.inputs[0].get_partial_shape() if model.inputs else []
    size = shape[0] if len(shape) else None
    if size is not None and batch > 0 and size.is_static and size.get_length() != batch:
        fix = f"use --batch {size.get_length()}"
        raise UsageError(f"the file has a fixed batch of {size.get_length()}", f"batch {batch}", fix)


def _specs(specs: list[dict[str, Any]], ports: Any) -> list[dict[str, Any]]:
    shapes = [[size.get_length() if size.is_static else -1 for size in port.get_partial_shape()] for port in ports]
    return [{**spec, "shape": shape} for spec, shape in zip(specs, shapes, strict=True)]
