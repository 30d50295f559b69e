"""Watch the tensors of an ONNX model while calibration data runs through it.

What is wanted of a tensor is reduced inside the graph where it can be, so that neither its values have to leave the
runtime nor all tensors have to be in memory at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.errors import UsageError
from edgepipe.formats.onnx import graph

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_BATCH = 32
_RUNS = 64  # whose reduced values are handed on together: on a small model numpy's calls cost more than the runs
_MEMORY = 128 << 20  # of all tensors that leave the runtime for one batch
_FLOAT = 1  # of TensorProto
_AXES_AS_INPUT = 18  # the opset from which ReduceMin, ReduceMax and ReduceMean take axes as an input


@dataclass(frozen=True)
class Probe:
    """What is wanted of a tensor of float32, batch by batch; tensors of other types are passed over.

    ``kind`` is "values"; "extremes", an array that holds the lowest, the highest and a mean value (NaN where one is);
    "channels", means of shape [samples, channels, 1, ...] of an image; or "vectors", values of shape [n, last axis].
    """

    tensor: str
    kind: str
    take: Callable[[Array], None]

    def reductions(self) -> list[tuple[str, str]]:
        """Operators and the names of their outputs."""
        kinds = {"extremes": ("ReduceMin", "ReduceMax", "ReduceMean"), "channels": ("ReduceMean",)}
        return [(kind, f"{self.tensor}:{self.kind}:{kind}") for kind in kinds.get(self.kind, ())]


def watch(model: Any, probes: list[Probe], calibration: str, threads: int) -> int:
    """Run the samples of the .npz ``calibration`` through the model; return how many there were.

    The model comes back as it was.

    Raises:
        UsageError: the samples are not what the model takes.
    """
    known = shapes(model, _FLOAT)
    inputs = {value.name for value in model.graph.input}
    # What the runtime must say the type of, or what is at hand already, is reduced here.
    inside = [probe for probe in probes if probe.tensor in known.keys() - inputs and probe.reductions()]
    outside = [probe for probe in probes if probe not in inside]
    session = _session(model, inside, known, [probe.tensor for probe in outside if probe.tensor not in inputs], threads)
    floats = {value.name for value in session.get_outputs() if value.type == "tensor(float)"}
    floats |= {value.name for value in session.get_inputs() if value.type == "tensor(float)"}
    outside = [probe for probe in outside if probe.tensor in floats]
    names = [*dict.fromkeys(probe.tensor for probe in outside if probe.tensor not in inputs)]
    names += [name for probe in inside for _, name in probe.reductions()]
    samples, small = 0, [name for probe in inside for _, name in probe.reductions()]
    kept: list[list[Array]] = []
    for size, values in _run(session, [*dict.fromkeys(names)], calibration):
        samples += size
        kept.append([values[name] for name in small])
        for probe in outside:
            probe.take(_reduced(values[probe.tensor], probe.kind))
        if len(kept) == _RUNS:
            _hand_on(inside, small, kept)
            kept = []
    if kept:
        _hand_on(inside, small, kept)
    return samples


def _hand_on(probes: list[Probe], names: list[str], runs: list[list[Array]]) -> None:
    """Give each probe what the graph reduced, of all ``runs`` together."""
    import numpy as np

    columns = dict(zip(names, zip(*runs, strict=True), strict=True))
    for probe in probes:
        found = [columns[name] for _, name in probe.reductions()]
        if probe.kind == "extremes":
            probe.take(np.array([value.item() for column in found for value in column]))
        else:
            probe.take(np.concatenate(found[0]))


def shapes(model: Any, kind: int = 0) -> dict[str, list[int]]:
    """Shapes of the tensors (of one element type, or all) as far as shape inference knows; an open size is 0."""
    import onnx

    found = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type for value in [*found.input, *found.value_info, *found.output]}
    return {
        name: [size.dim_value for size in tensor.shape.dim]
        for name, tensor in types.items()
        if tensor.HasField("shape") and tensor.elem_type and kind in (0, tensor.elem_type)
    }


def _session(model: Any, inside: list[Probe], known: dict[str, list[int]], whole: list[str], threads: int) -> Any:
    """A session of the model whose outputs are the reductions and the tensors wanted whole."""
    import onnx
    from onnx import ValueInfoProto

    own = [*model.graph.output]
    opset = graph.opset(model)
    nodes, constants = [], []
    for probe in inside:
        axes = list(range(2, len(known[probe.tensor]))) if probe.kind == "channels" else []
        for kind, name in probe.reductions():
            node = onnx.helper.make_node(kind, [probe.tensor], [name], keepdims=int(bool(axes)))
            if axes and opset < _AXES_AS_INPUT:
                node.attribute.append(onnx.helper.make_attribute("axes", axes))
            elif axes:
                constants.append(onnx.helper.make_tensor(f"{name}:axes", onnx.TensorProto.INT64, [len(axes)], axes))
                node.input.append(f"{name}:axes")
            nodes.append(node)
    extra = [node.output[0] for node in nodes] + [name for name in whole if name not in {value.name for value in own}]
    fields = (model.graph.node, model.graph.initializer, model.graph.output)
    counts = [len(items) for items in fields]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants)
    model.graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(extra))
    try:
        return graph.session(model, threads)
    finally:
        for items, count in zip(fields, counts, strict=True):
            del items[count:]


def _reduced(values: Array, kind: str) -> Array:
    if kind == "channels":
        mean: Array = values.mean(axis=tuple(range(2, values.ndim)), keepdims=True)
        return mean
    return values.reshape(-1, values.shape[-1]) if kind == "vectors" else values


def _run(session: Any, outputs: list[str], calibration: str) -> Iterator[tuple[int, dict[str, Array]]]:
    """Yield (number of samples, values by tensor); the batch is the file's, or what fits into memory."""
    import numpy as np

    with np.load(calibration, allow_pickle=False) as arrays:
        feeds = {value.name: _checked(value, arrays) for value in session.get_inputs()}
    sizes = {value.shape[0] for value in session.get_inputs() if value.shape}
    fixed = max((size for size in sizes if isinstance(size, int)), default=0)
    total = len(next(iter(feeds.values())))
    if total < fixed:
        feeds = {name: np.resize(values, (fixed, *values.shape[1:])) for name, values in feeds.items()}
        total = fixed
    start, batch = 0, fixed or 1
    while start + batch <= total:
        feed = {name: values[start : start + batch] for name, values in feeds.items()}
        values = dict(zip(outputs, session.run(outputs, feed), strict=True)) | feed
        yield batch, values
        start += batch
        if not fixed:  # a first run of one sample has told how large the values of one are
            each = sum(array.nbytes for array in values.values()) // batch
            batch = max(1, min(_BATCH, _MEMORY // max(each, 1), total - start))


def _checked(value: Any, arrays: Any) -> Array:
    """The samples for one input of the file.

    Raises:
        UsageError: there are none, or they have another shape or type.
    """
    where, fix = "calibration data", "the data must be what the model is fed with"
    if value.name not in arrays.files:
        raise UsageError(f"no samples for input {value.name}", where, fix)
    samples: Array = arrays[value.name]
    wanted = [size if isinstance(size, int) else -1 for size in value.shape]
    given = list(samples.shape)
    fits = len(given) == len(wanted) and all(a in (-1, b) for a, b in zip(wanted[1:], given[1:], strict=False))
    if not fits or not given or given[0] == 0:
        raise UsageError(f"samples of shape {given} don't fit input {value.name} of shape {wanted}", where, fix)
    kinds = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(uint8)": "uint8"}
    if str(samples.dtype) != kinds.get(value.type, str(samples.dtype)):
        raise UsageError(f"samples of {samples.dtype} don't fit input {value.name}, {kinds[value.type]}", where, fix)
    return samples
