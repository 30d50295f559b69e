"""TensorFlow Lite files, by LiteRT or one of its forerunners: https://ai.google.dev/edge/litert."""

from __future__ import annotations

import importlib
from typing import Any, Callable, Dict, List, Tuple

from edgepipe.agent.advice import Arithmetic, Crash, Wheel
from edgepipe.agent.precision import Tally, replaced, unknown
from edgepipe.schema import Artifact, OpTime, RunOptions

FORMATS: Tuple[str, ...] = ("tflite",)
PACKAGES: Tuple[str, ...] = ("ai-edge-litert", "tflite-runtime", "tensorflow")
WHEELS: Tuple[Wheel, ...] = (
    Wheel("ai-edge-litert<=2.3.0"),
    # It was built for numpy 1: with numpy 2 it imports, and fails later ("_ARRAY_API not found"). No 32-bit machine has
    # another TFLite wheel; for Python 3.11: https://github.com/tensorflow/tensorflow/issues/60115
    Wheel("tflite-runtime<=2.14.0", ("numpy<2",)),
)
CRASHES: Tuple[Crash, ...] = (
    # Built with -mfpu=neon-vfpv4: https://github.com/tensorflow/tensorflow/issues/39957
    Crash("tflite-runtime", "armv7l", "vfpv4", "https://github.com/tensorflow/tensorflow/issues/39957"),
    Crash("tflite-runtime", "armv7l", "neon", "https://github.com/tensorflow/tensorflow/issues/39957"),
)

_MODULES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite.python.interpreter")
_DELEGATE = "DELEGATE"
_CONVERSIONS = {"QUANTIZE", "DEQUANTIZE", "CAST"}
_LAYERS = {
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "TRANSPOSE_CONV",
    "CONV_3D",
    "CONV_3D_TRANSPOSE",
    "FULLY_CONNECTED",
    "BATCH_MATMUL",
    "LSTM",
    "UNIDIRECTIONAL_SEQUENCE_LSTM",
}
_QUANTISED = {"int4", "int8", "uint8", "int16"}


def arithmetic(machine: str, isa: List[str], package: str) -> Arithmetic:
    """What its XNNPACK kernels do with integers on a CPU."""
    fast = machine == "aarch64" and "asimddp" in isa
    int4 = "fast" if fast else "unpacked to 8 bits: saves size, not time"
    if package == "tflite-runtime":
        # "Type not currently supported", or NaN without a word.
        int4 = "not supported by tflite-runtime"
    if fast:
        kind = "8-bit matrix products (i8mm)" if "i8mm" in isa else "8-bit dot products (asimddp)"
        return Arithmetic("green", kind, int4)
    if machine in ("aarch64", "armv7l"):
        return Arithmetic(
            "yellow",
            "no dot product: products are widened to 16 bits, so int8 gains less",
            int4,
            "measure int8 beside float32 before you choose",
        )
    if "avx512_vnni" in isa or "avx_vnni" in isa:
        return Arithmetic("green", "8-bit dot products (VNNI)", int4)
    kind = "AVX2: products are widened to 16 bits, exact" if "avx2" in isa else "no AVX2: slow"
    return Arithmetic("green" if "avx2" in isa else "yellow", kind, int4, "" if "avx2" in isa else "measure it first")


def _module() -> Any:
    """The interpreter module of the first package that is installed.

    Raises:
        ImportError: none is.
    """
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(str(error.name)):
                raise
    raise ImportError(f"none of {', '.join(PACKAGES)} is installed")


def version() -> str:
    """The version of the package; imports it."""
    from importlib import metadata

    package = PACKAGES[_MODULES.index(_module().__name__)]
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


class TfliteSession:
    """A model in an interpreter. Integer inputs and outputs with a scale are quantised and dequantised here."""

    def __init__(self, path: str, options: RunOptions, artifact: Artifact) -> None:
        self._optimize = options.optimize
        self._interpreter = _opened(path, options)
        self._names = _names(self._interpreter)
        self._wanted = [[spec.name for spec in specs] for specs in (artifact.inputs, artifact.outputs)]
        self._resize(options.batch)
        self._allocate()

    def _resize(self, batch: int) -> None:
        """Give inputs with a free batch the batch asked for."""
        for detail in self._interpreter.get_input_details():
            signature = [int(size) for size in detail.get("shape_signature", detail["shape"])]
            if signature and signature[0] == -1:
                shape = [batch, *(int(size) for size in detail["shape"][1:])]
                self._interpreter.resize_tensor_input(detail["index"], shape)

    def _allocate(self) -> None:
        self._interpreter.allocate_tensors()
        details = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self._inputs, self._outputs = (
            _ordered(wanted, found, self._names) for wanted, found in zip(self._wanted, details)
        )

    def _set(self, feeds: List[Any]) -> None:
        shapes = [tuple(int(size) for size in detail["shape"]) for detail in self._inputs]
        if any(feed.shape != shape for feed, shape in zip(feeds, shapes)):
            for detail, feed in zip(self._inputs, feeds):
                self._interpreter.resize_tensor_input(detail["index"], list(feed.shape))
            self._allocate()
        for detail, feed in zip(self._inputs, feeds):
            self._interpreter.set_tensor(detail["index"], _quantised(feed, detail))

    def run(self, feeds: List[Any]) -> List[Any]:
        """One inference."""
        self._set(feeds)
        self._interpreter.invoke()
        return [_dequantised(self._interpreter.get_tensor(detail["index"]), detail) for detail in self._outputs]

    def prepare(self, feeds: List[Any]) -> Callable[[], object]:
        """One inference on inputs set once."""
        self._set(feeds)
        invoke: Callable[[], object] = self._interpreter.invoke
        return invoke

    def executed(self) -> Dict[str, Any]:
        """Precision by the tensors each operator reads and writes; which operators the XNNPACK delegate took."""
        try:
            rows, kinds = self._details()
        except (AttributeError, ValueError, RuntimeError):
            return unknown()
        tally = Tally()
        for name, precision, provider in self._operators(rows, kinds):
            tally.add(precision, provider, layer=name in _LAYERS)
        count = sum(row["op_name"] == _DELEGATE for row in rows)
        return tally.executed(f"XNNPACK ({count} partition{'s' * (count > 1)})" if count else self._own())

    def profile(self, runs: int) -> List[OpTime]:
        """The operators as they are run, without times: the Python packages hand none out."""
        found = self._operators(*self._details())
        return [OpTime(f"operator {place}", name, runs, None, *ran) for place, (name, *ran) in enumerate(found)]

    def _details(self) -> Tuple[List[Any], Dict[int, str]]:
        """What the interpreter says of its operators, and the types of its tensors by index."""
        kinds = {one["index"]: one["dtype"].__name__ for one in self._interpreter.get_tensor_details()}
        return self._interpreter._get_ops_details(), kinds

    def _operators(self, rows: List[Any], kinds: Dict[int, str]) -> List[Tuple[str, str, str]]:
        """Name, precision and kernels of each operator of the file."""
        operators = [row for row in rows if row["op_name"] != _DELEGATE]
        taken = replaced([row for row in rows if row["op_name"] == _DELEGATE], operators)
        return [
            (row["op_name"], _precision(row, kinds), "XNNPACK" if place in taken else self._own())
            for place, row in enumerate(operators)
        ]

    def _own(self) -> str:
        return "built-in kernels" if self._optimize else "reference kernels"

    def close(self) -> None:
        """Drop the interpreter."""
        del self._interpreter


