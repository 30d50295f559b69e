"""Rules for ONNX operators that are layers of networks: convolutions, pools, normalisations, recurrences, losses."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as nnf

from edgepipe.formats.torch.onnx_node import Node, Rule


def _pads(node: Node, sizes: list[int], kernel: list[int]) -> list[tuple[int, int]]:
    """(before, after) for each spatial axis, as ``pads`` or ``auto_pad`` say."""
    rank = len(sizes)
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    auto = node.get("auto_pad", "NOTSET")
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        flat = node.get("pads", [0] * (2 * rank)) if auto == "NOTSET" else [0] * (2 * rank)
        return list(zip(flat[:rank], flat[rank:], strict=True))
    found = []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + dilation * (width - 1) + 1 - size, 0)
        small, large = total // 2, total - total // 2
        found.append((small, large) if auto == "SAME_UPPER" else (large, small))
    return found


def _padded(x: Any, pads: list[tuple[int, int]], value: float = 0.0) -> Any:
    flat = [size for pair in reversed(pads) for size in pair]
    return nnf.pad(x, flat, value=value) if any(flat) else x


def _conv(node: Node, x: Any, weight: Any, bias: Any = None) -> Any:
    kernel = list(weight.shape[2:])
    rank = len(kernel)
    pads = _pads(node, list(x.shape[2:]), kernel)
    even = all(before == after for before, after in pads)
    x = x if even else _padded(x, pads)
    run = (nnf.conv1d, nnf.conv2d, nnf.conv3d)[rank - 1]
    padding = [before for before, _ in pads] if even else 0
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    return run(x, weight, bias, strides, padding, dilations, node.get("group", 1))


def _conv_transpose(node: Node, x: Any, weight: Any, bias: Any = None) -> Any:
    rank = weight.dim() - 2
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    more = node.get("output_padding", [0] * rank)
    reach = [dilations[at] * (weight.shape[2 + at] - 1) + 1 for at in range(rank)]
    full = [(x.shape[2 + at] - 1) * strides[at] + reach[at] + more[at] for at in range(rank)]
    wanted, auto = node.get("output_shape"), node.get("auto_pad", "NOTSET")
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [x.shape[2 + at] * strides[at] for at in range(rank)]
    if wanted is None:
        cuts = _pads(node, list(x.shape[2:]), list(weight.shape[2:]))
    else:
        totals = [full[at] - wanted[-rank:][at] for at in range(rank)]
        halves = [(total // 2, total - total // 2) for total in totals]
        cuts = halves if auto == "SAME_UPPER" else [(after, before) for before, after in halves]
    run = (nnf.conv_transpose1d, nnf.conv_transpose2d, nnf.conv_transpose3d)[rank - 1]
    # The output paddings may be larger than the strides here, which torch refuses: so they are padded and cut instead.
    found = run(x, weight, None, strides, 0, 0, node.get("group", 1), dilations)
    found = _padded(found, [(max(-before, 0), more[at] + max(-after, 0)) for at, (before, after) in enumerate(cuts)])
    index = [slice(None), slice(None)]
    for at, (before, after) in enumerate(cuts):
        index.append(slice(max(before, 0), found.shape[2 + at] - max(after, 0)))
    found = found[tuple(index)]
    return found if bias is None else found + bias.reshape([1, -1, *[1] * rank])


def _ceiled(node: Node, x: Any, kernel: list[int], pads: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pads with what ``ceil_mode`` adds behind: a last window that begins inside the input or its front pad."""
    if not node.get("ceil_mode", 0):
        return pads
    rank = len(kernel)
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    found = []
    for at, (before, after) in enumerate(pads):
        size, reach = x.shape[2 + at], dilations[at] * (kernel[at] - 1) + 1
        count = -(-(size + before + after - reach) // strides[at]) + 1
        count -= (count - 1) * strides[at] >= size + before
        found.append((before, max((count - 1) * strides[at] + reach - size - before, after)))
    return found


def _max_pool(node: Node, x: Any) -> Any:
    if node.outputs > 1:
        raise node.refusal("the places of the maxima are not followed")
    kernel = node.get("kernel_shape")
    rank = len(kernel)
    given = x.dtype
    x = x if x.is_floating_point() else x.float()
    pads = _ceiled(node, x, kernel, _pads(node, list(x.shape[2:]), kernel))
    x = _padded(x, pads, value=torch.finfo(x.dtype).min)
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    if max(dilations) > 1 or rank == 3:  # noqa: PLR2004
        return _windows(x, kernel, strides, dilations, "max").to(given)
    run = (nnf.max_pool1d, nnf.max_pool2d)[rank - 1]
    return run(x, kernel, strides).to(given)


def _average_pool(node: Node, x: Any) -> Any:
    kernel = node.get("kernel_shape")
    rank = len(kernel)
    plain = _pads(node, list(x.shape[2:]), kernel)
    pads = _ceiled(node, x, kernel, plain)
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    runs = (nnf.avg_pool1d, nnf.avg_pool2d)

    def pooled(values: Any) -> Any:
        if rank == 3 or max(dilations) > 1:  # noqa: PLR2004
            return _windows(values, kernel, strides, dilations, "sum") / math.prod(kernel)
        return runs[rank - 1](values, kernel, strides)

    found = pooled(_padded(x, pads))
    if not any(map(any, pads)):
        return found
    ones = torch.ones([1, 1, *x.shape[2:]], dtype=x.dtype)
    counted = _padded(ones, plain, value=1.0) if node.get("count_include_pad", 0) else _padded(ones, plain)
    counted = _padded(counted, [(0, wide[1] - own[1]) for wide, own in zip(pads, plain, strict=True)])
    return found / pooled(counted)


def _windows(x: Any, kernel: list[int], strides: list[int], dilations: list[int], kind: str) -> Any:
    """Pool by one strided slice for each place of the window."""
    found = None
    ends = [x.shape[2 + at] - dilations[at] * (kernel[at] - 1) for at in range(len(kernel))]
    for place in range(math.prod(kernel)):
        index, rest = [slice(None), slice(None)], place
        for at in reversed(range(len(kernel))):
            rest, own = divmod(rest, kernel[at])
            index.insert(2, slice(own * dilations[at], own * dilations[at] + ends[at], strides[at]))
        part = x[tuple(index)]
        found = part if found is None else torch.maximum(found, part) if kind == "max" else found + part
    return found


def _global(compute: Any) -> Rule:
    return lambda _, x: compute(x, list(range(2, x.dim())), True)


def _lp_pool(node: Node, x: Any) -> Any:
    power, kernel = node.get("p", 2), node.get("kernel_shape")
    rank = len(kernel)
    x = _padded(torch.abs(x) ** power, _ceiled(node, x, kernel, _pads(node, list(x.shape[2:]), kernel)))
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    return _windows(x, kernel, strides, dilations, "sum") ** (1.0 / power)


def _channels(values: Any, x: Any) -> Any:
    return values.reshape([1, -1, *[1] * (x.dim() - 2)])


def _batch_norm(node: Node, x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
    if node.get("training_mode", 0) or node.outputs > 1:
        raise node.refusal("it is in training mode")
    factor = scale / torch.sqrt(variance + node.get("epsilon", 1e-5))
    return x * _channels(factor, x) + _channels(bias - mean * factor, x)


def _centred(x: Any, axes: list[int], epsilon: float) -> tuple[Any, Any, Any]:
    mean = x.mean(axes, keepdim=True)
    gap = x - mean
    inverse = 1 / torch.sqrt((gap * gap).mean(axes, keepdim=True) + epsilon)
    return gap * inverse, mean, inverse


def _instance_norm(node: Node, x: Any, scale: Any, bias: Any) -> Any:
    found, _, _ = _centred(x, list(range(2, x.dim())), node.get("epsilon", 1e-5))
    return found * _channels(scale, x) + _channels(bias, x)


def _layer_norm(node: Node, x: Any, scale: Any, bias: Any = None) -> Any:
    axis = node.get("axis", -1) % x.dim()
    found, mean, inverse = _centred(x, list(range(axis, x.dim())), node.get("epsilon", 1e-5))
    found = found * scale if bias is None else found * scale + bias
    return (found, mean, inverse)[: node.outputs] if node.outputs > 1 else found


def _group_norm(node: Node, x: Any, scale: Any, bias: Any) -> Any:
    groups = node.get("num_groups")
    parts = x.reshape([x.shape[0], groups, -1])
    found, _, _ = _centred(parts, [2], node.get("epsilon", 1e-5))
    if scale.numel() == groups and scale.numel() != x.shape[1]:  # of each group, before opset 21
        found = found * scale.reshape(1, -1, 1) + bias.reshape(1, -1, 1)
        return found.reshape(x.shape)
    return found.reshape(x.shape) * _channels(scale, x) + _channels(bias, x)


def _mean_variance(node: Node, x: Any) -> Any:
    axes = node.get("axes", [0, 2, 3])
    gap = x - x.mean(axes, keepdim=True)
    return gap / (torch.sqrt((gap * gap).mean(axes, keepdim=True)) + 1e-9)


def _lrn(node: Node, x: Any) -> Any:
    size = node.get("size")
    before = (size - 1) // 2
    flat = nnf.pad((x * x).reshape(x.shape[0], x.shape[1], -1), (0, 0, before, size - 1 - before))
    total = sum(flat[:, at : at + x.shape[1]] for at in range(size)).reshape(x.shape)
    return x / (node.get("bias", 1.0) + node.get("alpha", 1e-4) / size * total) ** node.get("beta", 0.75)


def _losses(node: Node, logs: Any, target: Any, weight: Any) -> Any:
    """-weight[target] * logs[target], over samples and places, reduced as the node says."""
    classes, ignored = logs.shape[1], node.get("ignore_index")
    places = torch.arange(classes).reshape([1, -1, *[1] * (logs.dim() - 2)])
    hot = (target.to(torch.int64).unsqueeze(1) == places).to(logs.dtype)
    if ignored is not None:
        hot = torch.where((target == ignored).unsqueeze(1), torch.zeros_like(hot), hot)
    hot = hot if weight is None else hot * _channels(weight, logs)
    each = -torch.where(hot != 0, logs * hot, torch.zeros_like(logs)).sum(1)
    kind = node.get("reduction", "mean")
    if kind == "none":
        return each
    return each.sum() if kind == "sum" else each.sum() / hot.sum()


def _nll(node: Node, logs: Any, target: Any, weight: Any = None) -> Any:
    return _losses(node, logs, target, weight)


def _cross_entropy(node: Node, scores: Any, target: Any, weight: Any = None) -> Any:
    logs = torch.log_softmax(scores, 1)
    loss = _losses(node, logs, target, weight)
    return (loss, logs) if node.outputs > 1 else loss


def _range_of(node: Node, zero: Any) -> tuple[float, float, Any]:
    dtype = torch.uint8 if zero is None else zero.dtype
    if dtype not in (torch.uint8, torch.int8, torch.int16):
        raise node.refusal(f"its integers are {str(dtype).removeprefix('torch.')}")
    return float(torch.iinfo(dtype).min), float(torch.iinfo(dtype).max), dtype


def _per_axis(node: Node, x: Any, values: Any) -> Any:
    if values.dim() == 0 or values.numel() == 1:
        return values.reshape(())
    if values.dim() > 1:
        raise node.refusal("its scales are of blocks")
    axis = node.get("axis", 1) % x.dim()
    return values.reshape([-1 if at == axis else 1 for at in range(x.dim())])


def _quantize(node: Node, x: Any, scale: Any, zero: Any = None) -> Any:
    low, high, dtype = _range_of(node, zero)
    found = torch.round(x / _per_axis(node, x, scale))
    found = found if zero is None else found + _per_axis(node, x, zero).to(x.dtype)
    return torch.clamp(found, low, high).to(torch.int32).to(dtype)


def _dequantize(node: Node, x: Any, scale: Any, zero: Any = None) -> Any:
    found = x.to(torch.float32)
    found = found if zero is None else found - _per_axis(node, x, zero).to(torch.float32)
    return found * _per_axis(node, x, scale)


def _dynamic_quantize(_: Node, x: Any) -> Any:
    low, high = torch.clamp(x.min(), max=0), torch.clamp(x.max(), min=0)
    scale = (high - low) / 255
    zero = torch.clamp(torch.round(-low / scale), 0, 255)
    found = torch.clamp(torch.round(x / scale) + zero, 0, 255)
    return found.to(torch.int32).to(torch.uint8), scale, zero.to(torch.int32).to(torch.uint8)


def _less(x: Any, zero: Any, rows: bool = False) -> Any:
    """Integers without their zero point, as float32, which holds sums of products of bytes exactly up to 2**24."""
    values = x.to(torch.float32)
    if zero is None:
        return values
    shift = zero.to(torch.float32)
    return values - (shift.reshape(-1, *[1] * (x.dim() - 1)) if rows and shift.numel() > 1 else shift)


def _conv_integer(node: Node, x: Any, weight: Any, x_zero: Any = None, zero: Any = None) -> Any:
    return _conv(node, _less(x, x_zero), _less(weight, zero, rows=True)).to(torch.int32)


def _matmul_integer(_: Node, a: Any, b: Any, a_zero: Any = None, b_zero: Any = None) -> Any:
    return torch.matmul(_less(a, a_zero), _less(b, b_zero)).to(torch.int32)


def _requantized(node: Node, total: Any, factor: Any, zero: Any) -> Any:
    low, high, dtype = _range_of(node, zero)
    found = torch.round(total * factor) + zero.to(torch.float32)
    return torch.clamp(found, low, high).to(torch.int32).to(dtype)


def _qlinear_matmul(node: Node, *inputs: Any) -> Any:
    a, a_scale, a_zero, b, b_scale, b_zero, scale, zero = inputs
    total = torch.matmul(_less(a, a_zero), _less(b, b_zero))
    return _requantized(node, total, a_scale * b_scale / scale, zero)


def _qlinear_conv(node: Node, *inputs: Any) -> Any:
    x, x_scale, x_zero, weight, w_scale, w_zero, scale, zero = inputs[:8]
    bias = inputs[8].to(torch.float32) if len(inputs) > 8 and inputs[8] is not None else None  # noqa: PLR2004
    total = _conv(node, _less(x, x_zero), _less(weight, w_zero, rows=True), bias)
    factor = x_scale * w_scale / scale
    return _requantized(node, total, _channels(factor, total) if factor.numel() > 1 else factor, zero)


RULES: dict[str, Rule] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LpPool": _lp_pool,
    "GlobalAveragePool": _global(torch.mean),
    "GlobalMaxPool": _global(torch.amax),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "MeanVarianceNormalization": _mean_variance,
    "LRN": _lrn,
    "NegativeLogLikelihoodLoss": _nll,
    "SoftmaxCrossEntropyLoss": _cross_entropy,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "ConvInteger": _conv_integer,
    "MatMulInteger": _matmul_integer,
    "QLinearMatMul": _qlinear_matmul,
    "QLinearConv": _qlinear_conv,
}
