"""Train fashion-scenes, a small detector: write its weights as safetensors, and its data sets.

Usage: python models/_fashion_mnist/train_scenes.py [--epochs N] [--seed S] [--threads N] [--data DIR] [-o DIR]

Scenes for training and calibration are made of the training part less the validation split, those for validation of
that split, those for evaluation of the first 5,000 test images. Same versions, seed, threads and processor give the
same weights. The loss is the focal loss of Lin et al. (2017, arXiv:1708.02002) on the scores of all boxes, and a
smooth L1 distance of the offsets at boxes that hold a garment.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch
from fashion_data import DATA_DIR, MODELS_DIR, TEST_LIMIT, Examples, build_model, load_part, split_indices
from numpy.typing import NDArray
from scenes import scenes
from torch import Tensor, nn
from train import save_weights

from edgepipe.tasks import object_detection

NAME = "fashion-scenes"
TRAINING = 20000
EVALUATION, CALIBRATION, VALIDATION = 500, 128, 300
BATCH = 64
PEAK_RATE = 4e-3
MEAN, STD = 0.4, 0.25
"""Of the pixels / 255; model.toml says the same."""
_POSITIVE, _IGNORED = 0.45, 0.35
_UNSURE = -2
_GAMMA, _ALPHA = 2.0, 0.35


def targets(rows: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """What each anchor should say, for rows float32 [N,M,5] and anchors' corners [A,4].

    Returns the kind int64 [N,A], -1 for nothing and -2 for too close to call, and the row's index int64 [N,A].
    """
    boxes = rows[:, None, :, :4]
    sides = (torch.minimum(corners[None, :, None, 2:], boxes[..., 2:])) - torch.maximum(
        corners[None, :, None, :2], boxes[..., :2]
    )
    shared = sides.clamp_min(0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1) + (corners[:, 2:] - corners[:, :2]).prod(-1)[None, :, None]
    iou = torch.where(rows[:, None, :, 4] < 0, torch.zeros(()), shared / (area - shared).clamp_min(1e-6))
    best, index = iou.max(2)
    chosen = best >= _POSITIVE
    top = iou.argmax(1)  # [N,M]: each garment gets its best anchor, whatever the overlap
    for slot in range(rows.shape[1]):
        there = torch.nonzero(rows[:, slot, 4] >= 0)[:, 0]
        chosen[there, top[there, slot]] = True
        index[there, top[there, slot]] = slot
    kinds = torch.gather(rows[..., 4].long(), 1, index)
    kinds = torch.where(chosen, kinds, torch.where(best > _IGNORED, _UNSURE, -1))
    return kinds, index


def loss_of(network: nn.Module, images: Tensor, rows: Tensor) -> Tensor:
    """The loss of one batch, a scalar."""
    scores, boxes = network(images)
    corners, sides = network.anchors[0], network.sides
    kinds, index = targets(rows, corners)
    wanted = nn.functional.one_hot(kinds.clamp_min(0), scores.shape[2]).float() * (kinds >= 0)[..., None]
    plain = nn.functional.binary_cross_entropy_with_logits(scores, wanted, reduction="none")
    sure = torch.exp(-plain)
    weight = _ALPHA * wanted + (1 - _ALPHA) * (1 - wanted)
    counted = (kinds != _UNSURE)[..., None]
    held = kinds >= 0
    number = held.sum().clamp_min(1)
    classified = (weight * (1 - sure) ** _GAMMA * plain * counted).sum() / number
    truth = torch.gather(rows[..., :4], 1, index[..., None].expand(-1, -1, 4))
    error = nn.functional.smooth_l1_loss(boxes / sides, truth / sides, reduction="none", beta=0.05)
    return classified + (error.sum(2) * held).sum() / number


def normalised(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 [N,S,S,1] as the network's input, float32 [N,1,S,S]."""
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def score(network: nn.Module, pixels: NDArray[np.uint8], rows: NDArray[np.float32]) -> float:
    """The task's own metric, in [0, 1]."""
    with torch.no_grad():
        found = [x.numpy() for x in network.eval()(normalised(pixels))]
    return object_detection.metric(found, rows)


def train(given: argparse.Namespace, examples: Examples) -> nn.Module:
    """Train on TRAINING scenes of ``examples``."""
    torch.set_num_threads(given.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(given.seed)
    generator = torch.Generator().manual_seed(given.seed)
    network = build_model(NAME)
    print(f"{NAME}: {sum(p.numel() for p in network.parameters())} parameters")
    steps = TRAINING // BATCH
    optimiser = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_RATE, total_steps=given.epochs * steps)
    pixels, rows = scenes(examples, TRAINING, 1000 + given.seed)
    images, boxes = normalised(pixels), torch.from_numpy(rows)
    for epoch in range(1, given.epochs + 1):
        network.train()
        total = 0.0
        for chosen in torch.randperm(TRAINING, generator=generator)[: steps * BATCH].split(BATCH):
            loss = loss_of(network, images[chosen], boxes[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        print(f"epoch {epoch}: loss {total / steps:.4f}", flush=True)
    return network.eval()


def write(path: Path, pixels: NDArray[np.uint8], rows: NDArray[np.float32]) -> None:
    """Write one data set; the same numpy and zlib give the same bytes."""
    np.savez_compressed(path, inputs=pixels, labels=rows)
    print(f"{path.name}: {len(pixels)} scenes, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")


def main() -> None:
    """Train, evaluate, write."""
    parser = argparse.ArgumentParser(description="Train the detector of clothes.")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DATA_DIR, help="folder of the idx.gz files")
    parser.add_argument("-o", "--output", type=Path, default=MODELS_DIR / NAME)
    given = parser.parse_args()
    part, test = load_part("train", given.data), load_part("t10k", given.data)
    kept, held_out = split_indices(part.labels)
    network = train(given, part.take(kept))
    record: dict[str, str | int | float] = {"model": NAME, "seed": given.seed, "epochs": given.epochs}
    print(f"sha256 {save_weights(network, given.output / 'weights.safetensors', record)}")
    write(given.output / "calibration.npz", *scenes(part.take(kept), CALIBRATION, 1))
    limited = Examples(test.images[:TEST_LIMIT], test.labels[:TEST_LIMIT])
    for name, examples, count, seed in (
        ("validation", part.take(held_out), VALIDATION, 2),
        ("evaluation", limited, EVALUATION, 3),
    ):
        pixels, rows = scenes(examples, count, seed)
        write(given.output / f"{name}.npz", pixels, rows)
        print(f"{name} mAP@.5 {score(network, pixels, rows):.4f}", flush=True)


if __name__ == "__main__":
    main()
