"""A TFLite file as quantisation sees it: its layers, what flows between them, and biases that make up for rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL")
_CORRECTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_INT8 = 127


@dataclass(frozen=True)
class Layer:
    """An operation with weights. ``name`` is its output tensor's; ``inputs`` the length of a row of its weights."""

    name: str
    op: str
    weights: int
    inputs: int
    operator: Any


class Graph:
    """The main subgraph of a file, as the flatbuffer's object API gives it."""

    def __init__(self, path: str) -> None:
        from ai_edge_quantizer.utils import tfl_flatbuffer_utils as flat

        self._flat = flat
        self._model = flat.read_model(path)
        self._graph = self._model.subgraphs[0]
        self.layers = [layer for operator in self._graph.operators if (layer := self._layer(operator))]

    def name(self, index: int) -> str:
        """A tensor's name."""
        return str(self._flat.get_tensor_name(self._graph.tensors[index]))

    def data(self, index: int) -> np.ndarray[Any, Any] | None:
        """A constant tensor's values; None for what is computed."""
        found: np.ndarray[Any, Any] | None = self._flat.get_tensor_data(self._graph.tensors[index], self._model.buffers)
        return found

    def broken(self) -> str:
        """The name of the first float constant that is not finite, or nothing."""
        import numpy as np

        for index in range(len(self._graph.tensors)):
            values = self.data(index)
            if values is not None and values.dtype.kind == "f" and not np.isfinite(values).all():
                return self.name(index)[:120]
        return ""

    def corrected(self, means: dict[str, Any], per_channel: bool) -> bytes:
        """The file with biases that make up for what rounding the weights shifts on average.

        The mean of (W - Wq) x is (W - Wq) E[x], with E[x] the mean of each input channel over the calibration data
        (Nagel et al. 2019, equation 15, without their assumption on E[x]); padding at borders is left out of account.
        """
        import flatbuffers
        import numpy as np

        for layer in self.layers:
            bias = self.data(layer.operator.inputs[2]) if len(layer.operator.inputs) > 2 else None  # noqa: PLR2004
            mean = means.get(self.name(layer.operator.inputs[0]))
            weight = self.data(layer.operator.inputs[1])
            if layer.op not in _CORRECTED or bias is None or mean is None or weight is None:
                continue
            axis = weight.ndim - 1 if layer.op == "DEPTHWISE_CONV_2D" else 0
            lost = (weight - _rounded(weight, axis, per_channel)).astype(np.float64)
            if layer.op == "DEPTHWISE_CONV_2D":
                shift = lost.sum((0, 1, 2)) * np.repeat(mean, weight.shape[-1] // mean.size)
            else:
                shift = (lost.reshape(len(weight), -1, mean.size) * mean).sum((1, 2))
            buffer = self._model.buffers[self._graph.tensors[layer.operator.inputs[2]].buffer]
            buffer.data = np.frombuffer((bias + shift.reshape(bias.shape)).astype(np.float32).tobytes(), np.uint8)
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _layer(self, operator: Any) -> Layer | None:
        kind = self._flat.TFL_OP_CODE_TO_NAME.get(self._model.operatorCodes[operator.opcodeIndex].builtinCode)
        word = str(kind.value if kind else "")
        if word not in LAYERS and word != "CONV_2D_TRANSPOSE":
            return None
        constants = [values for index in operator.inputs[:2] if index >= 0 and (values := self.data(index)) is not None]
        weights = [values for values in constants if values.dtype.kind == "f"]
        if not weights:
            return None
        size = weights[0].size
        row = weights[0].shape[-1]
        return Layer(self.name(operator.outputs[0]), word, int(size), int(row), operator)


def read(path: str) -> Graph:
    """Read a file for quantisation (in the child)."""
    return Graph(path)


def _rounded(weight: Any, axis: int, per_channel: bool) -> Any:
    """Weights as int8 keeps them: symmetric, by channel along ``axis`` or one scale for all."""
    import numpy as np

    others = tuple(index for index in range(weight.ndim) if index != axis) if per_channel else None
    scale = np.abs(weight).max(axis=others, keepdims=True) / _INT8
    scale = np.where(scale > 0, scale, 1.0)
    return np.clip(np.rint(weight / scale), -_INT8, _INT8) * scale


@dataclass(frozen=True)
class Seen:
    """What calibration saw: the estimated range of each activation, and the mean of each of its channels."""

    ranges: dict[str, tuple[float, float]]
    means: dict[str, Any]

    def ranges_for(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """The quantizer's own table with our ranges in it, in its shapes."""
        import numpy as np

        table = {}
        for name, entry in wanted.items():
            if name in self.ranges and {"min", "max"} <= set(entry):
                low, high = (
                    np.full_like(entry[key], end) for key, end in zip(("min", "max"), self.ranges[name], strict=True)
                )
                entry = {**entry, "min": low, "max": high}  # noqa: PLW2901
            table[name] = entry
        return table


def watch(path: str, feeds: list[dict[str, Any]], threads: int, params: dict[str, Any], bits: int) -> Seen:
    """Run the float file over ``feeds`` (arrays by signature key) and watch every activation.

    Raises:
        IntegrityError: an activation is NaN or infinite; it is named.
    """
    from ai_edge_litert.interpreter import Interpreter

    from edgepipe.calibrate import Collector, Mean, Rule

    interpreter = Interpreter(model_path=path, num_threads=threads, experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner(next(iter(interpreter.get_signature_list())))
    graph = read(path)
    symmetric = params["activations"] == "symmetric" or bits > 8  # noqa: PLR2004  the runtimes want 16 bits symmetric
    rule = Rule(params["method"], bits, symmetric, params["percentile"])
    details = {
        detail["name"]: detail
        for detail in interpreter.get_tensor_details()
        if detail["dtype"].__name__ == "float32" and detail["index"] < len(graph._graph.tensors)
        and graph.data(detail["index"]) is None
    }  # fmt: skip
    ranges = {name: Collector(name, rule) for name in details}
    inputs = {graph.name(layer.operator.inputs[0]) for layer in graph.layers}
    means = {name: Mean(tuple(range(len(details[name]["shape"]) - 1))) for name in inputs if name in details}
    for feed in feeds:
        runner(**feed)
        for name, detail in details.items():
            try:
                values = interpreter.get_tensor(detail["index"])
            except ValueError:
                continue  # a tensor the delegate never made
            ranges[name].add(values)
            if name in means:
                means[name].add(values)
    found = {name: collector.range() for name, collector in ranges.items() if collector.seen}
    return Seen(found, {name: mean.value.ravel() for name, mean in means.items() if mean.value is not None})
