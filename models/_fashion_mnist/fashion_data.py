"""Fashion-MNIST from its idx files: reading, the fixed validation split, normalisation.

The idx format is the one of the MNIST database: a big-endian header (two zero bytes, the
element type, the number of dimensions, one uint32 per dimension), then the elements.
"""

from __future__ import annotations

import gzip
import importlib.util
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

DATA_DIR = Path("/usr/share/datasets/fashion-mnist")
MODELS_DIR = Path(__file__).resolve().parent.parent
CLASSES = 10
TEST_LIMIT = 5000
"""Only the first TEST_LIMIT images of the test part are used, for final evaluation."""
VALIDATION_PER_CLASS = 500
SPLIT_SEED = 2017
MEAN = 0.2860
"""Mean of the training part's pixels divided by 255, over all 60,000 images."""
STD = 0.3530
"""Standard deviation of the same pixels; `make_data.py` recomputes and checks both."""

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
_UBYTE = 0x08
_FIXED = 4
"""Bytes of an idx header before the dimensions."""


class Examples(NamedTuple):
    """Raw images uint8 [N,28,28], 0..255, and class labels int64 [N], 0..9."""

    images: Images
    labels: Labels

    def take(self, indices: NDArray[np.int64]) -> Examples:
        """Return the examples at `indices` int64 [M], in that order."""
        return Examples(self.images[indices], self.labels[indices])


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a gzip-compressed idx file of unsigned bytes into an array of its own shape.

    Raises ValueError if the header is not that of an unsigned-byte idx file or the size
    differs from what the header states; OSError if the file cannot be read.
    """
    raw = gzip.decompress(path.read_bytes())
    if len(raw) < _FIXED or raw[:3] != bytes((0, 0, _UBYTE)):
        raise ValueError(f"{path}: not an idx file of unsigned bytes")
    dims = raw[3]
    start = _FIXED + 4 * dims
    if len(raw) < start:
        raise ValueError(f"{path}: truncated idx header")
    shape = struct.unpack(f">{dims}I", raw[_FIXED:start])
    values = np.frombuffer(raw, dtype=np.uint8, offset=start)
    if values.size != int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"{path}: {values.size} elements do not fill shape {shape}")
    return values.reshape(shape)


def load_part(part: str, directory: Path = DATA_DIR) -> Examples:
    """Load the part "train" (60,000 examples) or "t10k" (10,000) from `directory`.

    Raises ValueError if images and labels do not belong together, and as `read_idx` does.
    """
    images = read_idx(directory / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(directory / f"{part}-labels-idx1-ubyte.gz").astype(np.int64)
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise ValueError(f"{directory}: {part} has images {images.shape}, labels {labels.shape}")
    return Examples(images, labels)


def split_indices(labels: Labels) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split labels int64 [N] into indices for training and for validation, both shuffled.

    Validation gets VALIDATION_PER_CLASS examples of each class. The split depends on
    SPLIT_SEED alone, never on a training seed.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels)).astype(np.int64)
    held_out = np.zeros(len(labels), dtype=np.bool_)
    for label in range(CLASSES):
        held_out[order[labels[order] == label][:VALIDATION_PER_CLASS]] = True
    return order[~held_out[order]], order[held_out[order]]


def normalise(images: Tensor) -> Tensor:
    """Turn raw images uint8 [N,28,28] into the network's input float32 [N,1,28,28]."""
    return ((images.to(torch.float32) / 255.0 - MEAN) / STD).unsqueeze(1)


def build_model(name: str, models: Path = MODELS_DIR) -> nn.Module:
    """Call build() of models/NAME/model.py.

    Raises FileNotFoundError if there is no such file, TypeError if build() returns something
    other than a module.
    """
    path = models / name / "model.py"
    if not path.is_file():
        raise FileNotFoundError(f"no such model: {path}")
    spec = importlib.util.spec_from_file_location("model", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path}: not importable")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.build()
    if not isinstance(network, nn.Module):
        raise TypeError(f"{path}: build() returned {type(network).__name__}")
    return network


def accuracy(network: nn.Module, examples: Examples, batch: int = 500) -> float:
    """Return the top-1 accuracy, 0..1, on `examples`; leaves the network in eval mode."""
    network.eval()
    correct = 0
    for start in range(0, len(examples.labels), batch):
        inputs = normalise(torch.from_numpy(examples.images[start : start + batch].copy()))
        with torch.inference_mode():
            predicted = network(inputs).argmax(dim=1).numpy()
        correct += int((predicted == examples.labels[start : start + batch]).sum())
    return correct / len(examples.labels)
