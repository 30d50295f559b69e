"""What is put in front of a file's first input, the same in every format: its preprocessing, another layout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgepipe.errors import UsageError
from edgepipe.schema import Preprocessing

if TYPE_CHECKING:
    from edgepipe.artifact import ExportOptions, Output
    from edgepipe.schema import Artifact


@dataclass(frozen=True)
class Front:
    """``input * scale + shift`` on axis ``axis``, reversed there if ``flip``, then transposed by ``order``.

    ``scale``, ``shift`` and ``order`` are empty where nothing is to be done; ``axis`` is that of the channels in the
    new layout, -1 without any. ``shape`` is the new one of the input ``name``.
    """

    name: str
    shape: list[int]
    scale: list[float]
    shift: list[float]
    axis: int
    flip: bool
    order: list[int]

    def across(self, values: list[float]) -> Any:
        """Numbers for each channel, as a float32 array that is broadcast over the new layout."""
        import numpy as np

        shape = [1] * len(self.shape)
        if len(values) > 1:
            shape[self.axis] = len(values)
        return np.asarray(values, np.float32).reshape(shape)


def wanted(pre: Preprocessing, options: ExportOptions) -> bool:
    """Whether a file with this preprocessing has to be changed to be what the options ask for."""
    return folds(pre, options) or bool(options.layout and options.layout != pre.layout)


def folds(pre: Preprocessing, options: ExportOptions) -> bool:
    """Whether there is something to fold in, and it is asked for."""
    return options.fold and bool(pre.scale != 1.0 or pre.mean or pre.std or pre.color == "BGR")


def check(pre: Preprocessing, dtype: str, options: ExportOptions, where: str) -> None:
    """Find out before any work whether the options can be met.

    Raises:
        UsageError: the layout is not known or is not a permutation of it, or there is nothing that can be folded.
    """
    if options.layout and not pre.layout:
        fix = "say it: --preprocessing layout=NCHW"
        raise UsageError("the layout that the model has is not known", f"{where}, --layout {options.layout}", fix)
    if options.layout and sorted(options.layout) != sorted(pre.layout):
        fix = f"use the letters of {pre.layout}, each once"
        raise UsageError(f"{options.layout} is no order of {pre.layout}", f"{where}, --layout", fix)
    if not options.fold:
        return
    fold = f"{where}, --fold-preprocessing"
    if not folds(pre, options):
        fix = "leave it out, or say the preprocessing: --preprocessing 'scale=1/255 mean=0.5 std=0.2'"
        raise UsageError("there is no preprocessing to fold in", fold, fix)
    if pre.dtype != "float32" or dtype != "float32":
        raise UsageError(f"only into float32 inputs; this one is {dtype} ({pre.dtype})", fold, "leave it out")
    if "C" not in pre.layout and (pre.color == "BGR" or max(len(pre.mean), len(pre.std)) > 1):
        raise UsageError("which axis are the channels?", fold, "say it: --preprocessing 'layout=NCHW ...'")


def front(source: Artifact, options: ExportOptions) -> Front:
    """What has to stand before the first input of ``source`` (see `edgepipe.agent.preprocess.prepare`)."""
    pre, spec = source.preprocessing, source.inputs[0]
    own = pre.layout
    layout = options.layout or own
    order = [layout.index(letter) for letter in own] if layout != own else []
    shape = [spec.shape[own.index(letter)] for letter in layout] if layout != own else list(spec.shape)
    axis = layout.index("C") if "C" in layout else -1
    if not folds(pre, options):
        return Front(spec.name, shape, [], [], axis, False, order)
    count = max(len(pre.mean), len(pre.std), 1)
    mean, std = ((values or [neutral]) for values, neutral in ((pre.mean, 0.0), (pre.std, 1.0)))
    mean, std = (values * count if len(values) == 1 else values for values in (mean, std))
    scale = [pre.scale / one for one in std]
    shift = [-one / other for one, other in zip(mean, std, strict=True)]
    return Front(spec.name, shape, scale, shift if any(shift) else [], axis, pre.color == "BGR", order)


def output(source: Artifact, options: ExportOptions, made: Front, files: list[str], **facts: Any) -> Output:
    """What became of ``source``: the new shape and layout, and no preprocessing where that is inside now."""
    from edgepipe.artifact import Output

    pre = replace(source.preprocessing, layout=options.layout or source.preprocessing.layout)
    done = []
    if folds(pre, options):
        pre = Preprocessing(pre.layout, pre.dtype, pre.range, color="RGB" if pre.color == "BGR" else pre.color)
        done.append("preprocessing folded in")
    if options.layout and options.layout != source.preprocessing.layout:
        done.append(f"{source.preprocessing.layout} became {options.layout}")
    inputs = [replace(source.inputs[0], shape=made.shape, layout=pre.layout), *source.inputs[1:]]
    return Output(files, inputs, source.outputs, pre, note="; ".join(done), **facts)


def fix_sizes(graph: Any, told: list[tuple[Any, int]]) -> None:
    """Give free dimensions of an ONNX graph the sizes they are told, and every other dimension of the same name too.

    Some writers give one name to dimensions that have nothing to do with each other: where such are told different
    sizes, each gets its own. Sizes below 1 are left free.
    """
    from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

    sizes: dict[str, set[int]] = {}
    for dim, size in told:
        sizes.setdefault(dim.dim_param, set()).add(size)
    for dim, size in told:
        if size < 1 or dim.dim_value > 0:
            continue
        if dim.dim_param and len(sizes[dim.dim_param]) == 1:
            make_dim_param_fixed(graph, dim.dim_param, size)
        else:
            dim.dim_value = size
