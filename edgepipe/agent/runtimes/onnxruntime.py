"""ONNX Runtime on the CPU: https://onnxruntime.ai/docs/api/python/api_summary.html."""

from __future__ import annotations

import json
import os
from typing import Any, Callable, Dict, List, Tuple

from edgepipe.agent.advice import Arithmetic, Crash, Wheel
from edgepipe.agent.precision import Tally, Times, unknown
from edgepipe.agent.runtimes import _decoder
from edgepipe.schema import Artifact, OpTime, RunOptions

FORMATS: Tuple[str, ...] = ("onnx",)
PACKAGES: Tuple[str, ...] = ("onnxruntime", "onnxruntime-gpu")
WHEELS: Tuple[Wheel, ...] = (Wheel("onnxruntime<=1.31.1"),)
CRASHES: Tuple[Crash, ...] = (
    # Raspberry Pi 3 and 4 (Cortex-A53, A72): 1.20.1 and 1.21.1 run, 1.21.0 runs from Armv8.1 on (atomics).
    Crash("onnxruntime==1.21.0", "aarch64", "atomics", "https://github.com/microsoft/onnxruntime/issues/23957"),
)

_KERNEL = "_kernel_time"
_PROVIDERS = ["CPUExecutionProvider"]
# Conversions between precisions are no part of the model's arithmetic.
_CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast"}
_INTEGER_OPS = ("QLinear", "QGemm", "QAttention", "DynamicQuantize", "ConvInteger", "MatMulInteger", "MatMulIntegerTo")
# Parts of the names of kernels that compute products: Conv, FusedConv, QLinearMatMul, MatMulNBits, QGemm ...
_LAYERS = ("Conv", "MatMul", "Gemm", "Attention", "LSTM", "GRU", "RNN", "Einsum")
_BLOCK_OPS = {"MatMulNBits", "GatherBlockQuantized"}
_NAMES = {"float": "float32", "float16": "float16", "bfloat16": "bfloat16", "double": "float64"}


def arithmetic(machine: str, isa: List[str], package: str) -> Arithmetic:  # noqa: ARG001 - as all runtimes
    """What its MLAS kernels do with integers on a CPU: they are chosen by what cpuinfo finds there."""
    if machine == "aarch64":
        if "asimddp" in isa:
            kind = "8-bit matrix products (i8mm)" if "i8mm" in isa else "8-bit dot products (asimddp)"
            return Arithmetic("green", kind, "fast: its 4-bit kernels stand on the dot product")
        # https://github.com/microsoft/onnxruntime/issues/20052
        return Arithmetic(
            "yellow",
            "no dot product: products are widened to 16 bits, which may be slower than float32",
            "saves size, not time",
            "measure int8 beside float32 before you choose",
        )
    if "avx512_vnni" in isa or "avx_vnni" in isa:
        return Arithmetic("green", "exact 8-bit dot products (VNNI)", "fast")
    if "avx2" in isa:
        return Arithmetic(
            "yellow",
            "AVX2 without VNNI: 16-bit sums may saturate, which costs accuracy",
            "AVX2 kernels",
            "take accuracy on the board (edgepipe deploy does), or quantise with reduce_range",
        )
    return Arithmetic("yellow", "neither VNNI nor AVX2: slow", "slow", "stay with float32")


def version() -> str:
    """The version of the package; imports it."""
    import onnxruntime

    return str(onnxruntime.__version__)


