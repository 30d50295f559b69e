"""An ONNX graph as a torch program: each node by its rule, what does not depend on the inputs computed once.

The graph is walked twice. First with tensors that have shapes and no values: so it is known which values are constant,
and a node without a rule, or one whose shapes depend on data, is refused before any work. Then by the tracer.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from edgepipe.errors import EdgepipeError, IntegrityError, UsageError
from edgepipe.formats._inputs import fix_sizes
from edgepipe.formats._names import some
from edgepipe.formats.torch.onnx_node import ABSENT, FIX, Node

_RELATIVE, _ABSOLUTE = 1e-3, 1e-5  # of the program against ONNX Runtime: float32 in another order of summation
_DOMAINS = ("", "ai.onnx")


def rules() -> dict[str, Any]:
    """The rules for all operators there are, by the operator's name."""
    from edgepipe.formats.torch import onnx_layers, onnx_math, onnx_recurrent, onnx_resize, onnx_shapes

    found: dict[str, Any] = {}
    for module in (onnx_math, onnx_shapes, onnx_layers, onnx_recurrent, onnx_resize):
        found.update(module.RULES)
    return found


def convert(source: str, target: str, batch: int, shapes: list[list[int]] | None = None) -> dict[str, Any]:
    """Write the program of an ONNX file and hold it against ONNX Runtime (runs in the child).

    Inputs with a free batch get ``batch``, other free sizes what ``shapes`` says of them. Returns shapes and types of
    the program's inputs and outputs.

    Raises:
        UsageError: an operator without a rule, or a use of one that can't be followed, with the nodes.
        IntegrityError: the program does not compute what the file does.
    """
    import onnx
    import torch

    model = onnx.load(source)
    given = _given(model, Path(source).name, shapes)
    plan, refused = _planned(model, given, batch)
    if plan is None or refused:
        raise refused[0]
    network = _network(plan, [value.name for value in given])
    example, wanted = _answered(source, given, batch)
    try:
        program = torch.export.export(network, example, strict=False)
    except EdgepipeError:
        raise
    except Exception as error:  # the tracer raises a dozen kinds
        text = " ".join(str(error).split())[:200]
        raise UsageError(f"the graph can't be traced: {type(error).__name__}: {text}", Path(source).name, FIX) from None
    torch.export.save(program, target)
    results = _held(source, [value.name for value in model.graph.output], program.module()(*example), wanted)
    return {
        "inputs": [[list(x.shape), str(x.dtype).removeprefix("torch.")] for x in example],
        "outputs": [[list(x.shape), str(x.dtype).removeprefix("torch.")] for x in results],
    }


def foresee(source: str, batch: int, shapes: list[list[int]]) -> list[UsageError]:
    """Why the graph can't be followed: every node that is in the way; none where it can (runs in the child)."""
    import onnx

    model = onnx.load(source)
    try:
        return _planned(model, _given(model, Path(source).name, shapes), batch)[1]
    except UsageError as error:
        return [error]


def _given(model: Any, where: str, shapes: list[list[int]] | None) -> list[Any]:
    """The inputs that are no weights, free sizes besides the batch fixed as ``shapes`` says.

    Raises:
        UsageError: there are none.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in weights]
    if not given:
        raise UsageError("the file has no inputs: it computes a constant", where, "nothing is to be run")
    told = []
    for value, shape in zip(given, shapes or [], strict=False):
        told += list(zip(value.type.tensor_type.shape.dim, shape, strict=False))[1:]
    fix_sizes(model.graph, told)
    return given


def _planned(model: Any, given: list[Any], batch: int) -> tuple[_Plan | None, list[UsageError]]:
    """The steps of the graph, and the refusals of nodes that can't be followed, those without a rule first."""
    lacking, plan = _lacking(model), None
    try:
        shaped = [_example(value, batch, at, None) for at, value in enumerate(given)]
        plan = _Plan(model, dict(zip([value.name for value in given], shaped, strict=True)))
        refused = plan.refused
    except UsageError as error:
        refused = [error]
    if lacking:
        ops = ", ".join(sorted({node.op_type for node in lacking}))
        names = [(node.name or node.output[0])[:60] for node in lacking]
        what = f"no rule to bring {ops} to TFLite (at {some(names)})"
        refused = [UsageError(what, names[0], FIX), *refused]
    return plan, refused


def _lacking(model: Any) -> list[Any]:
    """The nodes without a rule."""
    table = rules()
    return [node for node in model.graph.node if not _ruled(node, table)]


