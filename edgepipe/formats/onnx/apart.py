"""A base that stays: weights that no adapter changed, in a file beside the model that is the same for all adapters."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

BASE = "base.bin"
PROPERTY = "base_sha256"  # of the main file: one hash covers both
_LEAST = 1024  # bytes of a tensor that is worth a place in the file
_ALIGNED = 64  # ONNX Runtime maps the file into memory
_MATRIX = 2


def digests(module: Any, names: Iterable[str]) -> list[str]:
    """Hashes of the bytes of the named tensors of a network, and of matrices turned round, as exporters store them."""
    state = module.state_dict()
    values = [state[name].detach().cpu() for name in names]
    values += [value.t() for value in values if value.dim() == _MATRIX]
    return [_hash(value.contiguous().numpy().tobytes()) for value in values]


def split(model: Any, folder: Path, own: list[str]) -> None:
    """Write the weights of ``model`` whose hashes are not in ``own`` into ``folder``, in the order of their hashes.

    So the same weights give the same file, whatever the graph calls them and whatever stands beside them.
    """
    from onnx import external_data_helper, numpy_helper

    tensors: dict[str, list[Any]] = {}
    for tensor in model.graph.initializer:
        if not tensor.HasField("raw_data"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
        name = _hash(tensor.raw_data)
        if len(tensor.raw_data) >= _LEAST and name not in own:
            tensors.setdefault(name, []).append(tensor)
    total = hashlib.sha256()
    with (folder / BASE).open("wb") as file:
        for name in sorted(tensors):
            content, start = tensors[name][0].raw_data, file.tell()
            padded = content + b"\0" * (-len(content) % _ALIGNED)
            file.write(padded)
            total.update(padded)
            for tensor in tensors[name]:
                external_data_helper.set_external_data(tensor, BASE, start, len(content))
                tensor.ClearField("raw_data")
    model.metadata_props.add(key=PROPERTY, value=total.hexdigest())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
