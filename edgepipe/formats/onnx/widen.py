"""Integer weights inside a float graph: stored small, widened to float32 when a runtime loads the file.

The operators that do it are written once as ONNX functions and called for each tensor. They read constants only, so a
runtime folds them and runs the float kernels at their full speed. ONNX Runtime folds no DequantizeLinear: with one on
a weight it widens the weight again in each run and loses its fast convolution layout (a 3x3 convolution of 64 channels
took 1.5 times as long). Nibbles are packed into bytes, since the 4-bit types need opset 21 and kernels that old
runtimes lack; BitShift is there since opset 11.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

DOMAIN = "edgepipe"
BYTES, NIBBLES = "WidenBytes", "WidenNibbles"
LEAST_OPSET = 11
_SHRINK = 24  # narrower ranges tried for each block of 4 bits


@dataclass(frozen=True)
class Blocks:
    """A tensor cut into blocks that share a scale: reshape it to ``shape``; ``axes`` run inside a block."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def size(self) -> int:
        """Weights in a block."""
        return math.prod(self.shape[axis] for axis in self.axes)


def blocks(shape: tuple[int, ...], axis: int, group: int) -> Blocks:
    """Blocks of ``group`` weights of one output channel (``axis``); whole channels where that does not divide."""
    inner = math.prod(shape) // shape[axis]
    count = inner // group if group and inner % group == 0 else 1
    if axis == 0:
        return Blocks((shape[0], count, inner // count), (2,))
    if len(shape) == 2:  # noqa: PLR2004  a matrix [inputs, outputs]
        return Blocks((count, inner // count, shape[1]), (1,))
    return Blocks(shape, tuple(i for i in range(len(shape)) if i != axis))


def to_bytes(weight: Array, cut: Blocks) -> tuple[Array, Array]:
    """Symmetric int8: integers in [-127, 127] and float32 scales, both in the shape of the blocks."""
    import numpy as np

    values = weight.reshape(cut.shape)
    scale = (np.abs(values).max(axis=cut.axes, keepdims=True) / 127).astype(np.float32)
    scale[scale < np.finfo(np.float32).tiny] = 1  # nothing but zeros
    return np.clip(np.rint(values / scale), -127, 127).astype(np.int8), scale


def to_nibbles(weight: Array, cut: Blocks) -> tuple[Array, Array, Array]:
    """Asymmetric 4 bits: integers 0 to 15, float32 scales and zero points 0 to 15, in the shape of the blocks.

    Of ranges from the whole block's down to half of it, each block takes the one of least squared error.
    """
    import numpy as np

    values = weight.reshape(cut.shape).astype(np.float32)
    low = np.minimum(values.min(axis=cut.axes, keepdims=True), 0)
    high = np.maximum(values.max(axis=cut.axes, keepdims=True), 0)
    best: Any = None
    for shrink in np.linspace(1, 0.5, _SHRINK):
        scale = ((high - low) * np.float32(shrink) / 15).astype(np.float32)
        scale[scale < np.finfo(np.float32).tiny] = 1
        zero = np.clip(np.rint(-low * np.float32(shrink) / scale), 0, 15)
        integers = np.clip(np.rint(values / scale) + zero, 0, 15)
        error = ((scale * (integers - zero) - values) ** 2).sum(axis=cut.axes, keepdims=True)
        if best is None:
            best = [error, integers, scale, zero]
        else:
            better = error < best[0]
            best = [np.where(better, new, old) for new, old in zip((error, integers, scale, zero), best, strict=True)]
    _, integers, scale, zero = best
    return integers.astype(np.uint8), scale.astype(np.float32), zero.astype(np.uint8)


def pack(nibbles: Array) -> Array:
    """An even number of values 0 to 15 as bytes: the first half in the low nibbles, the second in the high ones."""
    import numpy as np

    low, high = np.split(nibbles.reshape(-1), 2)
    packed: Array = low | (high << 4)
    return packed


def unpack(packed: Array) -> Array:
    """What `pack` packed, flat."""
    import numpy as np

    return np.concatenate([packed & 15, packed >> 4])


def insert(model: Any, tensor: Any, cut: Blocks, bits: int) -> None:
    """Store the initialiser ``tensor`` in ``bits`` (8, or 4 where its size is even); all readers get it widened."""
    from onnx import helper

    from edgepipe.formats.onnx import graph

    weight, name = graph.array(tensor), tensor.name
    model.graph.initializer.remove(tensor)
    inputs = {"shape": weight.shape}
    if bits == 8:  # noqa: PLR2004
        integers, scale = to_bytes(weight, cut)
        parts: dict[str, Any] = {"bytes": integers, "scale": scale}
    else:
        nibbles, scale, zero = to_nibbles(weight, cut)
        parts = {"packed": pack(nibbles), "scale": scale, "zero": zero}
        inputs = {"blocks": cut.shape, **inputs}
    given = [_constant(model, f"{name}_{part}", value) for part, value in parts.items()]
    given += [_shape(model, value) for value in inputs.values()]
    function = BYTES if bits == 8 else NIBBLES  # noqa: PLR2004
    model.graph.node.insert(0, helper.make_node(function, given, [name], f"{name}_widened", domain=DOMAIN))
    _define(model, function)


def _constant(model: Any, name: str, values: Array) -> str:
    from onnx import numpy_helper

    model.graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def _shape(model: Any, shape: tuple[int, ...]) -> str:
    """The name of a constant that holds ``shape``; tensors of the same shape share it."""
    import numpy as np

    name = "shape_" + "x".join(map(str, shape))
    if all(tensor.name != name for tensor in model.graph.initializer):
        _constant(model, name, np.array(shape, np.int64))
    return name


def _define(model: Any, name: str) -> None:
    """Write the function into the model, once."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    from edgepipe.formats.onnx import graph

    if any(function.name == name and function.domain == DOMAIN for function in model.functions):
        return
    node, real = helper.make_node, TensorProto.FLOAT
    if name == BYTES:
        inputs = ["bytes", "scale", "shape"]
        body = [node("Cast", ["bytes"], ["float"], to=real), node("Mul", ["float", "scale"], ["scaled"])]
    else:
        inputs = ["packed", "scale", "zero", "blocks", "shape"]
        body = [
            node("Constant", [], ["four"], value=numpy_helper.from_array(np.uint8(4))),
            node("Constant", [], ["sixteen"], value=numpy_helper.from_array(np.uint8(16))),
            node("Mod", ["packed", "sixteen"], ["low"]),
            node("BitShift", ["packed", "four"], ["high"], direction="RIGHT"),
            node("Concat", ["low", "high"], ["nibbles"], axis=0),
            node("Cast", ["nibbles"], ["flat"], to=real),
            node("Reshape", ["flat", "blocks"], ["float"]),
            node("Cast", ["zero"], ["middle"], to=real),
            node("Sub", ["float", "middle"], ["centred"]),
            node("Mul", ["centred", "scale"], ["scaled"]),
        ]
    body.append(node("Reshape", ["scaled", "shape"], ["weight"]))
    version = helper.make_opsetid("", graph.opset(model))
    model.functions.append(helper.make_function(DOMAIN, name, inputs, ["weight"], body, [version]))
    if all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    model.ir_version = max(model.ir_version, 8)  # the first with functions