def _ruled(node: Any, table: dict[str, Any]) -> bool:
    return node.domain in _DOMAINS and (node.op_type in table or node.op_type == "Constant")


def _example(value: Any, batch: int, seed: int, whole: int | None) -> Any:
    """A seeded tensor for an input: floats in [0, 1); whole numbers 0 or 1, or all ``whole``.

    Raises:
        UsageError: a free dimension besides the batch, or elements that are not numbers.
    """
    import torch

    from edgepipe.formats.torch.onnx_math import dtype_of

    tensor = value.type.tensor_type
    node = Node("Input", value.name, 0, {}, 1)
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        raise node.refusal("it is no tensor of a known rank")
    sizes = [max(dim.dim_value, 0) for dim in tensor.shape.dim]
    if sizes and not sizes[0]:
        sizes[0] = batch
    if not all(sizes):
        what = f"the input {value.name!r} has a free dimension besides the batch, and TFLite needs fixed shapes"
        raise UsageError(what, value.name, "say the shape of one sample with --input-shape")
    dtype = dtype_of(node, tensor.elem_type)
    random = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.rand(sizes, generator=random, dtype=dtype)
    found = torch.randint(0, 2, sizes, generator=random) if whole is None else torch.full(sizes, whole)
    return found.to(dtype)


