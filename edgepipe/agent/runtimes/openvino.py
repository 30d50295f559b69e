"""OpenVINO's CPU plug-in: https://docs.openvino.ai."""

from __future__ import annotations

import platform
from typing import Any, Callable, Dict, List, Tuple

from edgepipe.agent.advice import Arithmetic, Crash, Wheel
from edgepipe.agent.precision import Tally, Times
from edgepipe.schema import Artifact, OpTime, RunOptions

FORMATS: Tuple[str, ...] = ("openvino",)
PACKAGES: Tuple[str, ...] = ("openvino",)
WHEELS: Tuple[Wheel, ...] = (Wheel("openvino<=2026.4.1"),)
CRASHES: Tuple[Crash, ...] = ()

_DEVICE = "CPU"
_IN_FLOAT = "whose 8-bit kernels do not start on this processor"
_NAMES = {
    "u8": "int8",
    "i8": "int8",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "u4": "int4",
    "i4": "int4",
}
# Nodes that hold, move or convert data, by the plug-in's own names of layer types.
_NO_ARITHMETIC = {
    "Input",
    "Output",
    "Constant",
    "Const",
    "Reorder",
    "Convert",
    "Parameter",
    "Result",
    "Reshape",
    "FakeQuantize",
}
_LAYERS = {"Convolution", "Deconvolution", "DeformableConvolution", "FullyConnected", "MatMul"}


def arithmetic(machine: str, isa: List[str], package: str) -> Arithmetic:  # noqa: ARG001 - as all runtimes
    """What its CPU plug-in does with integers: documented as quantised on x86-64, as fp16 on Arm."""
    if machine == "aarch64" and "asimddp" not in isa:
        return Arithmetic(
            "yellow",
            "runs in float32: its 8-bit convolutions need dot products, which this CPU lacks",
            "weights are unpacked: saves size, not time",
            "use onnx or tflite for int8 here, or take it as it is with --allow-fallback",
        )
    if machine == "aarch64":
        half = "fp16" if "asimdhp" in isa else "float32"
        return Arithmetic(
            "yellow",
            f"may run in {half}: its documentation lists quantised execution for x86-64 only",
            "weights are unpacked: saves size, not time",
            "see which precision a bench says was executed, before you count on int8",
        )
    if "avx512_vnni" in isa or "avx_vnni" in isa:
        return Arithmetic("green", "8-bit dot products (VNNI)", "weights are unpacked: saves size and memory traffic")
    kind = "AVX2 without VNNI: a small gain" if "avx2" in isa else "neither VNNI nor AVX2: slow"
    return Arithmetic("yellow", kind, "weights are unpacked: saves size, not time", "measure int8 beside float32 first")


def version() -> str:
    """The version of the package; imports it."""
    import openvino

    return str(openvino.__version__).split("-")[0]


