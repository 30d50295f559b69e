"""Rules for ONNX operators that compute values: one by one, along axes, as products. https://onnx.ai/onnx/operators/."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.nn import functional as nnf

from edgepipe.formats.torch.onnx_node import Node, Rule

_AXES_AS_INPUT = 13
_FLATTENING = 13  # before it, Softmax and its like see a matrix
_TYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.int32,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float32,
    11: torch.float32,
    12: torch.int64,
    13: torch.int64,
    16: torch.float32,
}
"""TensorProto's element types -> torch's; half, double and bfloat16 are computed in float32, as TFLite does."""


def dtype_of(node: Node, code: int) -> Any:
    """The torch type for an element type of ONNX.

    Raises:
        UsageError: TFLite has no such type.
    """
    if code not in _TYPES:
        from onnx import TensorProto

        kind = TensorProto.DataType.Name(code).lower() if code in TensorProto.DataType.values() else str(code)
        raise node.refusal(f"its elements are of type {kind}")
    return _TYPES[code]


def _div(_: Node, a: Any, b: Any) -> Any:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _mod(node: Node, a: Any, b: Any) -> Any:
    if node.get("fmod", 0):
        return a - torch.trunc(a / b) * b if a.is_floating_point() else a - torch.div(a, b, rounding_mode="trunc") * b
    return a - torch.div(a, b, rounding_mode="floor") * b


def _pow(_: Node, a: Any, b: Any) -> Any:
    if a.is_floating_point():
        return torch.pow(a, b.to(a.dtype))
    return torch.round(torch.pow(a.float(), b.float())).to(a.dtype)


def _shift(node: Node, a: Any, b: Any) -> Any:
    wide, by = a.to(torch.int64), torch.pow(2.0, b.float()).to(torch.int64)
    left = node.get("direction") == "LEFT"
    return (wide * by if left else torch.div(wide, by, rounding_mode="floor")).to(a.dtype)


def _fold(combine: Any) -> Rule:
    return lambda _, *inputs: functools.reduce(combine, inputs)


def _clip(node: Node, x: Any, low: Any = None, high: Any = None) -> Any:
    if "min" in node.attributes or "max" in node.attributes:
        low, high = (None if node.get(key) is None else torch.tensor(node.get(key)) for key in ("min", "max"))
    x = x if low is None else torch.maximum(x, low.to(x.dtype))
    return x if high is None else torch.minimum(x, high.to(x.dtype))


def _isinf(node: Node, x: Any) -> Any:
    up, down = x == float("inf"), x == float("-inf")
    wanted = [side for side, key in ((up, "detect_positive"), (down, "detect_negative")) if node.get(key, 1)]
    return functools.reduce(torch.logical_or, wanted) if wanted else torch.zeros_like(up)


def _celu(node: Node, x: Any) -> Any:
    alpha = node.get("alpha", 1.0)
    return torch.clamp(x, min=0) + torch.clamp(alpha * (torch.exp(x / alpha) - 1), max=0)


def _selu(node: Node, x: Any) -> Any:
    alpha, gamma = node.get("alpha", 1.67326319217681884765625), node.get("gamma", 1.05070102214813232421875)
    return gamma * (torch.clamp(x, min=0) + torch.clamp(alpha * torch.exp(x) - alpha, max=0))


def _elu(node: Node, x: Any) -> Any:
    alpha = node.get("alpha", 1.0)
    return torch.where(x < 0, alpha * (torch.exp(x) - 1), x)


def _shrink(node: Node, x: Any) -> Any:
    limit, bias = node.get("lambd", 0.5), node.get("bias", 0.0)
    zero = torch.zeros_like(x)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, zero))


def _prelu(_: Node, x: Any, slope: Any) -> Any:
    return torch.where(x < 0, x * slope, x)


def _cast(node: Node, x: Any, like: Any = None) -> Any:
    if node.op == "CastLike":
        return x.to(like.dtype)
    dtype = dtype_of(node, node.get("to"))
    return x != 0 if dtype == torch.bool else x.to(dtype)


def _along(compute: Any) -> Rule:
    """Softmax and its like: along an axis, or (before opset 13) along all from that axis on."""

    def rule(node: Node, x: Any) -> Any:
        if node.opset >= _FLATTENING:
            return compute(x, node.get("axis", -1))
        axis = node.get("axis", 1) % max(x.dim(), 1)
        flat = x.reshape([*x.shape[:axis], -1])
        return compute(flat, axis).reshape(x.shape)

    return rule


def _softmax(x: Any, axis: int) -> Any:
    return torch.softmax(x, axis)


def _log_softmax(x: Any, axis: int) -> Any:
    return torch.log_softmax(x, axis)


def _hardmax(x: Any, axis: int) -> Any:
    """One where the largest value stands first."""
    places = torch.arange(x.shape[axis]).reshape([-1 if at == axis % x.dim() else 1 for at in range(x.dim())])
    largest = x == torch.amax(x, axis, keepdim=True)
    first = torch.amin(torch.where(largest, places, x.shape[axis]), axis, keepdim=True)
    return (places == first).to(x.dtype)


def _reduced(compute: Any) -> Rule:
    def rule(node: Node, x: Any, axes: Any = None) -> Any:  # noqa: ARG001
        found = node.ints(1, "axes")
        if not found and node.get("noop_with_empty_axes", 0):
            return x
        return compute(
            x, sorted(axis % max(x.dim(), 1) for axis in found or range(x.dim())), bool(node.get("keepdims", 1))
        )

    return rule


def _sum(x: Any, axes: list[int], keep: bool) -> Any:
    return torch.sum(x, axes, keepdim=keep).to(x.dtype) if axes else x


def _mean(x: Any, axes: list[int], keep: bool) -> Any:
    return torch.mean(x.float(), axes, keepdim=keep).to(x.dtype) if axes else x


def _extreme(compute: Any) -> Any:
    def found(x: Any, axes: list[int], keep: bool) -> Any:
        if not axes:
            return x
        return (
            compute(x.to(torch.int32), axes, keepdim=keep).bool()
            if x.dtype == torch.bool
            else compute(x, axes, keepdim=keep)
        )

    return found


def _prod(x: Any, axes: list[int], keep: bool) -> Any:
    for axis in reversed(axes):
        parts = [x.select(axis, place) for place in range(x.shape[axis])]
        x = functools.reduce(torch.mul, parts) if parts else torch.ones_like(x.sum(axis))
    return x.reshape([1 if axis in axes else size for axis, size in _sizes(x, axes)]) if keep else x


def _sizes(x: Any, axes: list[int]) -> list[tuple[int, int]]:
    """(axis, size) of the shape before ``axes`` were reduced away."""
    rest = iter(x.shape)
    return [(axis, 1 if axis in axes else next(rest)) for axis in range(x.dim() + len(axes))]


def _log_sum_exp(x: Any, axes: list[int], keep: bool) -> Any:
    return torch.logsumexp(x, axes, keepdim=keep)


def _arg(compute: Any) -> Rule:
    def rule(node: Node, x: Any) -> Any:
        axis, keep = node.get("axis", 0), bool(node.get("keepdims", 1))
        if node.get("select_last_index", 0):
            return x.shape[axis] - 1 - compute(torch.flip(x, [axis % x.dim()]), axis, keepdim=keep)
        return compute(x, axis, keepdim=keep)

    return rule


def _cumsum(node: Node, x: Any, axis: Any) -> Any:  # noqa: ARG001
    along = (node.ints(1, "axis") or [0])[0] % x.dim()
    x = torch.flip(x, [along]) if node.get("reverse", 0) else x
    found = torch.cumsum(x, along).to(x.dtype)
    found = found - x if node.get("exclusive", 0) else found
    return torch.flip(found, [along]) if node.get("reverse", 0) else found


def _topk(node: Node, x: Any, k: Any = None) -> Any:  # noqa: ARG001
    count = (node.ints(1, "k") or [1])[0]
    found = torch.topk(x, count, node.get("axis", -1), bool(node.get("largest", 1)), True)
    return found[0], found[1]


def _gemm(node: Node, a: Any, b: Any, c: Any = None) -> Any:
    a, b = a.t() if node.get("transA", 0) else a, b.t() if node.get("transB", 0) else b
    found = torch.matmul(a, b)
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    found = found if alpha == 1 else alpha * found
    return found if c is None else found + (c if beta == 1 else beta * c)


def _matmul(_: Node, a: Any, b: Any) -> Any:
    return torch.matmul(a, b) if a.is_floating_point() else torch.matmul(a.float(), b.float()).to(a.dtype)


def _trilu(node: Node, x: Any, k: Any = None) -> Any:  # noqa: ARG001
    shift = (node.ints(1, "k") or [0])[0]
    rows, columns = torch.arange(x.shape[-2])[:, None], torch.arange(x.shape[-1])[None, :]
    keep = columns - rows >= shift if node.get("upper", 1) else columns - rows <= shift
    return torch.where(keep, x, torch.zeros_like(x))


def _gelu(node: Node, x: Any) -> Any:
    return nnf.gelu(x, approximate=node.get("approximate", "none"))


def _det(node: Node, x: Any) -> Any:
    if x.shape[-1] != 2:  # noqa: PLR2004
        raise node.refusal("only determinants of 2 x 2 are followed")
    return x[..., 0, 0] * x[..., 1, 1] - x[..., 0, 1] * x[..., 1, 0]


def _one(compute: Any) -> Rule:
    return lambda _, *inputs: compute(*inputs)


_SAME = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "IsNaN"),
    *("Log", "Neg", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Sinh", "Sqrt", "Tan", "Tanh"),
)  # the same word in torch, in lower case

RULES: dict[str, Rule] = {
    **{name: _one(getattr(torch, name.lower())) for name in _SAME},
    "Not": _one(torch.logical_not),
    "And": _one(torch.logical_and),
    "Or": _one(torch.logical_or),
    "Xor": _one(torch.logical_xor),
    "Add": _one(torch.add),
    "Sub": _one(torch.sub),
    "Mul": _one(torch.mul),
    "Div": _div,
    "Mod": _mod,
    "Pow": _pow,
    "BitShift": _shift,
    "Equal": _one(torch.eq),
    "Greater": _one(torch.gt),
    "GreaterOrEqual": _one(torch.ge),
    "Less": _one(torch.lt),
    "LessOrEqual": _one(torch.le),
    "Where": _one(torch.where),
    "Min": _fold(torch.minimum),
    "Max": _fold(torch.maximum),
    "Sum": _fold(torch.add),
    "Mean": lambda _, *inputs: functools.reduce(torch.add, inputs) / len(inputs),
    "Clip": _clip,
    "IsInf": _isinf,
    "Softplus": lambda _, x: torch.clamp(x, min=0) + torch.log1p(torch.exp(-torch.abs(x))),
    "Softsign": lambda _, x: x / (1 + torch.abs(x)),
    "Elu": _elu,
    "Celu": _celu,
    "Selu": _selu,
    "LeakyRelu": lambda node, x: torch.where(x < 0, x * node.get("alpha", 0.01), x),
    "PRelu": _prelu,
    "ThresholdedRelu": lambda node, x: torch.where(x > node.get("alpha", 1.0), x, torch.zeros_like(x)),
    "HardSigmoid": lambda node, x: torch.clamp(node.get("alpha", 0.2) * x + node.get("beta", 0.5), 0, 1),
    "HardSwish": lambda _, x: x * torch.clamp(x / 6 + 0.5, 0, 1),
    "Mish": lambda _, x: x * torch.tanh(nnf.softplus(x)),
    "Gelu": _gelu,
    "Shrink": _shrink,
    "Softmax": _along(_softmax),
    "LogSoftmax": _along(_log_softmax),
    "Hardmax": _along(_hardmax),
    "Cast": _cast,
    "CastLike": _cast,
    "ReduceSum": _reduced(_sum),
    "ReduceMean": _reduced(_mean),
    "ReduceMax": _reduced(_extreme(torch.amax)),
    "ReduceMin": _reduced(_extreme(torch.amin)),
    "ReduceProd": _reduced(_prod),
    "ReduceL1": _reduced(lambda x, axes, keep: _sum(torch.abs(x), axes, keep)),
    "ReduceL2": _reduced(lambda x, axes, keep: torch.sqrt(_sum(x * x, axes, keep))),
    "ReduceSumSquare": _reduced(lambda x, axes, keep: _sum(x * x, axes, keep)),
    "ReduceLogSum": _reduced(lambda x, axes, keep: torch.log(_sum(x, axes, keep))),
    "ReduceLogSumExp": _reduced(_log_sum_exp),
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "CumSum": _cumsum,
    "TopK": _topk,
    "Einsum": lambda node, *inputs: torch.einsum(node.get("equation"), *inputs),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Trilu": _trilu,
    "Det": _det,
}