def _network(plan: _Plan, inputs: list[str]) -> Any:
    """The graph as a torch module."""
    import torch

    class Network(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
        def __init__(self) -> None:
            super().__init__()
            self.names: dict[str, str] = {}
            self.bare: dict[str, tuple[Any, Any]] = {}  # without elements: torch can't keep such buffers in a file
            for place, (name, value) in enumerate(plan.needed().items()):
                if not value.numel():
                    self.bare[name] = tuple(value.shape), value.dtype
                    continue
                self.names[name] = f"constant_{place}"
                self.register_buffer(self.names[name], value)

        def forward(self, *given: Any) -> Any:
            values = dict(zip(inputs, given, strict=True))
            values.update({name: getattr(self, own) for name, own in self.names.items()})
            values.update({name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in self.bare.items()})
            for step in plan.steps:
                values.update(step.run(values))
            return tuple(_own(values[name], name, given, self.names) for name in plan.outputs)

    return Network().eval()


def _own(value: Any, name: str, given: tuple[Any, ...], constants: dict[str, str]) -> Any:
    """An output that is an input or a constant as a tensor of its own."""
    return value.clone() if name in constants or any(value is each for each in given) else value


class _Step:
    """A node with its rule and the names of what it reads and makes."""

    def __init__(self, node: Node, rule: Any, reads: list[str], makes: list[str]) -> None:
        self.node, self.rule, self.reads, self.makes = node, rule, reads, makes

    def run(self, values: dict[str, Any]) -> dict[str, Any]:
        """The outputs by name."""
        made = self.rule(self.node, *(values[name] if name else None for name in self.reads))
        return dict(zip(self.makes, made if isinstance(made, tuple) else (made,), strict=False))


class _Plan:
    """What of the graph is constant, and the steps that are left.

    ``refused`` are the errors of nodes whose rule can't be followed. Nodes without a rule are left out, and those that
    come after one or the other: nothing is known of what they read.
    """

    def __init__(self, model: Any, given: dict[str, Any]) -> None:
        import torch
        from torch._subclasses.fake_tensor import FakeTensorMode

        self._known = {tensor.name: _tensor(tensor) for tensor in model.graph.initializer}
        self.outputs = [value.name for value in model.graph.output]
        self.steps: list[_Step] = []
        self.refused: list[UsageError] = []
        opset = next(entry.version for entry in model.opset_import if entry.domain in _DOMAINS)
        fake, table = FakeTensorMode(allow_non_fake_inputs=True), rules()
        values: dict[str, Any] = {name: fake.from_tensor(value) for name, value in given.items()}
        values.update(self._known)
        for item in model.graph.node:
            if not _ruled(item, table) or not all(name in values for name in item.input if name):
                continue
            try:
                with torch.no_grad():
                    values.update(self._made(self._node(item, opset), item, table, values, fake))
            except UsageError as error:
                self.refused.append(error)

    def _made(self, node: Node, item: Any, table: dict[str, Any], values: dict[str, Any], fake: Any) -> dict[str, Any]:
        """What a node makes: values where they are constant, else tensors without them, and a step."""
        if item.op_type == "Constant":
            self._known[item.output[0]] = _constant(node)
            return {item.output[0]: self._known[item.output[0]]}
        step = _Step(node, table[item.op_type], list(item.input), list(item.output))
        constant = item.op_type in ("Shape", "Size") or all(known is not None for known in node.known)
        with contextlib.nullcontext() if constant else fake:
            made = self._tried(step, values)
        if constant:
            self._known.update(made)
        else:
            self.steps.append(step)
        return made

    def _node(self, item: Any, opset: int) -> Node:
        from onnx import helper

        attributes = {each.name: helper.get_attribute_value(each) for each in item.attribute}
        attributes = {name: _tensor(x) if hasattr(x, "data_type") else x for name, x in attributes.items()}
        known = [
            (self._known[name].numpy() if name in self._known else None) if name else ABSENT for name in item.input
        ]
        return Node(
            item.op_type, item.name or next(filter(None, item.output)), opset, attributes, len(item.output), known
        )

    @staticmethod
    def _tried(step: _Step, values: dict[str, Any]) -> dict[str, Any]:
        try:
            return step.run(values)
        except EdgepipeError:
            raise
        except Exception as error:  # torch raises several kinds for shapes and types that don't fit
            text = " ".join(str(error).split())[:160]
            raise step.node.refusal(f"{type(error).__name__}: {text}") from None

    def needed(self) -> dict[str, Any]:
        """The constants that a step reads, or that are put out."""
        read = dict.fromkeys([name for step in self.steps for name in step.reads] + self.outputs)
        return {name: self._known[name] for name in read if name in self._known}


def _constant(node: Node) -> Any:
    import torch

    for key, value in node.attributes.items():
        if key == "value":
            return value
        if key in ("value_float", "value_floats"):
            return torch.tensor(value, dtype=torch.float32)
        if key in ("value_int", "value_ints"):
            return torch.tensor(value, dtype=torch.int64)
    raise node.refusal("it holds text or a sparse tensor")


def _tensor(proto: Any) -> Any:
    """An initialiser as a torch tensor of a type that TFLite computes in."""
    import numpy as np
    import torch
    from onnx import numpy_helper

    from edgepipe.formats.torch.onnx_math import dtype_of

    dtype = dtype_of(Node("Constant", proto.name, 0, {}, 1), proto.data_type)
    values = np.ascontiguousarray(numpy_helper.to_array(proto))
    wide = {"float16": np.float32, "bfloat16": np.float32, "uint16": np.int32, "uint32": np.int64, "uint64": np.int64}
    values = values.astype(wide.get(values.dtype.name, values.dtype))
    return torch.from_numpy(values.copy()).reshape(tuple(proto.dims)).to(dtype)


def _answered(source: str, given: list[Any], batch: int) -> tuple[tuple[Any, ...], list[Any]]:
    """Inputs on which ONNX Runtime runs the file, and its answer; whole numbers may be divisors, or places.

    Raises:
        UsageError: it does not run it.
    """
    import onnxruntime
    from onnx import helper

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    types = [helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) for value in given]
    why = ""
    for whole in (None, 1, 0):
        example = tuple(_example(value, batch, at, whole) for at, value in enumerate(given))
        arrays = [x.numpy().astype(kind) for x, kind in zip(example, types, strict=True)]
        try:
            session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            return example, session.run(None, dict(zip([value.name for value in given], arrays, strict=True)))
        except Exception as error:  # the binding has a class of its own for each status code
            why = " ".join(str(error).split())[:200]
    raise UsageError(f"ONNX Runtime does not run the file: {why}", Path(source).name, "get or export the file again")


def _held(source: str, names: list[str], results: Any, wanted: list[Any]) -> list[Any]:
    """The program's outputs, once they are those of the file.

    Raises:
        IntegrityError: they differ.
    """
    import numpy as np

    found = list(results)
    for name, ours, theirs in zip(names, found, wanted, strict=True):
        a, b = ours.detach().numpy().astype(np.float64), np.asarray(theirs).astype(np.float64)
        slack = _ABSOLUTE + _RELATIVE * float(np.abs(b[np.isfinite(b)]).max(initial=0.0))
        if a.shape != b.shape or not np.allclose(a, b, rtol=_RELATIVE, atol=slack, equal_nan=True):
            what = f"the torch program of the file gives another output {name!r} than ONNX Runtime"
            raise IntegrityError(what, f"{Path(source).name}, stage torch", "report this file; export to onnx instead")
    return found
