"""Preprocessing and layout inside a TFLite file: a few operations between its first input and whatever reads it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.formats import _inputs
from edgepipe.formats.tflite import graph
from edgepipe.formats.tflite.prove import prove

if TYPE_CHECKING:
    from edgepipe.artifact import Call, ExportOptions, Output
    from edgepipe.schema import Artifact

LIBRARIES = ("ai-edge-litert",)


def adapt(source: Artifact, folder: Path, options: ExportOptions, call: Call) -> Output:
    """Write ``source`` with what the options ask of its first input into ``folder``."""
    made = _inputs.front(source, options)
    name = Path(source.path).name
    call(f"{__name__}:work", {"source": source.path, "target": str(folder / name), "front": asdict(made)})
    return _inputs.output(source, options, made, [name])


def work(source: str, target: str, front: dict[str, Any]) -> None:
    """Put the operations in, the first version of each, and prove that the file runs (runs in the child)."""
    import numpy as np

    wanted = _inputs.Front(**front)
    made = _Front(graph.read(source), wanted)
    if wanted.scale:
        made.add("MUL", wanted.across(wanted.scale))
    if wanted.shift:
        made.add("ADD", wanted.across(wanted.shift))
    if wanted.flip:
        places = np.arange(wanted.shape[wanted.axis], dtype=np.int32)[::-1].copy()
        made.add("GATHER", places, axis=wanted.axis)
    if wanted.order:
        made.add("TRANSPOSE", np.asarray(wanted.order, np.int32))
    Path(target).write_bytes(made.finish())
    prove(source, target)


class _Front:
    """Operations put in front of the graph, in order; each reads what the one before it makes."""

    def __init__(self, model: Any, wanted: _inputs.Front) -> None:
        self._model, self._main = model, model.subgraphs[0]
        self._old = int(self._main.inputs[0])  # by place: an artifact calls it what the model does
        self._ops: list[Any] = []
        tensor = self._main.tensors[self._old]
        self._name = tensor.name
        self._first = self._last = self._tensor(self._name, wanted.shape, tensor.type, 0)
        tensor.name = self._name + b"_prepared"

    def add(self, op: str, operand: Any, **options: Any) -> None:
        """An operation on what the one before made and on a constant."""
        from ai_edge_litert import schema_py_generated as schema

        self._model.buffers.append(schema.BufferT())
        self._model.buffers[-1].data = list(operand.tobytes())
        kind = schema.TensorType.FLOAT32 if operand.dtype.kind == "f" else schema.TensorType.INT32
        label = self._name + b"_" + op.lower().encode()
        by = self._tensor(label + b"_by", list(operand.shape), kind, len(self._model.buffers) - 1)
        shape = list(self._main.tensors[self._last].shape)
        if op == "TRANSPOSE":
            shape = [shape[place] for place in operand]
        result = self._tensor(label, shape, self._main.tensors[self._last].type, 0)
        made = schema.OperatorT()
        made.opcodeIndex = self._code(op)
        made.inputs, made.outputs = [self._last, by], [result]
        words = {"MUL": "Mul", "ADD": "Add", "GATHER": "Gather", "TRANSPOSE": "Transpose"}[op] + "Options"
        made.builtinOptionsType = getattr(schema.BuiltinOptions, words)
        made.builtinOptions = getattr(schema, words + "T")()
        for key, value in options.items():
            setattr(made.builtinOptions, key, value)
        self._ops.append(made)
        self._last = result

    def finish(self) -> bytes:
        """The file: the last operation makes what was the input; inputs and signatures name the new one."""
        self._ops[-1].outputs = [self._old]
        self._main.operators = [*self._ops, *self._main.operators]
        inputs = [int(index) for index in self._main.inputs]
        inputs[0] = self._first
        self._main.inputs = inputs
        for signature in self._model.signatureDefs or []:
            for entry in signature.inputs or [] if signature.subgraphIndex == 0 else []:
                if entry.tensorIndex == self._old:
                    entry.tensorIndex = self._first
        return graph.pack(self._model)

    def _tensor(self, name: bytes, shape: list[int], kind: int, buffer: int) -> int:
        from ai_edge_litert import schema_py_generated as schema

        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, [int(size) for size in shape], kind, buffer
        self._main.tensors.append(tensor)
        return len(self._main.tensors) - 1

    def _code(self, op: str) -> int:
        from ai_edge_litert import schema_py_generated as schema

        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, op)
        code.version = 1
        self._model.operatorCodes.append(code)
        return len(self._model.operatorCodes) - 1
