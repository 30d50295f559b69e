"""Small ONNX graphs by hand, their data and their outputs."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

RANDOM = np.random.default_rng(0)


def weight(*shape):
    """Weights of the size that keeps the variance of what goes through."""
    return (RANDOM.normal(size=shape) * (2 / max(1, np.prod(shape[1:]))) ** 0.5).astype(np.float32)


def save(path: Path, nodes, constants, inputs, outputs, opset=17, ir_version=8) -> str:
    """Write a model. ``inputs`` and ``outputs``: name -> shape (None is a free size), all float32."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = ir_version
    onnx.save(model, path)
    return str(path)


def samples(path: Path, **arrays) -> str:
    np.savez(path, **arrays)
    return str(path)


def run(path: str, *, optimise=False, **feeds):
    """The first output for each sample of ``feeds``, one at a time unless the file takes more."""
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    count = len(next(iter(feeds.values())))
    return np.concatenate(
        [session.run(None, {name: value[i : i + 1] for name, value in feeds.items()})[0] for i in range(count)]
    )


def noise_db(before, after) -> float:
    """Signal to noise in dB: higher is closer."""
    return float(10 * np.log10((before**2).sum() / max(((before - after) ** 2).sum(), 1e-30)))
