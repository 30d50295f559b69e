"""Read GGUF files: the key-value header, and tensors made floats again. NumPy alone; nothing in a file is executed.

Layout after the public description of the format, version 3 (ggml's ``docs/gguf.md``): little endian, a header of
typed pairs, then tensor descriptions, then aligned data. Of the quantised types those are read that keep one scale
(and one minimum) for 32 weights: Q4_0, Q4_1 and Q8_0.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edgepipe.errors import IntegrityError, UsageError
from edgepipe.llm.packed import Groups

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_ITEMS, _MOST_TEXT, _MOST_AXES = 1 << 22, 1 << 24, 4  # what lies beyond is damage, not a model
_BLOCK = 32


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies. ``shape`` is outermost first, as NumPy counts; ``start`` is the offset in the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True)
class File:
    """An opened GGUF: its pairs and its tensors by name."""

    path: Path
    pairs: dict[str, Any]
    tensors: dict[str, Tensor]

    def pair(self, name: str, kind: type) -> Any:
        """The value of a pair.

        Raises:
            UsageError: the file doesn't say it, or says it as another type.
        """
        value = self.pairs.get(name)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind):
            raise UsageError(f"the model doesn't say {name}", str(self.path), "give a GGUF of a Llama model")
        return value

    def read(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """A tensor as float32, in its shape.

        Raises:
            UsageError: there is no such tensor, or its type is not among those read here.
            IntegrityError: the file ends before the tensor does, or a value is not finite.
        """
        per, size, unpack, _ = self._kind(name)
        raw = self._raw(name, per, size)
        values = unpack(raw).reshape(self.tensors[name].shape)
        self._finite(name, values)
        return values

    def groups(self, name: str) -> Groups | None:
        """A tensor [N, K] as the file itself has it: codes, scales and offsets; None for one of floats.

        Raises:
            UsageError, IntegrityError: as `read` does.
        """
        per, size, _, parts = self._kind(name)
        if parts is None:
            return None
        bits, codes, scale, offset = parts(self._raw(name, per, size))
        shape = (self.tensors[name].shape[0], -1)
        self._finite(name, scale, offset)
        return Groups(bits, codes.reshape(*shape, per), scale.reshape(shape), offset.reshape(shape))

    def _finite(self, name: str, *parts: _Floats) -> None:
        if not all(np.isfinite(part).all() for part in parts):
            raise IntegrityError(f"tensor {name} holds values that are not finite", str(self.path), "get it again")

    def _kind(self, name: str) -> _Kind:
        if name not in self.tensors:
            raise UsageError(f"the model has no tensor {name}", str(self.path), "give a GGUF of a Llama model")
        kind = self.tensors[name].kind
        if kind not in _KINDS:
            what = f"tensor {name} is of type {kind}, which is not read"
            raise UsageError(what, str(self.path), "give a file in F32, F16, Q4_0, Q4_1 or Q8_0")
        return _KINDS[kind]

    def _raw(self, name: str, per: int, size: int) -> _Bytes:
        """The bytes of a tensor, a row for each block."""
        tensor = self.tensors[name]
        count = prod(tensor.shape)
        if per > 1 and tensor.shape[-1] % per:
            raise IntegrityError(f"tensor {name} is no whole number of blocks", str(self.path), "get the file again")
        with self.path.open("rb") as file:
            file.seek(tensor.start)
            raw = file.read(count // per * size)
        if len(raw) < count // per * size:
            raise IntegrityError(f"the file ends within tensor {name}", str(self.path), "get the file again")
        return np.frombuffer(raw, np.uint8).reshape(-1, size)


def read(path: Path) -> File:
    """Read the header of a GGUF.

    Raises:
        UsageError: no GGUF, or of a version not read here.
        IntegrityError: it ends too early or contradicts itself.
    """
    try:
        with path.open("rb") as file:
            return _header(path, file)
    except OSError as error:
        raise UsageError(f"the model can't be read: {error.strerror}", str(path), "check the path") from error
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise IntegrityError(f"the file is damaged: {error}", str(path), "get the file again") from error


def _header(path: Path, file: BinaryIO) -> File:
    if file.read(4) != _MAGIC:
        raise UsageError("no GGUF file", str(path), "give a file whose name ends in .gguf")
    version = _number(file, "I")
    if version not in _VERSIONS:
        raise UsageError(f"GGUF version {version} is not read", str(path), "convert it to version 3")
    tensors, pairs = _count(file), _count(file)
    found = {_text(file): _value(file, _number(file, "I")) for _ in range(pairs)}
    raw = [(_text(file), _shape(file), _number(file, "I"), _number(file, "Q")) for _ in range(tensors)]
    alignment = found.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= _MOST_TEXT:
        raise ValueError(f"an alignment of {alignment}")
    base = -(-file.tell() // alignment) * alignment
    return File(path, found, {name: Tensor(name, shape, kind, base + at) for name, shape, kind, at in raw})


def _number(file: BinaryIO, code: str) -> Any:
    size = struct.calcsize("<" + code)
    return struct.unpack("<" + code, file.read(size))[0]


def _count(file: BinaryIO, most: int = _MOST_ITEMS) -> int:
    count: int = _number(file, "Q")
    if count > most:
        raise ValueError(f"a count of {count}")
    return count


def _text(file: BinaryIO) -> str:
    size = _count(file, _MOST_TEXT)
    raw = file.read(size)
    if len(raw) < size:
        raise ValueError("it ends within a text")
    return raw.decode("utf-8")


def _shape(file: BinaryIO) -> tuple[int, ...]:
    axes = _number(file, "I")
    if axes > _MOST_AXES:
        raise ValueError(f"a tensor of {axes} axes")
    shape = tuple(_number(file, "Q") for _ in range(axes))[::-1]
    if prod(shape) > 1 << 36:
        raise ValueError(f"a tensor of shape {shape}")
    return shape


def _value(file: BinaryIO, kind: int, *, nested: bool = False) -> Any:
    if kind == _STRING:
        return _text(file)
    if kind == _ARRAY and not nested:
        inner = _number(file, "I")
        return [_value(file, inner, nested=True) for _ in range(_count(file))]
    if kind not in _SCALARS:
        raise ValueError(f"a value of type {kind}")
    return _number(file, _SCALARS[kind])


_Bytes = np.ndarray[Any, np.dtype[np.uint8]]
_Floats = np.ndarray[Any, np.dtype[np.float32]]
_Parts = tuple[int, _Bytes, _Floats, _Floats]  # bits, codes, scale, offset
_Kind = tuple[int, int, Callable[[_Bytes], _Floats], Callable[[_Bytes], _Parts] | None]


def _half(rows: _Bytes, at: int) -> _Floats:
    return np.ascontiguousarray(rows[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(rows: _Bytes, at: int) -> _Bytes:
    """32 weights of 4 bits a row: the low halves of 16 bytes, then the high ones."""
    packed = rows[:, at:]
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _q4_0(rows: _Bytes) -> _Parts:
    scale = _half(rows, 0)
    return 4, _nibbles(rows, 2), scale, -8 * scale


def _q4_1(rows: _Bytes) -> _Parts:
    return 4, _nibbles(rows, 4), _half(rows, 0), _half(rows, 2)


def _q8_0(rows: _Bytes) -> _Parts:
    scale = _half(rows, 0)
    return 8, rows[:, 2:] ^ np.uint8(128), scale, -128 * scale  # signed bytes counted from the least


def _floats(parts: Callable[[_Bytes], _Parts]) -> Callable[[_Bytes], _Floats]:
    def found(rows: _Bytes) -> _Floats:
        _, codes, scale, offset = parts(rows)
        return codes * scale + offset

    return found


def _f32(rows: _Bytes) -> _Floats:
    return rows.view(np.float32)


def _f16(rows: _Bytes) -> _Floats:
    return rows.view(np.float16).astype(np.float32)


# type -> weights a block, bytes a block, how it becomes floats, and codes with their scales and offsets if it has any
_KINDS: dict[int, _Kind] = {
    0: (1, 4, _f32, None),
    1: (1, 2, _f16, None),
    2: (_BLOCK, 18, _floats(_q4_0), _q4_0),
    3: (_BLOCK, 20, _floats(_q4_1), _q4_1),
    8: (_BLOCK, 34, _floats(_q8_0), _q8_0),
}
