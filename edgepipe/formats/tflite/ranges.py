"""Calibration of a TFLite file: run the float file on data and watch what flows between its operations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.errors import IntegrityError, UsageError
from edgepipe.formats.tflite import graph, layers

if TYPE_CHECKING:
    from edgepipe.calibrate import Collector, Mean, Rule

_BITS = {"w8a8": 8, "w8a16": 16}
_CORRECTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_SAME = 0  # schema.Padding.SAME


@dataclass(frozen=True)
class Settings:
    """How ranges are estimated, in the words of the recipe."""

    scheme: str = "w8a8"
    method: str = "minmax"
    percentile: float = 99.99
    weights: str = "channel"
    activations: str = "asymmetric"
    bias: str = "on"

    @property
    def bits(self) -> int:
        """Bits of an activation."""
        return _BITS[self.scheme]

    @property
    def symmetric(self) -> bool:
        """Whether activations are symmetric around zero; those of 16 bits always are, the kernels know no others."""
        return self.activations == "symmetric" or self.scheme == "w8a16"

    @property
    def rule(self) -> Rule:
        """The same for the shared estimator."""
        from edgepipe.calibrate import Rule

        return Rule(self.method, self.bits, self.symmetric, self.percentile)


@dataclass(frozen=True)
class Observed:
    """What calibration saw.

    ``ranges``: index of an activation -> (low, high). ``means``: place of a layer -> the mean of what each of its
    weights meets, [kernel height, kernel width, input channels] or [inputs].
    """

    ranges: dict[int, tuple[float, float]]
    means: dict[int, Any]
    samples: int

    @staticmethod
    def load(path: str) -> Observed:
        """Read what `save` wrote."""
        import numpy as np

        found = json.loads(Path(path).read_text(encoding="utf-8"))
        ranges = {int(tensor): (low, high) for tensor, (low, high) in found["ranges"].items()}
        means = {int(index): np.array(mean) for index, mean in found["means"].items()}
        return Observed(ranges, means, found["samples"])

    def save(self, path: str) -> None:
        """Write it as JSON."""
        means = {index: mean.tolist() for index, mean in self.means.items()}
        content = {"ranges": self.ranges, "means": means, "samples": self.samples}
        Path(path).write_text(json.dumps(content), encoding="utf-8")


def calibrate(source: str, target: str, calibration: str, names: list[str], threads: int, **words: Any) -> int:
    """Observe once for many calls of `static.int8` with the same words (runs in the child); return the samples.

    Raises:
        IntegrityError, UsageError: as `observe`.
    """
    observed = observe(source, graph.read(source), calibration, names, threads, Settings(**words))
    observed.save(target)
    return observed.samples


def observe(source: str, model: Any, calibration: str, names: list[str], threads: int, settings: Settings) -> Observed:
    """Run the float file ``source`` (``model`` is its content) on an .npz of one array for each input.

    Raises:
        UsageError: the data has not the shape or type of the file's inputs, or there is none.
        IntegrityError: the file does not run, or an activation is NaN or infinite; it is named.
    """
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    from edgepipe.calibrate import Collector, Mean

    try:
        interpreter = Interpreter(model_path=source, num_threads=threads, experimental_preserve_all_tensors=True)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        what = f"the file does not load: {' '.join(str(error).split())[:200]}"
        raise IntegrityError(what, source, "use a step without calibration, or another format") from None
    details = interpreter.get_input_details()
    with np.load(calibration, allow_pickle=False) as arrays:
        samples = [checked(arrays[name], detail, name) for name, detail in zip(names, details, strict=True)]
    found = layers.find(model)
    tensors = {tensor: Collector(_title(model, tensor), settings.rule) for tensor in _activations(model)}
    means = {layer.data: Mean((0,)) for layer in found if settings.bias == "on" and layer.op in _CORRECTED}
    for feed in feeds(samples, max(1, int(details[0]["shape"][0]))):
        for detail, array in zip(details, feed, strict=True):
            interpreter.set_tensor(detail["index"], array)
        interpreter.invoke()
        _watch(interpreter, tensors, means)
    ranges = {tensor: collector.range() for tensor, collector in tensors.items() if collector.seen}
    images = {tensor: mean.value for tensor, mean in means.items() if mean.value is not None}
    met = {layer.index: _met(model, layer, images[layer.data]) for layer in found if layer.data in images}
    return Observed(ranges, met, len(samples[0]))


def _watch(interpreter: Any, tensors: dict[int, Collector], means: dict[int, Mean]) -> None:
    """Take in every watched tensor of the run just done."""
    for tensor, collector in tensors.items():
        try:
            values = interpreter.get_tensor(tensor)
        except ValueError:
            continue  # a tensor that was never made: of a branch not taken
        collector.add(values)
        if tensor in means:
            means[tensor].add(values.reshape(1, -1, values.shape[-1]) if values.ndim < 4 else values)  # noqa: PLR2004


def checked(array: Any, detail: dict[str, Any], name: str) -> Any:
    """``array`` if an input takes it: same shape but for the first dimension, same type, finite.

    Raises:
        UsageError: it does not.
    """
    import numpy as np

    wanted = [int(size) for size in detail["shape"]][1:]
    kind = np.dtype(detail["dtype"])
    where, fix = f"calibration data of input {name}", "make the data as model.toml says the input is"
    if not len(array) or list(array.shape[1:]) != wanted:
        what = f"samples have shape {list(array.shape[1:])}, the input takes {wanted}" if len(array) else "no samples"
        raise UsageError(what, where, fix)
    if array.dtype != kind:
        raise UsageError(f"samples are {array.dtype.name}, the input takes {kind.name}", where, fix)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UsageError("samples hold NaN or infinity", where, "correct the data")
    return array


def feeds(samples: list[Any], batch: int) -> Iterator[list[Any]]:
    """Cut the samples of all inputs into batches; a last one that is not full is left out, a single one is filled."""
    import numpy as np

    count = len(samples[0])
    if count < batch:
        samples = [np.resize(array, (batch, *array.shape[1:])) for array in samples]
        count = batch
    for start in range(0, count - batch + 1, batch):
        yield [array[start : start + batch] for array in samples]


def _activations(model: Any) -> list[int]:
    """The float tensors that are computed or fed, each once, in the order of the graph."""
    main = model.subgraphs[0]
    indices = [*main.inputs, *(tensor for op in main.operators for tensor in op.outputs)]
    return [int(tensor) for tensor in dict.fromkeys(indices) if graph.is_float(model, int(tensor))]


def _title(model: Any, tensor: int) -> str:
    """What to call a tensor in a message: the operation that makes it, or the input's own name."""
    for index, op in enumerate(model.subgraphs[0].operators):
        if tensor in op.outputs:
            return f"{graph.name_of(model, index)}"
    return str(model.subgraphs[0].tensors[tensor].name.decode("utf-8", "replace"))


