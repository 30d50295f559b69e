"""Train fashion-vae: write its weights as safetensors, and its data sets.

Usage: python models/_fashion_mnist/train_vae.py [--epochs N] [--seed S] [--threads N] [--data DIR] [-o DIR]

Trains on the training part less the validation split; the loss is minus the evidence lower bound: cross entropy of each
pixel as a Bernoulli probability, plus the divergence of the code from a standard normal one. Same versions, seed,
threads and processor give the same weights. calibration.npz and evaluation.npz hold images of the
files beside this one, and standard normal noise, seeded.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch
from evaluate import load_npz
from fashion_data import DATA_DIR, MODELS_DIR, TEST_LIMIT, build_model, load_part, split_indices
from torch import Tensor, nn
from train import save_weights

BATCH = 128
PEAK_RATE = 2e-3
CODE = 16
EVALUATION = 1000
NAME = "fashion-vae"


def bound(network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
    """Minus the evidence lower bound in nats, averaged over images float32 [N,1,28,28]: a scalar."""
    noise = torch.randn(len(images), CODE, generator=generator)
    logits, _, mean, log_variance = network(images, noise)
    pixels = nn.functional.binary_cross_entropy_with_logits(logits, images, reduction="sum")
    divergence = 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum()
    return (pixels + divergence) / len(images)


def train(epochs: int, seed: int, threads: int, data: Path) -> tuple[nn.Module, float]:
    """Train on all but the validation split; return the network and its bound on the validation split, in nats."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    part = load_part("train", data)
    pixels = torch.from_numpy(part.images).unsqueeze(1).float() / 255
    kept, held_out = (torch.from_numpy(x) for x in split_indices(part.labels))
    network = build_model(NAME)
    steps = len(kept) // BATCH
    optimiser = torch.optim.Adam(network.parameters(), lr=PEAK_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_RATE, total_steps=epochs * steps, pct_start=0.1)
    for epoch in range(1, epochs + 1):
        network.train()
        order, total = kept[torch.randperm(len(kept), generator=generator)], 0.0
        for chosen in order[: steps * BATCH].split(BATCH):
            loss = bound(network, pixels[chosen], generator)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        score = evaluate(network, pixels[held_out])
        print(f"epoch {epoch}: loss {total / steps:.2f}, validation {score:.2f}", flush=True)
    return network.eval(), score


def evaluate(network: nn.Module, pixels: Tensor) -> float:
    """Minus the bound in nats, with seeded noise."""
    with torch.no_grad():
        return float(bound(network.eval(), pixels, torch.Generator().manual_seed(1)))


def write_data(folder: Path) -> None:
    """Write the npz files; the same numpy and zlib give the same bytes."""
    here = Path(__file__).resolve().parent
    for seed, name in enumerate(("calibration.npz", "evaluation.npz")):
        images = load_npz(here / name).images[:EVALUATION, ..., np.newaxis]
        noise = np.random.default_rng(seed).standard_normal((len(images), CODE)).astype(np.float16)
        np.savez_compressed(folder / name, inputs=images, noise=noise)
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        print(f"{name}: {len(images)} images, sha256 {digest}")


def main() -> None:
    """Train, then evaluate once on the first TEST_LIMIT images of the test part."""
    parser = argparse.ArgumentParser(description="Train the Fashion-MNIST autoencoder.")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DATA_DIR, help="folder of the idx.gz files")
    parser.add_argument("-o", "--output", type=Path, default=MODELS_DIR / NAME)
    given = parser.parse_args()
    network, score = train(given.epochs, given.seed, given.threads, given.data)
    record: dict[str, str | int | float] = {"model": NAME, "seed": given.seed, "epochs": given.epochs}
    record["validation_bound_nats"] = score
    print(f"sha256 {save_weights(network, given.output / 'weights.safetensors', record)}")
    test = torch.from_numpy(load_part("t10k", given.data).images[:TEST_LIMIT]).unsqueeze(1).float() / 255
    print(f"test -ELBO {evaluate(network, test):.2f} nats (first {TEST_LIMIT} images)")
    write_data(given.output)


if __name__ == "__main__":
    main()
