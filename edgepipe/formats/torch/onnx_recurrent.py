"""Rules for RNN, GRU and LSTM: unrolled over their steps, with the activations by default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edgepipe.formats.torch.onnx_node import Node, Rule

_DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
Cell = Callable[..., "tuple[Any, Any]"]


def _recurrent(node: Node, x: Any, weight: Any, back: Any, bias: Any = None, *rest: Any) -> Any:
    """All three: x [steps, batch, size] (or the batch first, by ``layout``) -> every state, the last, the last cell."""
    _check(node)
    lengths, state, cell, peephole = (*rest, None, None, None, None)[:4]
    if lengths is not None:
        raise node.refusal("sequences of several lengths are not followed")
    first = node.get("layout", 0)
    x = x.transpose(0, 1) if first else x
    hidden, directions = node.get("hidden_size"), weight.shape[0]
    every, last, cells = [], [], []
    for way in range(directions):
        backwards = node.get("direction", "forward") == "reverse" or way == 1
        begin = [
            torch.zeros(x.shape[1], hidden) if each is None else (each[:, way] if first else each[way])
            for each in (state, cell)
        ]
        both = torch.zeros(2 * _GATES[node.op] * hidden) if bias is None else bias[way]
        steps, h, c = _run(node, x, backwards, (weight[way], back[way], both, peephole, way), begin)
        every.append(torch.stack(steps))
        last.append(h)
        cells.append(c)
    found = torch.stack(every, 1), torch.stack(last), torch.stack(cells)
    if first:
        found = found[0].permute(2, 0, 1, 3), found[1].transpose(0, 1), found[2].transpose(0, 1)
    return found[: max(node.outputs, 1)]


def _check(node: Node) -> None:
    given = node.get("activations")
    names = [each.decode() if isinstance(each, bytes) else each for each in given] if given else []
    if names and names != _DEFAULTS[node.op] * (len(names) // len(_DEFAULTS[node.op])):
        raise node.refusal(f"activations {', '.join(names)} are not followed")
    if node.get("clip") is not None or node.get("input_forget", 0):
        raise node.refusal("clip and input_forget are not followed")


def _run(node: Node, x: Any, backwards: bool, weights: tuple[Any, ...], begin: list[Any]) -> tuple[list[Any], Any, Any]:
    cell: Cell = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}[node.op]
    h, c = begin
    order = range(x.shape[0] - 1, -1, -1) if backwards else range(x.shape[0])
    made: dict[int, Any] = {}
    for step in order:
        h, c = cell(node, x[step], h, c, *weights)
        made[step] = h
    return [made[step] for step in range(x.shape[0])], h, c


def _rnn(_: Node, x: Any, h: Any, c: Any, w: Any, r: Any, bias: Any, *__: Any) -> tuple[Any, Any]:
    one, two = bias.chunk(2)
    return torch.tanh(x @ w.t() + h @ r.t() + one + two), c


def _gru(node: Node, x: Any, h: Any, c: Any, w: Any, r: Any, bias: Any, *__: Any) -> tuple[Any, Any]:
    wz, wr, wh = w.chunk(3)
    rz, rr, rh = r.chunk(3)
    bz, br, bh, cz, cr, ch = bias.chunk(6)
    update = torch.sigmoid(x @ wz.t() + h @ rz.t() + bz + cz)
    reset = torch.sigmoid(x @ wr.t() + h @ rr.t() + br + cr)
    if node.get("linear_before_reset", 0):
        new = torch.tanh(x @ wh.t() + reset * (h @ rh.t() + ch) + bh)
    else:
        new = torch.tanh(x @ wh.t() + (reset * h) @ rh.t() + ch + bh)
    return (1 - update) * new + update * h, c


def _lstm(_: Node, x: Any, h: Any, c: Any, w: Any, r: Any, bias: Any, peephole: Any, way: int) -> tuple[Any, Any]:
    one, two = bias.chunk(2)
    i, o, f, g = (x @ w.t() + h @ r.t() + one + two).chunk(4, -1)
    pi, po, pf = (0, 0, 0) if peephole is None else peephole[way].chunk(3)
    new = torch.sigmoid(f + pf * c) * c + torch.sigmoid(i + pi * c) * torch.tanh(g)
    return torch.sigmoid(o + po * new) * torch.tanh(new), new


RULES: dict[str, Rule] = {"RNN": _recurrent, "GRU": _recurrent, "LSTM": _recurrent}
