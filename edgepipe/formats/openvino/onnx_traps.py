"""ONNX operators that OpenVINO's frontend takes and computes otherwise: rewritten where that is possible, else refused.

Found by running the operator models that `make conformance` converts, with OpenVINO 2026.4.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgepipe.errors import UsageError

_PEEPHOLES = 7  # the input of LSTM that holds their weights
_SPLITS, _REPEATS = 1, 1
_MOST = 5  # nodes named in an error
_FIX = "leave the operation out of the model, or export to onnx"


def mended(source: str, folder: Path) -> str:
    """The path of an ONNX file that means the same to OpenVINO: ``source`` itself, or a rewritten copy in ``folder``.

    Raises:
        UsageError: a node means something else to OpenVINO, and nothing it knows means the same.
    """
    import onnx

    model = onnx.load(source)
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    _refuse(model, constants, Path(source).name)
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 1)
    reductions = _Reductions(opset)
    nodes = [new for node in model.graph.node for new in reductions.rewritten(node)]
    if len(nodes) == len(model.graph.node):
        return source
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    place = folder / "mended.onnx"
    onnx.save(model, str(place))
    return str(place)


def _refuse(model: Any, constants: set[str], where: str) -> None:
    import onnx

    text = onnx.TensorProto.STRING
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    kinds |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        place = f"{node.op_type} {node.name or node.output[0]}"
        found += [
            f" {say}: {place}"
            for operator, (is_one, say) in _WHY.items()
            if node.op_type == operator and is_one(node, constants)
        ]
        if any(kinds.get(name) == text for name in node.input):
            found.append(f"'s CPU plug-in has no texts: {place}")
    if found:
        more = f"; and {len(found) - _MOST} more" if len(found) > _MOST else ""
        raise UsageError(f"OpenVINO{'; OpenVINO'.join(found[:_MOST])}{more}", where, _FIX)


def lost(model: Any, given: str) -> None:
    """Make sure that every input of the ONNX file ``given`` is one of the converted ``model``.

    Raises:
        UsageError: the frontend took one for a constant, or for absent.
    """
    import onnx

    graph = onnx.load(given, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    have = {name for port in model.inputs for name in port.get_names()}
    gone = [value.name for value in graph.input if value.name not in weights | have]
    if gone:
        what = f"OpenVINO leaves out the input {gone[0]!r}, whose size or value is known only at run time"
        raise UsageError(what, Path(given).name, "make it a constant of the model, or export to onnx")


def _attribute(node: Any, name: str, default: Any = None) -> Any:
    import onnx

    return next((onnx.helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def _has(node: Any, place: int) -> bool:
    return len(node.input) > place and bool(node.input[place])


def _outside(node: Any, _: set[str]) -> bool:
    return bool(_attribute(node, "exclude_outside", 0)) and _attribute(node, "mode", b"") == b"cubic"


# Operator -> (whether a node is one of those, in words what OpenVINO does).
_WHY: dict[str, tuple[Callable[[Any, set[str]], bool], str]] = {
    "LSTM": (lambda node, _: _has(node, _PEEPHOLES), "ignores the peepholes of an LSTM"),
    "Resize": (_outside, "ignores exclude_outside when it resizes by cubic interpolation"),
    "Tile": (lambda node, known: node.input[_REPEATS] not in known, "needs to know the repeats beforehand"),
    "SplitToSequence": (
        lambda node, known: _has(node, _SPLITS) and node.input[_SPLITS] not in known,
        "needs to know the lengths of a sequence's parts beforehand",
    ),
}


class _Reductions:
    """Reductions of whose axes OpenVINO takes no notice, made of those of which it does."""

    def __init__(self, opset: int) -> None:
        self._opset = opset

    def rewritten(self, node: Any) -> list[Any]:
        """The node, or what means the same."""
        rewrite = {"ReduceL1": self._l1, "ReduceLogSum": self._log_sum, "ReduceLogSumExp": self._log_sum_exp}
        return rewrite[node.op_type](node) if node.op_type in rewrite and self._axes(node) else [node]

    @staticmethod
    def _axes(node: Any) -> bool:
        return _has(node, 1) or _attribute(node, "axes") is not None

    def _on_axes(self, node: Any, operator: str, data: str, output: str, since: int, **more: int) -> list[Any]:
        """An operator on the same axes: an input of it from the opset ``since`` on, else an attribute."""
        import onnx

        make = onnx.helper.make_node
        axes = _attribute(node, "axes")
        if axes is None:
            return [make(operator, [data, node.input[1]], [output], f"{output}_{operator}", **more)]
        if self._opset < since:
            return [make(operator, [data], [output], f"{output}_{operator}", axes=axes, **more)]
        name = f"{output}_{operator}_axes"
        constant = make("Constant", [], [name], value_ints=axes)
        return [constant, make(operator, [data, name], [output], f"{output}_{operator}", **more)]

    def _sum(self, node: Any, data: str, output: str, keep: int) -> list[Any]:
        more = {"noop_with_empty_axes": 1} if _attribute(node, "noop_with_empty_axes", 0) else {}
        return self._on_axes(node, "ReduceSum", data, output, 13, keepdims=keep, **more)

    def _l1(self, node: Any) -> list[Any]:
        import onnx

        sizes, keep = f"{node.output[0]}_sizes", _attribute(node, "keepdims", 1)
        return [
            onnx.helper.make_node("Abs", [node.input[0]], [sizes]),
            *self._sum(node, sizes, node.output[0], keep),
        ]

    def _log_sum(self, node: Any) -> list[Any]:
        import onnx

        total, keep = f"{node.output[0]}_sum", _attribute(node, "keepdims", 1)
        log = onnx.helper.make_node("Log", [total], [node.output[0]])
        return [*self._sum(node, node.input[0], total, keep), log]

    def _log_sum_exp(self, node: Any) -> list[Any]:
        """The logarithm of sum exp(x - max x), plus max x: that can't overflow."""
        import onnx

        make, out, keep = onnx.helper.make_node, node.output[0], _attribute(node, "keepdims", 1)
        most, less, powers, total, log = (f"{out}_{word}" for word in ("most", "less", "powers", "total", "log"))
        whole = out if keep else f"{out}_kept"
        nodes = [
            *self._on_axes(node, "ReduceMax", node.input[0], most, 18, keepdims=1),
            make("Sub", [node.input[0], most], [less]),
            make("Exp", [less], [powers]),
            *self._sum(node, powers, total, 1),
            make("Log", [total], [log]),
            make("Add", [log, most], [whole]),
        ]
        return nodes if keep else [*nodes, *self._on_axes(node, "Squeeze", whole, out, 13)]
