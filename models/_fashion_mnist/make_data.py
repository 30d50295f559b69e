"""Write calibration.npz, training.npz, validation.npz and evaluation.npz beside this file.

Usage: python models/_fashion_mnist/make_data.py [--data DIR] [-o DIR]

calibration.npz holds 256 images of the training part, none of them in the validation split;
training.npz 6,000 such images, for fine-tuning where the whole training part is not installed;
validation.npz 1,000 images of the validation split, for choosing between candidates;
evaluation.npz the first 1,000 images of the test part, in their order. All have the arrays
`inputs` uint8 [N,28,28,1], raw pixels 0..255, and `labels` int64 [N]. The same numpy and zlib
give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from pathlib import Path

import numpy as np
from fashion_data import CLASSES, DATA_DIR, MEAN, STD, Examples, load_part, split_indices
from numpy.typing import NDArray

CALIBRATION = 256
TRAINING = 6000
VALIDATION = 1000
EVALUATION = 1000


def balanced(examples: Examples, indices: NDArray[np.int64], count: int) -> Examples:
    """Choose `count` examples at `indices`, classes in turn.

    The labels run 0, 1, .. 9, 0, 1, ..: any two classes differ by one example at most, and a
    prefix of the set is as balanced as the whole.
    """
    by_class = [indices[examples.labels[indices] == label] for label in range(CLASSES)]
    chosen = [by_class[i % CLASSES][i // CLASSES] for i in range(count)]
    return examples.take(np.array(chosen, dtype=np.int64))


def check_statistics(training: Examples) -> tuple[float, float]:
    """Return mean and standard deviation of the pixels / 255, over all training images.

    Raises ValueError if they are not MEAN and STD to four decimals.
    """
    counts = np.bincount(training.images.ravel(), minlength=256)
    levels = np.arange(256) / 255.0
    mean = float((counts * levels).sum() / counts.sum())
    deviation = float(np.sqrt((counts * (levels - mean) ** 2).sum() / counts.sum()))
    if round(mean, 4) != MEAN or round(deviation, 4) != STD:
        raise ValueError(f"mean {mean:.6f}, deviation {deviation:.6f}: not {MEAN}, {STD}")
    return mean, deviation


def write_npz(path: Path, examples: Examples) -> str:
    """Write `examples` to `path` atomically as a compressed npz; return its SHA-256."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            inputs = np.ascontiguousarray(examples.images[..., np.newaxis])
            np.savez_compressed(stream, inputs=inputs, labels=examples.labels)
        digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return digest


def main() -> None:
    """Check the normalisation constants, write both files, print their digests."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Make the calibration and evaluation sets.")
    parser.add_argument("--data", type=Path, default=DATA_DIR, help="folder of the idx.gz files")
    parser.add_argument("-o", "--output", type=Path, default=here, help="folder to write to")
    options = parser.parse_args()
    training = load_part("train", options.data)
    mean, deviation = check_statistics(training)
    print(f"training part: mean {mean:.6f}, standard deviation {deviation:.6f}")
    test = load_part("t10k", options.data)
    kept, held_out = split_indices(training.labels)
    sets = {
        "calibration.npz": balanced(training, kept, CALIBRATION),
        "training.npz": balanced(training, kept, TRAINING),
        "validation.npz": balanced(training, held_out, VALIDATION),
        "evaluation.npz": Examples(test.images[:EVALUATION], test.labels[:EVALUATION]),
    }
    for name, examples in sets.items():
        digest = write_npz(options.output / name, examples)
        print(f"{name}: {len(examples.labels)} images, sha256 {digest}")


if __name__ == "__main__":
    main()
