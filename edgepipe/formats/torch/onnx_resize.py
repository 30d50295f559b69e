"""Rules for ONNX operators that sample images anew: Resize, Upsample, GridSample.

Resize is separable: along each axis it is a product with a matrix of weights, which is computed here from the
definition (https://onnx.ai/onnx/operators/onnx__Resize.html), whatever the mode.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as nnf

from edgepipe.formats.torch.onnx_node import Node, Rule


def _resize(node: Node, x: Any, *_: Any) -> Any:
    if node.get("antialias", 0) or node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise node.refusal("antialias and keep_aspect_ratio_policy are not followed")
    if node.op == "Upsample" or node.opset < 11:  # noqa: PLR2004  where regions of interest came
        scales = node.get("scales") or node.value(1, "scales").tolist()
        sizes = [math.floor(size * scale) for size, scale in zip(x.shape, scales, strict=True)]
        axes = list(range(x.dim()))
        coordinates, region = "asymmetric", None
    else:
        axes = [axis % x.dim() for axis in node.get("axes", range(x.dim()))]
        sizes, scales = _wanted(node, [x.shape[axis] for axis in axes])
        coordinates = node.get("coordinate_transformation_mode", "half_pixel")
        region = node.value(1, "region of interest").tolist() if coordinates == "tf_crop_and_resize" else None
    for place, axis in enumerate(axes):
        if scales[place] != 1 or sizes[place] != x.shape[axis] or region:
            ends = (region[place], region[place + len(axes)]) if region else (0.0, 1.0)
            x = _along(node, x, axis, sizes[place], scales[place], coordinates, ends)
    return x


def _wanted(node: Node, have: list[int]) -> tuple[list[int], list[float]]:
    """Sizes and scales of the axes that are resized."""
    scales = node.value(2, "scales")
    if scales is not None and scales.size:
        found = [float(scale) for scale in scales.tolist()]
        return [math.floor(size * scale) for size, scale in zip(have, found, strict=True)], found
    sizes = node.ints(3, "sizes") or have
    return sizes, [size / own for size, own in zip(sizes, have, strict=True)]


def _along(node: Node, x: Any, axis: int, size: int, scale: float, coordinates: str, ends: tuple[float, float]) -> Any:
    have = x.shape[axis]
    weights = torch.zeros(size, have, dtype=torch.float64)
    outside = []
    for at in range(size):
        place = _place(node, at, have, size, scale, coordinates, ends)
        if coordinates == "tf_crop_and_resize" and not 0 <= place <= have - 1:
            outside.append(at)
            continue
        for source, weight in _weights(node, place, have):
            weights[at, source] += weight
    moved = torch.matmul(x.movedim(axis, -1).to(torch.float32), weights.to(torch.float32).t())
    if outside:
        away = torch.tensor([at in outside for at in range(size)])
        moved = torch.where(away, torch.tensor(float(node.get("extrapolation_value", 0.0))), moved)
    return moved.movedim(-1, axis).to(x.dtype)


def _place(  # noqa: PLR0911
    node: Node, at: int, have: int, size: int, scale: float, coordinates: str, ends: tuple[float, float]
) -> float:
    """Where in the input a place of the output lies."""
    match coordinates:
        case "half_pixel":
            return (at + 0.5) / scale - 0.5
        case "half_pixel_symmetric":
            middle = have / 2 * (1 - size / (scale * have))
            return middle + (at + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (at + 0.5) / scale - 0.5 if size > 1 else 0.0
        case "align_corners":
            return at * (have - 1) / (size - 1) if size > 1 else 0.0
        case "asymmetric":
            return at / scale
        case "tf_crop_and_resize":
            first, last = ends
            if size > 1:
                return first * (have - 1) + at * (last - first) * (have - 1) / (size - 1)
            return 0.5 * (first + last) * (have - 1)
    raise node.refusal(f"coordinates {coordinates} are not followed")


def _weights(node: Node, place: float, have: int) -> list[tuple[int, float]]:
    """Which places of the input a sample is made of, and in what shares."""
    mode = node.get("mode", "nearest")
    if mode == "nearest":
        return [(min(max(_nearest(node, place), 0), have - 1), 1.0)]
    low = math.floor(place)
    part = place - low
    if mode == "linear":
        shares = [(low, 1 - part), (low + 1, part)]
    else:
        a = node.get("cubic_coeff_a", -0.75)
        shares = [(low + step, _cubic(abs(part - step), a)) for step in (-1, 0, 1, 2)]
        if node.get("exclude_outside", 0):
            shares = [(at, share) for at, share in shares if 0 <= at < have]
            total = sum(share for _, share in shares)
            shares = [(at, share / total) for at, share in shares]
    return [(min(max(at, 0), have - 1), share) for at, share in shares]


def _cubic(t: float, a: float) -> float:
    """Keys' kernel, IEEE Transactions on Acoustics 29 (1981), equation 15 with its parameter ``a``."""
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0  # noqa: PLR2004


def _nearest(node: Node, place: float) -> int:
    old = node.op == "Upsample" or node.opset < 11  # noqa: PLR2004
    match "floor" if old else node.get("nearest_mode", "round_prefer_floor"):
        case "floor":
            return math.floor(place)
        case "ceil":
            return math.ceil(place)
        case "round_prefer_ceil":
            return math.floor(place + 0.5)
    return math.ceil(place - 0.5)


def _grid_sample(node: Node, x: Any, grid: Any) -> Any:
    modes = {"linear": "bilinear", "cubic": "bicubic"}
    mode = node.get("mode", "linear")
    corners = bool(node.get("align_corners", 0))
    return nnf.grid_sample(x, grid, modes.get(mode, mode), node.get("padding_mode", "zeros"), corners)


RULES: dict[str, Rule] = {"Resize": _resize, "Upsample": _resize, "GridSample": _grid_sample}