def load(path: str, options: RunOptions, artifact: Artifact) -> TfliteSession:
    """Open a file. Raises the package's own exceptions (ValueError, RuntimeError) if it can't."""
    return TfliteSession(path, options, artifact)


def _opened(path: str, options: RunOptions) -> Any:
    """The interpreter; without optimisation with reference kernels, or plain ones where those won't do."""
    module = _module()
    if options.optimize:
        return module.Interpreter(model_path=path, num_threads=options.threads)
    kinds = module.OpResolverType
    told: Dict[str, Any] = {"model_path": path, "num_threads": options.threads}
    try:
        interpreter = module.Interpreter(experimental_op_resolver_type=kinds.BUILTIN_REF, **told)
    except ValueError:  # e.g. "Didn't find op for builtin opcode 'CEIL'"
        interpreter = None
    if interpreter is None or _in_blocks(interpreter):
        return module.Interpreter(experimental_op_resolver_type=kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES, **told)
    return interpreter


def _in_blocks(interpreter: Any) -> bool:
    """Whether weights of a fully connected layer have more scales than outputs.

    LiteRT 2.3's reference kernel computes garbage of such groups; its others are right.
    """
    try:
        tensors = {one["index"]: one for one in interpreter.get_tensor_details()}
        rows = [row for row in interpreter._get_ops_details() if row["op_name"] == "FULLY_CONNECTED"]
        weights = [tensors[int(row["inputs"][1])] for row in rows]
        return any(one["quantization_parameters"]["scales"].size > int(one["shape"][0]) for one in weights)
    except (AttributeError, KeyError, IndexError, ValueError, RuntimeError):
        return False  # a package that does not tell knows no such layers either


def _names(interpreter: Any) -> Dict[str, str]:
    """Names of the one signature -> names of tensors, as far as a runner tells; the old packages have no such thing."""
    try:
        signatures = interpreter.get_signature_list()
        if len(signatures) != 1:
            return {}
        runner = interpreter.get_signature_runner(next(iter(signatures)))
        details = dict(runner.get_input_details(), **runner.get_output_details())
        return {name: detail["name"] for name, detail in details.items()}
    except (AttributeError, ValueError, RuntimeError):
        return {}


def _ordered(wanted: List[str], found: List[Dict[str, Any]], names: Dict[str, str]) -> List[Dict[str, Any]]:
    """Tensors in the artifact's order, by tensor or signature name; in the file's own where it has other names."""
    by_name = {detail["name"]: detail for detail in found}
    tensors = [name if name in by_name else names.get(name, "") for name in wanted]
    return [by_name[name] for name in tensors] if tensors and set(tensors) <= set(by_name) else found


def _quantised(feed: Any, detail: Dict[str, Any]) -> Any:
    """Floats as the integers an integer input wants: round(x / scale) + zero point, clipped."""
    import numpy as np

    scale, zero = detail["quantization"]
    dtype = np.dtype(detail["dtype"])
    if dtype.kind not in "iu" or feed.dtype.kind != "f" or not scale:
        return feed.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(feed / scale) + zero, limits.min, limits.max).astype(dtype)


def _dequantised(output: Any, detail: Dict[str, Any]) -> Any:
    """Integers with a scale as the float32 they stand for."""
    import numpy as np

    scale, zero = detail["quantization"]
    if output.dtype.kind not in "iu" or not scale:
        return output
    return ((output.astype(np.float32) - zero) * np.float32(scale)).astype(np.float32)


def _precision(operator: Dict[str, Any], kinds: Dict[int, str]) -> str:
    """The precision an operator works in; empty for conversions and integer bookkeeping."""
    if operator["op_name"] in _CONVERSIONS:
        return ""
    read = {kinds.get(int(index), "") for index in operator["inputs"]}
    written = {kinds.get(int(index), "") for index in operator["outputs"]}
    if written & _QUANTISED:
        return sorted(written & _QUANTISED)[0]
    if "float32" in written:
        return "float32 with integer weights" if read & _QUANTISED else "float32"
    return ""