def _met(model: Any, layer: layers.Layer, image: Any) -> Any:
    """The mean of what each weight of a layer meets, from the mean of the layer's input over all samples.

    A layer is linear in its input, so the mean of its output is its output for this mean; paddings count as zeros.
    """
    import numpy as np

    weights = graph.constant(model, layer.weights)
    if layer.op == "FULLY_CONNECTED":
        return image.reshape(-1, weights.shape[-1]).mean(0)
    op = model.subgraphs[0].operators[layer.index]
    height, width = weights.shape[1:3]
    options = op.builtinOptions
    sizes = [int(size) for size in model.subgraphs[0].tensors[op.outputs[0]].shape][1:3]
    steps = (options.strideH, options.strideW)
    gaps = (options.dilationHFactor, options.dilationWFactor)
    borders = []
    for axis, kernel in enumerate((height, width)):
        reach = (sizes[axis] - 1) * steps[axis] + (kernel - 1) * gaps[axis] + 1
        total = max(reach - image.shape[axis + 1], 0) if options.padding == _SAME else 0
        borders.append((total // 2, total - total // 2))
    padded = np.pad(image[0], (*borders, (0, 0)))
    ends = [(size - 1) * step + 1 for size, step in zip(sizes, steps, strict=True)]
    patches = [
        [
            padded[i * gaps[0] :, j * gaps[1] :][: ends[0] : steps[0], : ends[1] : steps[1]].mean((0, 1))
            for j in range(width)
        ]
        for i in range(height)
    ]
    return np.array(patches)