class OpenvinoSession:
    """A model compiled for the CPU, with one request."""

    def __init__(self, path: str, options: RunOptions, artifact: Artifact) -> None:
        import openvino

        core = self._core = openvino.Core()
        model = core.read_model(path)
        free = [
            node for node in model.inputs if node.partial_shape.rank.get_length() and node.partial_shape[0].is_dynamic
        ]
        if free:
            shapes = {node: openvino.PartialShape([options.batch, *list(node.partial_shape)[1:]]) for node in free}
            model.reshape(shapes)
        self._model = model
        self._compiled, self._properties, self._provider = _compiled(core, model, _properties(options))
        self._request = self._compiled.create_infer_request()
        self._inputs = _ordered([spec.name for spec in artifact.inputs], self._compiled.inputs)
        self._outputs = _ordered([spec.name for spec in artifact.outputs], self._compiled.outputs)

    def _set(self, feeds: List[Any]) -> None:
        import openvino

        for index, feed in zip(self._inputs, feeds):
            self._request.set_input_tensor(index, openvino.Tensor(feed))

    def run(self, feeds: List[Any]) -> List[Any]:
        """One inference."""
        self.prepare(feeds)()
        return [self._request.get_output_tensor(index).data.copy() for index in self._outputs]

    def prepare(self, feeds: List[Any]) -> Callable[[], object]:
        """One inference on inputs set once; outputs stay where they are, uncopied."""
        self._set(feeds)
        infer = self._request.infer
        return lambda: infer(share_outputs=True)

    def executed(self) -> Dict[str, Any]:
        """Precision of each node of the compiled graph, as the plug-in itself notes it."""
        tally = Tally()
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            facts = node.get_rt_info()
            kind = str(_fact(facts, "layerType"))
            if kind in _NO_ARITHMETIC:
                continue
            precision = _NAMES.get(str(_fact(facts, "runtimePrecision")).lower(), "")
            tally.add(precision, _DEVICE, layer=kind in _LAYERS)
        return tally.executed(self._provider)

    def profile(self, runs: int) -> List[OpTime]:
        """The plug-in's performance counters, of a compiled model of its own. ``exec_type`` ends in the precision."""
        compiled = self._core.compile_model(self._model, _DEVICE, dict(self._properties, PERF_COUNT=True))
        request = compiled.create_infer_request()
        for index in range(len(compiled.inputs)):
            request.set_input_tensor(index, self._request.get_input_tensor(index))
        times = Times()
        for _ in range(runs):
            request.infer(share_outputs=True)
            for info in request.get_profiling_info():
                if not str(info.status).upper().endswith("EXECUTED"):
                    continue
                kernel, _, kind = str(info.exec_type).rpartition("_")
                precision, us = _NAMES.get(kind.lower(), kind), info.real_time.total_seconds() * 1e6
                times.add(info.node_name, OpTime(info.node_name, info.node_type, 1, us, precision, kernel))
        return times.rows()

    def close(self) -> None:
        """Drop the compiled model."""
        del self._request, self._compiled


def load(path: str, options: RunOptions, artifact: Artifact) -> OpenvinoSession:
    """Open a file. Raises the package's RuntimeError if it can't."""
    return OpenvinoSession(path, options, artifact)


def _properties(options: RunOptions) -> Dict[str, Any]:
    """One stream, tuned for latency. Without optimisation all arithmetic is float32, quantisers rounding in between.

    ``LP_TRANSFORMS_MODE`` is the plug-in's own switch of its int8 kernels, whose sums saturate on x86 without VNNI.
    """
    found: Dict[str, Any] = {
        "INFERENCE_NUM_THREADS": options.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    if not options.optimize:
        found.update(INFERENCE_PRECISION_HINT="f32", LP_TRANSFORMS_MODE="NO")
    return found


def _compiled(core: Any, model: Any, properties: Dict[str, Any]) -> Tuple[Any, Dict[str, Any], str]:
    """The compiled model, what it was compiled with, and what takes it, in words.

    On an Arm CPU without dot products (Cortex-A53, A72) version 2026.4 plans 8-bit convolutions that it then has no
    kernel for, and compiling ends with "object is not initialized". It runs such a file in float, if it is told to.
    """
    try:
        return core.compile_model(model, _DEVICE, properties), properties, _DEVICE
    except RuntimeError:
        if platform.machine() != "aarch64" or "LP_TRANSFORMS_MODE" in properties:
            raise
        properties = dict(properties, LP_TRANSFORMS_MODE="NO")
        return core.compile_model(model, _DEVICE, properties), properties, f"{_DEVICE}, {_IN_FLOAT}"


def _ordered(wanted: List[str], nodes: List[Any]) -> List[int]:
    """Indices of nodes in the artifact's order, by any of their names; else in the file's own."""
    found = [index for name in wanted for index, node in enumerate(nodes) if name in node.get_names()]
    return found if len(found) == len(wanted) else list(range(len(nodes)))


def _fact(facts: Any, key: str) -> Any:
    """One entry of a node's runtime information, or an empty text."""
    return facts[key].value if key in facts else ""
