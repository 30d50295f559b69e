"""A tiny trained-like network, its data, and exports of it shared by all tests of one run."""

import functools
import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np

from edgepipe import deploy, export, model
from edgepipe.agent import probe
from edgepipe.cache import Cache

NETWORK = """
import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.pool(self.depth(self.stem(x))).flatten(1))


def build():
    return Tiny()
"""

CARD = """
name = "tiny"
task = "image-classification"
weights = "weights.safetensors"
weights_sha256 = "{sha}"
labels = ["a", "b", "c", "d"]
[[inputs]]
name = "image"
shape = [3, 8, 8]
[[outputs]]
name = "scores"
shape = [4]
[preprocessing]
layout = "NCHW"
range = [0.0, 255.0]
scale = 0.00392156862745098
mean = [0.5, 0.4, 0.3]
std = [0.2, 0.3, 0.4]
color = "RGB"
[data]
layout = "NHWC"
calibration = "calibration.npz"
evaluation = "evaluation.npz"
[accuracy]
metric = "top1"
floor = 0.1
"""


def write_model(folder: Path) -> Path:
    """Write the model folder: network, weights (seeded), card and data sets of 32 images of [8, 8, 3]."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(NETWORK)
    scope: dict = {}
    exec(NETWORK, scope)
    torch.manual_seed(0)
    net = scope["build"]()
    for _ in range(20):  # statistics of the batch normalisation
        net(torch.randn(16, 3, 8, 8) * 2)
    save_file(net.state_dict(), folder / "weights.safetensors")
    sha = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    (folder / "model.toml").write_text(CARD.format(sha=sha))
    random = np.random.default_rng(1)
    for name in ("calibration", "evaluation"):
        images = random.integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", inputs=images, labels=random.integers(0, 4, 32))
    return folder


@functools.cache
def home() -> Path:
    """A folder for this run of the tests, kept out of the user's own; it is removed at exit."""
    import atexit
    import shutil

    path = Path(tempfile.mkdtemp(prefix="edgepipe-tests-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def use_home() -> None:
    os.environ["EDGEPIPE_HOME"] = str(home())
    os.environ.pop("EDGEPIPE_CACHE", None)


@functools.cache
def tiny() -> model.Model:
    use_home()
    return model.load(str(write_model(home() / "models" / "tiny")))


@functools.cache
def made(format_name: str, recipe: str = "none") -> export.Made:
    """The tiny model exported; made once, and each stage of it found in the cache by the next recipe."""
    use_home()
    return export.make(tiny(), recipe, format_name, cache=Cache(home() / "work"))


def prepared(layout: str, count: int = 32) -> np.ndarray:
    """The evaluation images as the tiny network wants them: computed here by hand, not by the code under test."""
    images = np.load(tiny().folder / "evaluation.npz")["inputs"][:count].astype(np.float32) / 255
    images = (images - np.array([0.5, 0.4, 0.3], np.float32)) / np.array([0.2, 0.3, 0.4], np.float32)
    return images.transpose(0, 3, 1, 2).copy() if layout == "NCHW" else images


def torch_outputs(count: int = 32) -> np.ndarray:
    import torch

    with torch.no_grad():
        return tiny().module(torch.from_numpy(prepared("NCHW", count))).numpy()


def run(artifact, feeds: np.ndarray) -> np.ndarray:
    """Run a file by its native runtime, one sample at a time, with the graph optimiser of onnxruntime off."""
    if artifact.format == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(artifact.path, options)
        return np.concatenate([session.run(None, {artifact.inputs[0].name: x[None]})[0] for x in feeds])
    if artifact.format == "tflite":
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=artifact.path, num_threads=1)
        interpreter.allocate_tensors()
        found = []
        for x in feeds:
            interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x[None])
            interpreter.invoke()
            found.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).copy())
        return np.concatenate(found)
    import openvino

    compiled = openvino.Core().compile_model(artifact.path, "CPU", openvino_exact())
    return np.concatenate([compiled(x[None])[compiled.outputs[0]].copy() for x in feeds])


@functools.cache
def saturates() -> bool:
    """Whether int8 products saturate on this machine: there a right file is judged by float arithmetic."""
    return deploy.saturates(probe.board({}))


def openvino_exact() -> dict[str, str]:
    """Properties by which the plug-in answers what the file says, with its int8 kernels where these are exact."""
    return {"INFERENCE_PRECISION_HINT": "f32"} | ({"LP_TRANSFORMS_MODE": "NO"} if saturates() else {})


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
