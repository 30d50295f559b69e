"""Train one of the Fashion-MNIST models and write its weights as safetensors.

Usage: python models/_fashion_mnist/train.py --model fashion-resnet8 [--epochs N] [--seed S]
       [--threads N] [--data DIR] [-o FILE]

Training uses the training part less the validation split, with horizontal flips and shifts;
the weights are those of the last epoch, whatever the validation accuracy. The test part is
read once, after training, and only its first 5,000 images. Same versions, seed, threads and
processor give the same weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fashion_data import (
    DATA_DIR,
    MODELS_DIR,
    TEST_LIMIT,
    Examples,
    accuracy,
    build_model,
    load_part,
    normalise,
    split_indices,
)
from safetensors.torch import save
from torch import Tensor, nn

BATCH = 128
MAX_SHIFT = 2
"""Largest shift of a training image, in pixels, along either axis."""
MIRRORED = 0.5
"""Share of the training images that are mirrored left to right."""
PEAK_RATE = 0.2
WARM_UP = 0.2
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
SMOOTHING = 0.05


@dataclass(frozen=True)
class Options:
    """The command line: which model, for how long, from where, to where."""

    model: str
    epochs: int
    seed: int
    threads: int
    data: Path
    output: Path


def parse_options(arguments: list[str] | None = None) -> Options:
    """Parse the command line; exits with status 2 on a wrong one."""
    parser = argparse.ArgumentParser(description="Train a Fashion-MNIST model.")
    parser.add_argument("--model", required=True, help="folder below models/")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DATA_DIR, help="folder of the idx.gz files")
    parser.add_argument("-o", "--output", type=Path, help="default: weights.safetensors there")
    given = parser.parse_args(arguments)
    if given.epochs < 1 or given.threads < 1:
        parser.error("--epochs and --threads must be at least 1")
    output = given.output or MODELS_DIR / given.model / "weights.safetensors"
    return Options(given.model, given.epochs, given.seed, given.threads, given.data, output)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flip and shift each of the images uint8 [N,28,28] at random; the border is black.

    A share MIRRORED is flipped left to right; shifts are uniform in -MAX_SHIFT..MAX_SHIFT.
    """
    count, height, width = images.shape
    padded = nn.functional.pad(images, (MAX_SHIFT,) * 4)
    shifts = torch.randint(0, 2 * MAX_SHIFT + 1, (2, count, 1), generator=generator)
    rows = torch.arange(height) + shifts[0]
    columns = torch.arange(width) + shifts[1]
    mirrored = torch.rand(count, 1, generator=generator) < MIRRORED
    columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(count)[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]]


def batches(examples: Examples, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch in random order: inputs float32 [B,1,28,28], labels int64 [B].

    The last, incomplete batch is left out.
    """
    images, labels = torch.from_numpy(examples.images), torch.from_numpy(examples.labels)
    order = torch.randperm(len(labels), generator=generator)
    for start in range(0, len(labels) - BATCH + 1, BATCH):
        chosen = order[start : start + BATCH]
        inputs = normalise(augment(images[chosen], generator))
        yield inputs.contiguous(memory_format=torch.channels_last), labels[chosen]


def make_optimiser(network: nn.Module) -> torch.optim.SGD:
    """Return SGD with Nesterov momentum; weight decay spares biases and normalisation."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    spared = [p for p in network.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.SGD(
        groups,
        lr=PEAK_RATE,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        nesterov=True,
    )


def save_weights(network: nn.Module, path: Path, record: dict[str, str | int | float]) -> str:
    """Write the state (contiguous, on the CPU) to `path` atomically; return its SHA-256.

    The record goes into the header's metadata as JSON under the one key "training": several
    keys would be written in an order that changes from run to run.
    Raises OSError if the file cannot be written; an earlier file is then left as it was.
    """
    state = {name: value.detach().contiguous() for name, value in network.state_dict().items()}
    payload = save(state, {"training": json.dumps(record)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(payload)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return hashlib.sha256(payload).hexdigest()


def train_epoch(
    network: nn.Module,
    examples: Examples,
    optimiser: torch.optim.SGD,
    schedule: torch.optim.lr_scheduler.OneCycleLR,
    generator: torch.Generator,
) -> float:
    """Train for one epoch and return the mean training loss (nats, with label smoothing)."""
    network.train()
    criterion = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    total, count = 0.0, 0
    for inputs, labels in batches(examples, generator):
        loss = criterion(network(inputs), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        total, count = total + float(loss.detach()), count + 1
    return total / count


def train(options: Options) -> nn.Module:
    """Train as the options say, writing the weights after every epoch; return the network."""
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    part = load_part("train", options.data)
    kept, held_out = split_indices(part.labels)
    training, validation = part.take(kept), part.take(held_out)
    network = build_model(options.model)
    convert: Any = network.to  # whose stub lacks memory_format
    convert(memory_format=torch.channels_last)
    optimiser = make_optimiser(network)
    steps = options.epochs * (len(kept) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PEAK_RATE, total_steps=steps, pct_start=WARM_UP, cycle_momentum=False
    )
    print(f"{options.model}: {sum(p.numel() for p in network.parameters())} parameters")
    for epoch in range(1, options.epochs + 1):
        start = time.perf_counter()
        loss = train_epoch(network, training, optimiser, schedule, generator)
        score = accuracy(network, validation)
        record: dict[str, str | int | float] = {
            "model": options.model,
            "seed": options.seed,
            "epoch": epoch,
            "epochs": options.epochs,
            "validation_accuracy": score,
        }
        digest = save_weights(network, options.output, record)
        seconds = time.perf_counter() - start
        line = f"epoch {epoch}: loss {loss:.4f}, validation {score:.4f}, {seconds:.0f} s"
        print(line, flush=True)
    print(f"sha256 {digest}")
    print(f"validation accuracy {score:.4f} ({len(held_out)} images)")
    return network


def main() -> None:
    """Train, then evaluate once on the first TEST_LIMIT images of the test part."""
    options = parse_options()
    network = train(options)
    part = load_part("t10k", options.data)
    test = Examples(part.images[:TEST_LIMIT], part.labels[:TEST_LIMIT])
    print(f"test accuracy {accuracy(network, test):.4f} (first {TEST_LIMIT} images)")


if __name__ == "__main__":
    main()
