"""A TFLite file as objects that can be read and changed: its operations, their constants, and names for them.

Only the first graph of a file is looked at: the others are bodies of loops and branches, or further entry points.
"""

from __future__ import annotations

import re
from typing import Any

from edgepipe.errors import IntegrityError

_TYPES = {"FLOAT32": "float32", "FLOAT16": "float16", "INT32": "int32", "INT64": "int64", "INT8": "int8"}


def read(path: str) -> Any:
    """The file as the schema's ``ModelT``.

    Raises:
        IntegrityError: it can't be read as one.
    """
    import struct

    from ai_edge_litert.tools import flatbuffer_utils

    try:
        return flatbuffer_utils.read_model(path)
    except (ValueError, TypeError, IndexError, AttributeError, struct.error) as error:
        what = f"not a sound TFLite model: {' '.join(str(error).split())[:200]}"
        raise IntegrityError(what, path, "get the file again, or export it again") from None


def named(path: str) -> Any:
    """As `read`, with new names for all tensors where two share one: the quantizer goes by names.

    Raises:
        IntegrityError: as `read`.
    """
    model = read(path)
    names = [tensor.name for part in model.subgraphs for tensor in part.tensors]
    if len(set(names)) < len(names) or None in names:
        label(model)
    return model


def pack(model: Any) -> bytes:
    """The bytes of a file that holds a ``ModelT``."""
    from ai_edge_litert.tools import flatbuffer_utils

    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def operator(model: Any, op: Any) -> str:
    """The operation's name in the schema, such as CONV_2D; CUSTOM for a custom one."""
    from ai_edge_litert import schema_py_generated as schema

    code = model.operatorCodes[op.opcodeIndex]
    return _names(schema.BuiltinOperator)[max(code.builtinCode, code.deprecatedBuiltinCode)]


def name_of(model: Any, index: int) -> str:
    """The name of operation ``index`` of the graph: its kind and its place, such as conv_2d_3."""
    return f"{operator(model, model.subgraphs[0].operators[index]).lower()}_{index}"


def kind(tensor: Any) -> str:
    """The tensor's type by its name in the schema, such as FLOAT32."""
    from ai_edge_litert import schema_py_generated as schema

    return _names(schema.TensorType)[tensor.type]


def is_float(model: Any, index: int) -> bool:
    """Whether tensor ``index`` holds float32."""
    return index >= 0 and kind(model.subgraphs[0].tensors[index]) == "FLOAT32"


def constant(model: Any, index: int) -> Any:
    """The content of tensor ``index`` as an array, read-only; None where the file holds none or not a plain type."""
    import numpy as np

    if index < 0:
        return None
    tensor = model.subgraphs[0].tensors[index]
    data = model.buffers[tensor.buffer].data
    if data is None or not len(data) or kind(tensor) not in _TYPES:
        return None
    shape = [] if tensor.shape is None else [int(size) for size in tensor.shape]
    return np.frombuffer(bytes(data), _TYPES[kind(tensor)]).reshape(shape)


def set_constant(model: Any, place: int, slot: int, values: Any) -> None:
    """Give input ``slot`` of operation ``place``, a float32 constant, new values; sharers keep the old ones."""
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    main = model.subgraphs[0]
    index = int(main.operators[place].inputs[slot])
    old = main.tensors[index]
    readers = sum(int(other) == index for op in main.operators for other in op.inputs)
    if readers > 1:
        taken = {(other.name or b"").decode("utf-8", "replace") for part in model.subgraphs for other in part.tensors}
        tensor = schema.TensorT()
        tensor.name, tensor.type = _free(f"{name_of(model, place)}/{slot}", taken).encode(), old.type
        tensor.shape, tensor.buffer = list(old.shape), old.buffer
        main.tensors.append(tensor)
        main.operators[place].inputs[slot] = len(main.tensors) - 1
        old = tensor
    users = sum(tensor.buffer == old.buffer for part in model.subgraphs for tensor in part.tensors)
    if users > 1:
        model.buffers.append(schema.BufferT())
        old.buffer = len(model.buffers) - 1
    model.buffers[old.buffer].data = np.frombuffer(values.astype(np.float32).tobytes(), np.uint8)


def label(model: Any) -> None:
    """Name every tensor after the operation that makes or first reads it: short, and no name twice.

    Inputs and outputs keep their names. Converters leave names of hundreds of letters, a sixth of a small file.
    """
    taken: set[str] = set()
    for number, graph in enumerate(model.subgraphs):
        border = {int(index) for index in (*graph.inputs, *graph.outputs)}
        for index in sorted(border):
            own = (graph.tensors[index].name or b"tensor").decode("utf-8", "replace")
            graph.tensors[index].name = _free(own, taken).encode()
        wanted = {index: f"unused_{index}" for index in range(len(graph.tensors)) if index not in border}
        for place, op in reversed(list(enumerate(graph.operators))):
            base = f"{operator(model, op).lower()}_{place}"
            ends = [int(index) for index in op.inputs], [int(index) for index in op.outputs]
            names = {index: f"{base}/{slot}" for slot, index in enumerate(ends[0])}
            names |= {index: f"{base}:{slot}" if slot else base for slot, index in enumerate(ends[1])}
            wanted |= {index: name for index, name in names.items() if index in wanted}
        for index, name in wanted.items():
            prefix = f"graph_{number}/" if number else ""
            graph.tensors[index].name = _free(prefix + name, taken).encode()


def pattern(model: Any, places: set[int], *, others: bool = False) -> str:
    """A regular expression for exactly these operations of the main graph, and with ``others`` all of other graphs.

    The quantizer knows an operation by the names of its outputs, each with a semicolon behind it; names must be
    unambiguous. Empty where there is none.
    """
    scopes = []
    for number, part in enumerate(model.subgraphs):
        for place, op in enumerate(part.operators):
            outputs = [part.tensors[index].name.decode("utf-8") for index in op.outputs if index >= 0]
            if outputs and (others if number else place in places):
                scopes.append(re.escape("".join(f"{name};" for name in outputs)))
    return f"^(?:{'|'.join(scopes)})$" if scopes else ""


def in_blocks(tensor: Any) -> bool:
    """Whether a tensor has one scale for each block of a row."""
    from ai_edge_litert import schema_py_generated as schema

    found = tensor.quantization
    return found is not None and found.detailsType == schema.QuantizationDetails.BlockwiseQuantization


def _free(name: str, taken: set[str]) -> str:
    """``name``, or the first ``name~2``, ``name~3`` that is not taken; it is taken then."""
    found, count = name, 1
    while found in taken:
        count += 1
        found = f"{name}~{count}"
    taken.add(found)
    return found


def _names(enumeration: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}
