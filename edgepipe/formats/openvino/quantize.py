"""Post-training quantisation of OpenVINO files with NNCF."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import Call, ExportOptions, Output
from edgepipe.errors import UsageError
from edgepipe.formats import _quantisation as shared

if TYPE_CHECKING:
    from edgepipe.schema import Artifact

STEPS = {
    "fp16": "weights stored as float16; what is computed in float16 is the CPU's choice",
    "dynamic": "int8 weights; activations stay float, or are quantised as they come where the CPU plug-in can",
    "int8": "int8 weights and int8 activations calibrated on data",
    "mixed": shared.MIXED,
    "int8w": "int8 weights alone, one scale for each channel; needs no data",
    "int4": "int4 weights of matrix products in groups, int8 for the other layers; needs no data",
}
DEFAULTS = shared.DEFAULTS
CHOICES = shared.CHOICES
LIMITS = shared.LIMITS
NEEDS_DATA = shared.NEEDS_DATA
LIBRARIES = ("openvino", "nncf")
OPTIONS = ("reduce_range",)
_SMALLEST_GROUP = 8  # with fewer weights to a 16-bit scale, int8 is as small
_STATIC = "edgepipe.formats.openvino.static"


def quantize(
    source: Artifact,
    step: str,
    params: dict[str, Any],
    calibration: Path | None,
    folder: Path,
    options: ExportOptions,
    call: Call,
) -> Output:
    """Quantise ``source`` by ``step`` into ``folder``.

    ``calibration`` is an .npz of one array for each input, by the input's name, samples first. ``keep`` in ``params``
    names layers that stay in float.

    Raises:
        UsageError: what OpenVINO and NNCF can't do, with what they can.
        IntegrityError: the calibration data is not finite.
    """
    names = [ref.name for ref in source.files]
    arguments: dict[str, Any] = {"source": source.path, "target": str(folder / names[0])}
    if step in NEEDS_DATA:
        _check(params)
        chosen = {key: params[key] for key in ("method", "percentile", "weights", "activations", "bias")}
        arguments |= {"calibration": str(calibration), "names": [spec.name for spec in source.inputs], "params": chosen}
        arguments |= {"reduce_range": options.reduce_range, "keep": params.get("keep", [])}
    elif step == "int8w":
        if params["group"]:
            fix = "write int8w, or int4 for groups"
            raise UsageError("OpenVINO's int8 weights have one scale for each channel, not groups", "int8w", fix)
    elif step == "int4":
        if params["group"] < _SMALLEST_GROUP:
            what = f"int4 in groups of {params['group']} is no smaller than int8: each group has a scale of 16 bits"
            raise UsageError(
                what, f"int4:group={params['group']}", f"use groups of {_SMALLEST_GROUP} or more, or int8w"
            )
        arguments["group"] = params["group"]
    function = f"{_STATIC}:int8" if step in NEEDS_DATA else f"{__name__}:{step}"
    facts = call(function, arguments)
    return Output(names, source.inputs, source.outputs, source.preprocessing, None, facts["ir_version"], facts["note"])


def _check(params: dict[str, Any]) -> None:
    if params["scheme"] != "w8a8":
        fix = "use w8a8, or w8a16 with onnx or tflite"
        raise UsageError("OpenVINO's CPU plug-in has no kernels for 16-bit activations", "int8:w8a16", fix)


def layers(path: str) -> list[dict[str, Any]]:
    """The layers that int8 quantises, in the order of the graph (runs in the child): name, op, count of weights."""
    from edgepipe.formats.openvino import static

    return static.layers(path)


def fp16(source: str, target: str) -> dict[str, Any]:
    """Store constants as float16 (runs in the child)."""
    import openvino

    model = openvino.Core().read_model(source)
    return write(model, target, "", compress=True)


def dynamic(source: str, target: str) -> dict[str, Any]:
    """Compress weights to int8. NNCF does this for matrix products, embeddings and convolutions."""
    return _weights(source, target, "INT8_SYM", "; activations as the CPU plug-in chooses (float on most)")


def int8w(source: str, target: str) -> dict[str, Any]:
    """Compress weights to int8, one scale for each channel."""
    return _weights(source, target, "INT8_SYM", "; computed in float: it saves size, not time")


def int4(source: str, target: str, group: int) -> dict[str, Any]:
    """Compress weights of matrix products to int4 in groups; NNCF stores those of convolutions as int8."""
    return _weights(source, target, "INT4_SYM", "; computed in float: it saves size, not time", group_size=group)


def _weights(source: str, target: str, mode: str, said: str, **more: Any) -> dict[str, Any]:
    import openvino

    from edgepipe.formats.openvino import graph
    from edgepipe.formats.openvino.tool import load_nncf

    nncf = load_nncf()
    model = openvino.Core().read_model(source)
    graph.check_weights(model, source)
    before = _bytes_of(model)
    if mode == "INT4_SYM":
        # Where a group does not divide a layer's inputs, the largest power of two below it that does, else no groups.
        fallback = nncf.AdvancedCompressionParameters(
            group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST, min_adjusted_group_size=_SMALLEST_GROUP
        )
        more |= {"all_layers": True, "backup_mode": nncf.BackupMode.INT8_SYM, "advanced_parameters": fallback}
    model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode[mode], **more)
    after = _bytes_of(model)
    small = {kind: sum(after[k] - before[k] for k in (f"i{kind}", f"u{kind}")) for kind in (8, 4)}
    if not any(small.values()):
        return copy(source, target, "no effect: no weight was large enough to compress")
    groups = _groups(model)
    counts = [f"{count:,} weights as int4 {words}" for words, count in sorted(groups.items())]
    counts += [f"{small[8]:,} as int8 with one scale for each channel"] if small[8] > 0 else []
    if mode == "INT4_SYM" and not groups:
        counts.insert(0, "no effect beyond int8w: no matrix product takes int4")
    return write(model, target, ", ".join(counts) + said)


def _groups(model: Any) -> Counter[str]:
    """How many int4 weights share their scales in which way."""
    import math

    found: Counter[str] = Counter()
    for op in model.get_ops():
        if op.get_type_name() == "Constant" and op.get_element_type().to_string() in ("i4", "u4"):
            shape = list(op.get_output_shape(0))
            grouped = len(shape) == 3  # noqa: PLR2004  outputs, groups, size of a group
            found[f"in groups of {shape[-1]}" if grouped else "with one scale for each channel"] += math.prod(shape)
    return found


def _bytes_of(model: Any) -> Counter[str]:
    """Elements of the constants by element type."""
    import math

    sizes: Counter[str] = Counter()
    for op in model.get_ops():
        if op.get_type_name() == "Constant":
            sizes[op.get_element_type().to_string()] += math.prod(op.get_output_shape(0))
    return sizes


def copy(source: str, target: str, note: str) -> dict[str, Any]:
    """Leave both files as they are: there is nothing to do."""
    from edgepipe.formats.openvino.export import seal

    for suffix in (".xml", ".bin"):
        shutil.copyfile(Path(source).with_suffix(suffix), Path(target).with_suffix(suffix))
    return {"ir_version": seal(target), "note": note}


def write(model: Any, target: str, note: str, *, compress: bool = False) -> dict[str, Any]:
    """Save, seal, and prove that the CPU plug-in compiles the file."""
    import openvino

    from edgepipe.formats.openvino.export import seal

    openvino.save_model(model, target, compress_to_fp16=compress)
    version = seal(target)
    openvino.Core().compile_model(target, "CPU")
    return {"ir_version": version, "note": note}
