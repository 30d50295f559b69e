"""The tensors of a GGUF by our names, as floats or packed: what a network and an ONNX file are made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgepipe.errors import UsageError
from edgepipe.llm import packed
from edgepipe.llm.gguf import File
from edgepipe.llm.packed import Array, Groups, Packed
from edgepipe.llm.sizes import Sizes

_FLOAT, _BYTE = 32, 8
_TABLE_GROUP = 32


class Weights:
    """Products in ``bits``, in groups of ``size``; the embedding and the output layer in 8 bits, or 32 as all else."""

    def __init__(self, file: File, s: Sizes, bits: int, size: int) -> None:
        self._file, self.sizes, self._bits, self._size = file, s, bits, size
        if bits != _FLOAT and s.width % _TABLE_GROUP:
            what = f"a width of {s.width} is no whole number of groups of {_TABLE_GROUP}"
            raise UsageError(what, str(file.path), "take --weights fp32")
        self.tied = "output.weight" not in file.tensors
        rates = s.base ** (-np.arange(0, s.head, 2, dtype=np.float64) / s.head)
        angles = np.arange(s.context, dtype=np.float64)[:, None] * rates
        self.cosine, self.sine = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def floats(self, name: str, shape: tuple[int, ...]) -> Array:
        """A tensor as floats.

        Raises:
            UsageError: it is missing, or has another shape.
            IntegrityError: it is cut off or not finite.
        """
        own = self._own(name, shape)
        value = self._file.read(own)
        return np.ascontiguousarray(value[self._order(name, len(value))])

    def norm(self, name: str) -> Array:
        """The factors of a norm."""
        return self.floats(f"{name}.weight", (self.sizes.width,))

    def product(self, layer: str, names: tuple[str, ...]) -> Packed | Array:
        """Weights of products of the same input, below each other: [N, K] or packed."""
        shapes = [_shape(self.sizes, name) for name in names]
        full = [f"{layer}.{name}.weight" for name in names]
        if self._bits == _FLOAT:
            return np.concatenate([self.floats(name, shape) for name, shape in zip(full, shapes, strict=True)])
        parts = [self._groups(name, shape, self._bits, self._size) for name, shape in zip(full, shapes, strict=True)]
        return packed.pack(packed.joined(parts), shapes[0][1])

    @property
    def table(self) -> Packed | Array:
        """The embedding."""
        return self._outer("embedding.weight")

    @property
    def output(self) -> Packed | Array | None:
        """The output layer; None where it is the embedding."""
        return None if self.tied else self._outer("output.weight")

    def _outer(self, name: str) -> Packed | Array:
        shape = (self.sizes.vocabulary, self.sizes.width)
        if self._bits == _FLOAT:
            return self.floats(name, shape)
        return packed.pack(self._groups(name, shape, _BYTE, _TABLE_GROUP), shape[1])

    def _groups(self, name: str, shape: tuple[int, ...], bits: int, size: int) -> Groups:
        """The groups that the file has itself, if those are what is asked for, or fitted ones."""
        own = self._own(name, shape)
        stored = self._file.groups(own)
        if stored is not None and stored.bits == bits and stored.size % size == 0:
            return stored.halved(size).rows(self._order(name, shape[0]))
        return packed.fitted(self.floats(name, shape), bits, size)

    def _own(self, name: str, shape: tuple[int, ...]) -> str:
        """What GGUF calls a tensor of ours.

        Raises:
            UsageError: it has another shape.
        """
        outer = {"embedding.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
        own = outer.get(name) or name.replace("layers.", "blk.", 1)
        own = "token_embd.weight" if name == "output.weight" and self.tied else own
        found = self._file.tensors.get(own)
        if found is not None and found.shape != shape:
            what = f"tensor {own} is {list(found.shape)}, not {list(shape)}"
            raise UsageError(what, str(self._file.path), "get it again")
        return own

    def _order(self, name: str, count: int) -> Array:
        """Where each output lies: GGUF has queries and keys in pairs, [heads, D / 2, 2], we in halves."""
        places = np.arange(count)
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            return places.reshape(-1, self.sizes.head // 2, 2).swapaxes(1, 2).reshape(-1)
        return places


def _shape(s: Sizes, name: str) -> tuple[int, int]:
    narrow = s.kv_heads * s.head
    shapes: dict[str, Any] = {
        "attn_q": (s.width, s.width),
        "attn_k": (narrow, s.width),
        "attn_v": (narrow, s.width),
        "attn_output": (s.width, s.width),
        "ffn_gate": (s.hidden, s.width),
        "ffn_up": (s.hidden, s.width),
        "ffn_down": (s.width, s.hidden),
    }
    found: tuple[int, int] = shapes[name]
    return found