class OnnxSession:
    """A model in an InferenceSession."""

    def __init__(self, path: str, options: RunOptions, artifact: Artifact) -> None:
        import onnxruntime

        self._path, self._options = path, options
        self._session = onnxruntime.InferenceSession(path, _options(options), providers=_PROVIDERS)
        inputs = [tensor.name for tensor in self._session.get_inputs()]
        outputs = [tensor.name for tensor in self._session.get_outputs()]
        self._inputs = _ordered([spec.name for spec in artifact.inputs], inputs)
        self._outputs = _ordered([spec.name for spec in artifact.outputs], outputs)
        self._feeds: Dict[str, Any] = {}

    def run(self, feeds: List[Any]) -> List[Any]:
        """One inference."""
        self._feeds = dict(zip(self._inputs, feeds))
        return list(self._session.run(self._outputs, self._feeds))

    def prepare(self, feeds: List[Any]) -> Callable[[], object]:
        """One inference by the call that programs make, so that the figure is the one they will see."""
        self._feeds = dict(zip(self._inputs, feeds))
        run, outputs, given = self._session.run, self._outputs, self._feeds
        return lambda: run(outputs, given)

    def executed(self) -> Dict[str, Any]:
        """Precision and provider of each kernel, from the profile of one run in a session of its own."""
        if not self._feeds:
            return unknown(",".join(_PROVIDERS))
        tally, seen = Tally(), set()
        for name, kernel, _ in self._kernels(1):
            once = (name, kernel.get("node_index"))  # a node inside a loop is one node, however often it ran
            if once not in seen:
                seen.add(once)
                tally.add(_precision(kernel), str(kernel.get("provider", "")), layer=_is_layer(kernel))
        return tally.executed()

    def profile(self, runs: int) -> List[OpTime]:
        """Kernel times of ONNX Runtime's own profile."""
        times = Times()
        for name, kernel, us in self._kernels(runs):
            plain, op = name[: -len(_KERNEL)], str(kernel.get("op_name", ""))
            node = OpTime(plain, op, 1, us, _precision(kernel), str(kernel["provider"]))
            times.add((name, kernel.get("node_index")), node)
        return times.rows()

    def _profiled(self, runs: int, prefix: str) -> str:
        """Run in a session of its own that keeps a profile; returns the profile's path."""
        import onnxruntime

        options = _options(self._options)
        options.enable_profiling, options.profile_file_prefix = True, prefix
        session = onnxruntime.InferenceSession(self._path, options, providers=_PROVIDERS)
        for _ in range(runs):
            session.run(self._outputs, self._feeds)
        return str(session.end_profiling())

    def _kernels(self, runs: int) -> List[Tuple[str, Dict[str, Any], float]]:
        """Name, facts and us of each kernel that ran, from the profile of a session of its own."""
        with open(self._profiled(runs, os.path.abspath("profile")), encoding="utf-8") as file:
            events = json.load(file)
        return [
            (str(event["name"]), dict({"provider": ""}, **event.get("args", {})), float(event.get("dur", 0)))
            for event in events
            if event.get("cat") == "Node" and str(event.get("name", "")).endswith(_KERNEL)
        ]

    def close(self) -> None:
        """Drop the session."""
        del self._session


class LanguageSession(OnnxSession):
    """A language model: a run is a window of text and how likely it is; what is timed is one token after another."""

    def __init__(self, path: str, options: RunOptions, artifact: Artifact) -> None:  # noqa: ARG002 - as all sessions
        self._path, self._options = path, options
        self._feeds: Dict[str, Any] = {}
        self._decoder = _decoder.Decoder(path, options.threads, optimize=options.optimize)

    def run(self, feeds: List[Any]) -> List[Any]:
        """The mean loss in nats, [1], of one window's last predictions."""
        import numpy as np

        tokens, scored = self._given(feeds)
        return [np.array([self._decoder.window(tokens, scored)])]

    def prepare(self, feeds: List[Any]) -> Callable[[], object]:
        """Decode: the first call goes from the window's first tokens to the first answered one, others are one token.

        After some the answer begins anew, at no cost: the cache of the prompt is still there.
        """
        return _decoder.Answer(self._decoder, self._given(feeds)[0]).next

    def _given(self, feeds: List[Any]) -> Tuple[List[int], int]:
        self._feeds = dict(zip(_decoder.FED, feeds))
        return [int(token) for token in feeds[0][0]], int(feeds[1][0])

    def _profiled(self, runs: int, prefix: str) -> str:
        """Decode ``runs`` tokens with nothing before them."""
        threads, optimize = self._options.threads, self._options.optimize
        decoder = _decoder.Decoder(self._path, threads, runs, optimize=optimize, profile=prefix)
        last = int(self._feeds["tokens"][0][0])
        for _ in range(runs):
            last = int(decoder.step([last])[0].argmax())
        return decoder.profiled()

    def close(self) -> None:
        """Drop the session."""
        del self._decoder


def load(path: str, options: RunOptions, artifact: Artifact) -> OnnxSession:
    """Open a file. Raises the package's own exceptions if it can't."""
    return (LanguageSession if _decoder.fed(artifact) else OnnxSession)(path, options, artifact)


def _options(options: RunOptions) -> Any:
    import onnxruntime

    found = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    found.graph_optimization_level = level.ORT_ENABLE_ALL if options.optimize else level.ORT_DISABLE_ALL
    found.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    found.intra_op_num_threads, found.inter_op_num_threads = options.threads, 1
    found.log_severity_level = 3
    return found


def _ordered(wanted: List[str], found: List[str]) -> List[str]:
    """The artifact's order where it names the file's tensors, else the file's own."""
    return wanted if wanted and set(wanted) <= set(found) else found


def _is_layer(kernel: Dict[str, Any]) -> bool:
    name = str(kernel.get("op_name", ""))
    return any(part in name for part in _LAYERS)


def _precision(kernel: Dict[str, Any]) -> str:
    """The precision a kernel works in, by its name and the types of its tensors; empty if it only converts."""
    name = str(kernel.get("op_name", ""))
    types = [
        kind for shape in kernel.get("input_type_shape", []) + kernel.get("output_type_shape", []) for kind in shape
    ]
    if name in _CONVERSIONS or not types:
        return ""
    if name in _BLOCK_OPS:
        return "float32 with n-bit weights"
    if name.startswith(_INTEGER_OPS) or types[0] in ("int8", "uint8"):
        return "int8"
    return next((_NAMES[kind] for kind in types if kind in _NAMES), "")
