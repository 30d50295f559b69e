"""One case after another in one process: export by the public way, run both files, hold them against each other.

Cases come as JSON lines on stdin, answers go as JSON lines to stdout. The process is itself the child that heavy steps
run in, so they are called directly; if it dies, `tests.conformance.run` starts another one.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgepipe import isolate
from edgepipe.errors import BoardError, EdgepipeError

_WIDEST = 1e-3
RELATIVE, ABSOLUTE = 2e-3, 1e-4  # of float32 outputs against the source's runtime: operators, and whole networks


def _here(target: str, kwargs: dict[str, Any], **_: Any) -> Any:
    """`isolate.call` without a child of its own, with the same errors."""
    module, _, name = target.partition(":")
    try:
        plain = json.loads(json.dumps(kwargs, default=str))
        return json.loads(json.dumps(getattr(importlib.import_module(module), name)(**plain)))
    except EdgepipeError:
        raise
    except Exception as error:
        raise BoardError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", target) from None


def judge(path: str, format_name: str, feeds: list[Any]) -> tuple[str, str]:
    """``(verdict, why)``: right, wrong, refused, unexplained, or source (its own runtime does not run it)."""
    try:
        wanted = _reference(path, feeds)
    except Exception as error:
        return "source", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if not wanted or any(getattr(array, "dtype", np.dtype(object)).kind not in "fiub" for array in wanted):
        return "source", "its outputs are not tensors of numbers"
    if chance := _random(path):
        return "source", f"its answer is a matter of chance: {chance}"
    verdict = _converted(path, format_name, feeds, wanted)
    if verdict[0] == "wrong" and (gap := _softmax_gap(path, feeds)) > _WIDEST:
        return "source", f"a softmax of values so large that neighbouring float32 numbers are {gap:g} apart"
    return verdict


def _converted(path: str, format_name: str, feeds: list[Any], wanted: list[Any]) -> tuple[str, str]:
    from edgepipe import export, model
    from edgepipe.cache import Cache

    with tempfile.TemporaryDirectory(prefix="edgepipe-") as folder:
        try:
            options = export.ExportOptions(dynamic={} if format_name == "tflite" else {"": [0]})
            made = export.make(model.load(path), "none", format_name, options, cache=Cache(Path(folder)))
        except BoardError as error:
            return "unexplained", f"{error.what[:300]}"
        except EdgepipeError as error:
            return "refused", error.what[:300]
        except Exception as error:
            return "unexplained", f"{type(error).__name__}: {str(error)[:200]}"
        return _compared(made.artifact, feeds, wanted)


def _reference(path: str, feeds: list[Any]) -> list[Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    named = dict(zip([value.name for value in session.get_inputs()], feeds, strict=True))
    return session.run(None, named)


_CHANCE = ("RandomNormal", "RandomUniform", "Bernoulli", "Multinomial")


def _random(path: str) -> str:
    """The operator that makes an answer a matter of chance; empty where there is none."""
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    return next((node.op_type for node in nodes if node.op_type.startswith(_CHANCE)), "")


def _softmax_gap(path: str, feeds: list[Any]) -> float:
    """The distance of neighbouring float32 numbers at the largest input of a softmax; 0 without one.

    The networks of the onnx wheel have constant weights, and some reach 1e9: the order of a sum alone decides there
    which class wins, so that no two runtimes need agree.
    """
    import onnx
    import onnxruntime

    graph = onnx.load(path, load_external_data=False)
    names = [node.input[0] for node in graph.graph.node if node.op_type in ("Softmax", "LogSoftmax")]
    if not names:
        return 0.0
    kept = {value.name for value in graph.graph.output}
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in kept)
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        named = dict(zip([value.name for value in session.get_inputs()], feeds, strict=True))
        found = session.run(names, named)
    except Exception:
        return 0.0  # weights beside the file: the case is judged as it is
    return max(float(np.spacing(np.float32(_largest(values)))) for values in found)


def _compared(artifact: Any, feeds: list[Any], wanted: list[Any]) -> tuple[str, str]:
    from edgepipe.agent import runtimes
    from edgepipe.schema import RunOptions

    try:
        module = runtimes.find(runtimes.runtime_for(artifact.format))
        session = module.load(artifact.path, RunOptions(threads=1, optimize=False), artifact)
        have = session.run([_fed(feed) for feed in feeds])
    except Exception as error:
        return "unexplained", f"the file does not run: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if len(have) != len(wanted):
        return "wrong", f"{len(have)} outputs instead of {len(wanted)}"
    for place, (ours, theirs) in enumerate(zip(have, wanted, strict=True)):
        if ours.size != theirs.size or [n for n in ours.shape if n != 1] != [n for n in theirs.shape if n != 1]:
            return "wrong", f"output {place} is {list(ours.shape)} instead of {list(theirs.shape)}"
        a, b = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
        least = 1.0 if theirs.dtype in (np.uint8, np.int8) else ABSOLUTE * max(1.0, _largest(b))
        if not np.allclose(a, b, rtol=RELATIVE, atol=least, equal_nan=True):
            return "wrong", f"output {place} differs by up to {np.nanmax(np.abs(a - b)):.2g}"
    return "right", ""


def _fed(feed: Any) -> Any:
    return np.ascontiguousarray(feed) if feed.ndim else feed


def _largest(values: Any) -> float:
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size else 0.0


def feeds_of(path: Path) -> list[Any]:
    """The case's own inputs, or seeded ones of the shapes the file says where it has none."""
    import onnx
    from onnx import numpy_helper

    files = sorted((path.parent / "test_data_set_0").glob("input_*.pb"), key=lambda file: int(file.stem[6:]))
    if files:
        return [numpy_helper.to_array(onnx.load_tensor(str(file))) for file in files]
    model = onnx.load(str(path), load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    random = np.random.default_rng(0)
    feeds = []
    for value in [value for value in model.graph.input if value.name not in weights]:
        shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feeds.append(random.normal(size=shape).astype(kind))
    return feeds


def main() -> None:
    """Answer until stdin ends. The answers have a descriptor of their own: converters print."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    isolate.call = _here
    for line in sys.stdin:
        case = json.loads(line)
        try:
            feeds = feeds_of(Path(case["path"]))
        except Exception as error:
            verdict = "source", f"its inputs are not tensors: {type(error).__name__}"
        else:
            verdict = judge(case["path"], case["format"], feeds)
        answers.write(json.dumps([verdict[0], verdict[1]]) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
