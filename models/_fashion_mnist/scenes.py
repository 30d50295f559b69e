"""Scenes with known boxes: clothes of Fashion-MNIST on made-up backgrounds.

A scene is 64x64 grey pixels. Its background is smooth noise with stripes or a gradient, drawn from the generator alone:
no photograph is used. One to three garments, 20 to 40 pixels in size, lie on it; their boxes are those of the pixels
that belong to the garment, and two boxes overlap by a tenth at most. The ten kinds of Fashion-MNIST become five.
"""

from __future__ import annotations

import numpy as np
from fashion_data import Examples
from numpy.typing import NDArray
from PIL import Image

SIZE = 64
NAMES = ("top", "trouser", "dress", "shoe", "bag")
KIND = np.array([0, 1, 0, 2, 0, 3, 0, 3, 4, 3])
"""Of each label of Fashion-MNIST, the index in NAMES."""
MOST = 3
_SOLID = 24  # pixels brighter than this belong to the garment
_TRIES = 12
_HALF = 0.5
_OVERLAP = 0.1

Pixels = NDArray[np.float32]


def background(generator: np.random.Generator) -> Pixels:
    """Smooth noise plus stripes or a gradient: float32 [SIZE,SIZE], 0..160."""
    cells = int(generator.integers(2, 9))
    coarse = generator.uniform(0, 1, (cells, cells)).astype(np.float32)
    smooth = np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    angle = generator.uniform(0, np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    pattern = along if generator.random() < _HALF else 0.5 + 0.5 * np.sin(2 * np.pi * generator.uniform(1, 6) * along)
    share = generator.uniform(0, 1)
    mixed = share * smooth + (1 - share) * pattern
    low, high = np.sort(generator.uniform(0, 160, 2))
    return np.clip(low + (high - low) * mixed, 0, 160).astype(np.float32)


def overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2)."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    return shared / (float(np.prod(a[2:] - a[:2])) + float(np.prod(b[2:] - b[:2])) - shared)


def garment(image: NDArray[np.uint8], generator: np.random.Generator) -> tuple[Pixels, NDArray[np.bool_]]:
    """One garment in a random size and orientation, cut to its own pixels: grey values and which are its own."""
    size = int(generator.integers(20, 41))
    flipped = image[:, ::-1] if generator.random() < _HALF else image
    scaled = np.asarray(Image.fromarray(flipped).resize((size, size), Image.Resampling.BILINEAR)).astype(np.float32)
    solid = scaled > _SOLID
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    cut = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return 40 + scaled[cut] * np.float32(generator.uniform(0.6, 0.84)), solid[cut]


def scene(examples: Examples, generator: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """One scene: pixels uint8 [SIZE,SIZE] and rows (x1, y1, x2, y2, kind) in shares of the side, float32 [MOST,5].

    Rows beyond the last garment are -1.
    """
    canvas = background(generator)
    boxes: list[NDArray[np.float64]] = []
    labels = np.full((MOST, 5), -1, np.float32)
    for _ in range(int(generator.integers(1, MOST + 1))):
        index = int(generator.integers(len(examples.labels)))
        pixels, solid = garment(examples.images[index], generator)
        height, width = solid.shape
        for _ in range(_TRIES):
            x, y = int(generator.integers(0, SIZE - width + 1)), int(generator.integers(0, SIZE - height + 1))
            box = np.array([x, y, x + width, y + height], np.float64)
            if all(overlap(box, other) <= _OVERLAP for other in boxes):
                view = canvas[y : y + height, x : x + width]
                view[solid] = pixels[solid]
                labels[len(boxes)] = [*(box / SIZE), KIND[examples.labels[index]]]
                boxes.append(box)
                break
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), labels


def scenes(examples: Examples, count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """``count`` scenes: pixels uint8 [count,SIZE,SIZE,1] and their rows float32 [count,MOST,5]."""
    generator = np.random.default_rng(seed)
    made = [scene(examples, generator) for _ in range(count)]
    return np.stack([pixels for pixels, _ in made])[..., np.newaxis], np.stack([rows for _, rows in made])
