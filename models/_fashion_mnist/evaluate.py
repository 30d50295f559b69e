"""Print the accuracy of shipped weights, read from the files of this repository.

Usage: python models/_fashion_mnist/evaluate.py --model fashion-resnet8 [--data DIR]

Evaluates on the validation split, on evaluation.npz and on the first 5,000 test images.
"""

from __future__ import annotations

import argparse
import hashlib
import tomllib
from pathlib import Path

import numpy as np
import torch
from fashion_data import (
    DATA_DIR,
    MODELS_DIR,
    TEST_LIMIT,
    Examples,
    accuracy,
    build_model,
    load_part,
    split_indices,
)
from safetensors.torch import load
from torch import nn


def load_network(name: str) -> nn.Module:
    """Build the model and load its weights, strictly, in eval mode.

    Raises ValueError if the weights' SHA-256 is not the one in model.toml.
    """
    folder = MODELS_DIR / name
    manifest = tomllib.loads((folder / "model.toml").read_text(encoding="utf-8"))
    payload = (folder / manifest["weights"]).read_bytes()
    digest = hashlib.sha256(payload).hexdigest()
    if digest != manifest["weights_sha256"]:
        raise ValueError(f"{folder}: weights have SHA-256 {digest}, not the one in model.toml")
    network = build_model(name)
    network.load_state_dict(load(payload), strict=True)
    return network.eval()


def load_npz(path: Path) -> Examples:
    """Load a file written by make_data.py; inputs uint8 [N,28,28,1] lose their last axis."""
    with np.load(path, allow_pickle=False) as arrays:
        return Examples(arrays["inputs"][..., 0], arrays["labels"])


def main() -> None:
    """Evaluate one model on its three sets."""
    parser = argparse.ArgumentParser(description="Evaluate a Fashion-MNIST model.")
    parser.add_argument("--model", required=True, help="folder below models/")
    parser.add_argument("--data", type=Path, default=DATA_DIR, help="folder of the idx.gz files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = load_network(options.model)
    training, test = load_part("train", options.data), load_part("t10k", options.data)
    sets = {
        "validation split": training.take(split_indices(training.labels)[1]),
        "evaluation.npz": load_npz(Path(__file__).resolve().parent / "evaluation.npz"),
        "test part": Examples(test.images[:TEST_LIMIT], test.labels[:TEST_LIMIT]),
    }
    for name, examples in sets.items():
        score = accuracy(network, examples)
        print(f"{options.model}: {name}, {len(examples.labels)} images: {score:.4f}")


if __name__ == "__main__":
    main()
