"""Rules for ONNX operators that move, cut and join values. Every shape is known: what depends on data is refused."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch.nn import functional as nnf

from edgepipe.formats.torch.onnx_node import Node, Rule


def _shape(node: Node, x: Any) -> Any:
    sizes = list(x.shape)
    return torch.tensor(sizes[slice(node.get("start", 0), node.get("end", len(sizes)))], dtype=torch.int64)


def _reshape(node: Node, x: Any, shape: Any = None) -> Any:  # noqa: ARG001
    wanted = node.ints(1, "shape") or []
    if not node.get("allowzero", 0):
        wanted = [x.shape[place] if size == 0 else size for place, size in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(node: Node, x: Any) -> Any:
    axis = node.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _squeeze(node: Node, x: Any, axes: Any = None) -> Any:  # noqa: ARG001
    found = node.ints(1, "axes")
    gone = [axis % x.dim() for axis in found] if found else [place for place, size in enumerate(x.shape) if size == 1]
    return x.reshape([size for place, size in enumerate(x.shape) if place not in gone])


def _unsqueeze(node: Node, x: Any, axes: Any = None) -> Any:  # noqa: ARG001
    found = node.ints(1, "axes") or []
    rank = x.dim() + len(found)
    new = {axis % rank for axis in found}
    sizes = iter(x.shape)
    return x.reshape([1 if place in new else next(sizes) for place in range(rank)])


def _split(node: Node, x: Any, sizes: Any = None) -> Any:  # noqa: ARG001
    axis, found = node.get("axis", 0), node.ints(1, "split")
    if not found:
        each = -(-x.shape[axis] // node.outputs)
        found = [min(each, x.shape[axis] - each * place) for place in range(node.outputs)]
    begins = itertools.accumulate([0, *found[:-1]])
    return tuple(x.narrow(axis, begin, size) for begin, size in zip(begins, found, strict=True))


def _slice(node: Node, x: Any, *_: Any) -> Any:
    starts, ends = node.ints(1, "starts") or [], node.ints(2, "ends") or []
    axes = node.ints(3, "axes") or list(range(len(starts)))
    steps = node.ints(4, "steps") or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places = range(x.shape[axis])[slice(start, end if step > 0 or end >= -x.shape[axis] else None, step)]
        if step > 0:
            index = [slice(None)] * x.dim()
            index[axis] = slice(places.start, places.stop, step)
            x = x[tuple(index)]
        else:
            x = torch.index_select(x, axis, torch.tensor(list(places), dtype=torch.int64))
    return x


def _expand(node: Node, x: Any, shape: Any) -> Any:  # noqa: ARG001
    wanted = node.ints(1, "shape") or []
    return x.expand(torch.broadcast_shapes(tuple(x.shape), tuple(wanted))).clone()


def _pad(node: Node, x: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Any:  # noqa: ARG001
    found = node.ints(1, "pads") or []
    where = [axis % x.dim() for axis in node.ints(3, "axes") or range(x.dim())]
    half, mode = len(found) // 2, node.get("mode", "constant")
    if mode == "constant":
        fill = node.get("value", 0.0) if "value" in node.attributes or value is None else node.value(2, "value").item()
        flat = [0] * (2 * x.dim())
        for place, axis in enumerate(where):
            flat[2 * (x.dim() - 1 - axis)], flat[2 * (x.dim() - 1 - axis) + 1] = found[place], found[place + half]
        return nnf.pad(x, flat, value=fill)
    for place, axis in enumerate(where):
        size, before, after = x.shape[axis], found[place], found[place + half]
        places = [_mirrored(at, size, mode) for at in range(-before, size + after)]
        if before or after:
            x = torch.index_select(x, axis, torch.tensor(places, dtype=torch.int64))
    return x


def _mirrored(at: int, size: int, mode: str) -> int:
    if mode == "edge":
        return min(max(at, 0), size - 1)
    if mode == "wrap":
        return at % size
    period = max(2 * (size - 1), 1)
    return min(at % period, period - at % period) if size > 1 else 0


def _whole(indices: Any, size: int) -> Any:
    """Indices without negative ones."""
    wide = indices.to(torch.int64)
    return torch.where(wide < 0, wide + size, wide)


def _gather(node: Node, x: Any, indices: Any) -> Any:
    axis = node.get("axis", 0) % x.dim()
    found = torch.index_select(x, axis, _whole(indices, x.shape[axis]).reshape(-1))
    return found.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def _gather_elements(node: Node, x: Any, indices: Any) -> Any:
    axis = node.get("axis", 0) % x.dim()
    return torch.gather(x, axis, _whole(indices, x.shape[axis]))


def _flat_places(shape: list[int], indices: Any) -> Any:
    """The places of the rows that index vectors (the last axis of ``indices``) point at, as one number each."""
    depth = indices.shape[-1]
    parts = [_whole(indices[..., place], shape[place]) * math.prod(shape[place + 1 : depth]) for place in range(depth)]
    return sum(parts[1:], parts[0])


def _gather_nd(node: Node, x: Any, indices: Any) -> Any:
    batch = node.get("batch_dims", 0)
    lead = list(x.shape[:batch])
    if batch:  # the batch's own places are put in front of each index vector
        grids = torch.meshgrid(*(torch.arange(size) for size in lead), indexing="ij")
        extra = indices.dim() - 1 - batch
        own = [grid.reshape([*lead, *[1] * extra, 1]).expand([*indices.shape[:-1], 1]) for grid in grids]
        indices = torch.cat([*own, indices.to(torch.int64)], -1)
    depth = indices.shape[-1]
    flat = x.reshape([math.prod(x.shape[:depth]), *x.shape[depth:]])
    places = _flat_places(list(x.shape), indices)
    return torch.index_select(flat, 0, places.reshape(-1)).reshape([*indices.shape[:-1], *x.shape[depth:]])


def _reduction(node: Node) -> str:
    kind = str(node.get("reduction", "none"))
    if kind not in ("none", "add"):
        raise node.refusal(f"reduction {kind} is not followed")
    return kind


def _scatter_elements(node: Node, x: Any, indices: Any, updates: Any) -> Any:
    axis = node.get("axis", 0) % x.dim()
    places = _whole(indices, x.shape[axis])
    if _reduction(node) == "add":
        return torch.scatter_add(x, axis, places, updates)
    return torch.scatter(x, axis, places, updates)


def _scatter_nd(node: Node, x: Any, indices: Any, updates: Any) -> Any:
    depth = indices.shape[-1]
    flat = x.reshape([math.prod(x.shape[:depth]), *x.shape[depth:]])
    places = _flat_places(list(x.shape), indices).reshape(-1)
    rows = updates.reshape([-1, *x.shape[depth:]])
    add = _reduction(node) == "add"
    return torch.index_put(flat, (places,), rows, accumulate=add).reshape(x.shape)


def _one_hot(node: Node, indices: Any, depth: Any, values: Any) -> Any:  # noqa: ARG001
    count = (node.ints(1, "depth") or [1])[0]
    axis = node.get("axis", -1)
    axis = axis + indices.dim() + 1 if axis < 0 else axis
    places = torch.arange(count).reshape([-1 if at == axis else 1 for at in range(indices.dim() + 1)])
    hot = _whole(indices, count).unsqueeze(axis) == places
    return torch.where(hot, values[1], values[0])


def _depth_to_space(node: Node, x: Any) -> Any:
    block, (batch, depth, height, width) = node.get("blocksize"), x.shape
    rest = depth // block**2
    if node.get("mode", "DCR") == "DCR":
        parts = x.reshape(batch, block, block, rest, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(batch, rest, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(batch, rest, height * block, width * block)


def _space_to_depth(node: Node, x: Any) -> Any:
    block, (batch, depth, height, width) = node.get("blocksize"), x.shape
    parts = x.reshape(batch, depth, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(batch, depth * block**2, height // block, width // block)


def _filled(node: Node, shape: Any) -> Any:  # noqa: ARG001
    fill = node.get("value")
    return (
        torch.full(node.ints(0, "input") or [], 0.0)
        if fill is None
        else fill.reshape(()).expand(node.ints(0, "input") or []).clone()
    )


def _range(node: Node, first: Any, *_: Any) -> Any:
    start, limit, step = (node.value(place, "limits").item() for place in range(3))
    return torch.arange(start, limit, step).to(first.dtype)


def _reverse_sequence(node: Node, x: Any, lengths: Any) -> Any:
    time, batch = node.get("time_axis", 0), node.get("batch_axis", 1)
    at = torch.arange(x.shape[time])[:, None]
    ends = lengths.to(torch.int64)[None, :]
    places = torch.where(at < ends, ends - 1 - at, at)
    places = places if batch > time else places.t()
    places = places.reshape([*places.shape, *[1] * (x.dim() - 2)]).expand(x.shape)
    return torch.gather(x, time, places)


def _compress(node: Node, x: Any, condition: Any) -> Any:  # noqa: ARG001
    keep = [place for place, one in enumerate(node.value(1, "condition").tolist()) if one]
    axis = node.get("axis")
    x, axis = (x.reshape(-1), 0) if axis is None else (x, axis)
    return torch.index_select(x, axis, torch.tensor(keep, dtype=torch.int64))


def _nonzero(node: Node, x: Any) -> Any:
    node.value(0, "input")
    return torch.nonzero(x).t()


def _dropout(node: Node, x: Any, *_: Any) -> Any:
    if node.has(2) and node.value(2, "training mode").any() and (not node.has(1) or node.value(1, "ratio").any()):
        raise node.refusal("it is in training mode")
    return (x.clone(), torch.ones_like(x, dtype=torch.bool))[: node.outputs]


def _eye_like(node: Node, x: Any) -> Any:
    from edgepipe.formats.torch.onnx_math import dtype_of

    rows, columns = torch.arange(x.shape[0])[:, None], torch.arange(x.shape[1])[None, :]
    values = columns - rows == node.get("k", 0)
    dtype = x.dtype if node.get("dtype") is None else dtype_of(node, node.get("dtype"))
    return values.to(dtype)


def _tile(node: Node, x: Any, repeats: Any) -> Any:  # noqa: ARG001
    return x.repeat(node.ints(1, "repeats") or [])


def _transpose(node: Node, x: Any) -> Any:
    return x.permute(node.get("perm", list(itertools.accumulate([x.dim() - 1] + [-1] * (x.dim() - 1)))))


def _concat(node: Node, *inputs: Any) -> Any:
    return torch.cat(inputs, node.get("axis", 1))


RULES: dict[str, Rule] = {
    "Identity": lambda _, x: x.clone(),
    "Dropout": _dropout,
    "Shape": _shape,
    "Size": lambda _, x: torch.tensor(x.numel(), dtype=torch.int64),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterElements": _scatter_elements,
    "Scatter": _scatter_elements,
    "ScatterND": _scatter_nd,
    "OneHot": _one_hot,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "ConstantOfShape": _filled,
    "Range": _range,
    "ReverseSequence": _reverse_sequence,
    "Compress": _compress,
    "NonZero": _nonzero,
    "EyeLike": _eye_like,
}
