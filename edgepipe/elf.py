"""What a shared library needs, read from its ELF header and its version needs (System V ABI, LSB core).

A wheel's name is a promise; these bytes are what the board's loader goes by.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

# e_machine of the ELF registry, by the name that `uname -m` has for it.
_MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64"}
_VERNEED = 0x6FFFFFFE  # SHT_GNU_verneed
_LITTLE, _WIDE = 1, 2  # EI_DATA and EI_CLASS
_HEADER = 64  # bytes of an ELF header
_SYMBOLS = re.compile(rb"(GLIBC_2|GLIBCXX_3\.4)\.(\d{1,3})\Z")
_MOST = 4096  # sections, libraries and versions read: a damaged file must not keep us busy


@dataclass(frozen=True)
class Needs:
    """The machine a library is for ("" if unknown), and N of the newest GLIBC_2.N and GLIBCXX_3.4.N it binds to."""

    machine: str
    glibc: int = 0
    libstdcxx: int = 0


def needs(data: bytes) -> Needs | None:
    """Read what a shared library needs; None if ``data`` is no little-endian ELF file, or a damaged one."""
    if len(data) < _HEADER or data[:4] != b"\x7fELF" or data[5] != _LITTLE:
        return None
    wide = data[4] == _WIDE
    newest: dict[bytes, int] = {}
    try:
        (machine,) = struct.unpack_from("<H", data, 18)
        sections = _sections(data, wide)
        for kind, offset, _, link in sections:
            for name in _versions(data, offset, sections[link][1]) if kind == _VERNEED else ():
                if match := _SYMBOLS.match(name):
                    newest[match.group(1)] = max(newest.get(match.group(1), 0), int(match.group(2)))
    except (struct.error, ValueError, IndexError, OverflowError):
        return None
    return Needs(_MACHINES.get(machine, ""), newest.get(b"GLIBC_2", 0), newest.get(b"GLIBCXX_3.4", 0))


def _sections(data: bytes, wide: bool) -> list[tuple[int, int, int, int]]:
    """Type, file offset, size and link of each section."""
    (table,) = struct.unpack_from("<Q", data, 40) if wide else struct.unpack_from("<I", data, 32)
    size, count = struct.unpack_from("<HH", data, 58 if wide else 46)
    layout = "<4xI16xQQI" if wide else "<4xI8xIII"
    return [struct.unpack_from(layout, data, table + index * size) for index in range(min(count, _MOST))]


def _versions(data: bytes, offset: int, strings: int) -> list[bytes]:
    """The names in a section of version needs: a list of libraries, each with a list of versions."""
    found = []
    for _ in range(_MOST):
        count, first, following = struct.unpack_from("<2xH4xII", data, offset)
        entry = offset + first
        for _ in range(min(count, _MOST)):
            name, after = struct.unpack_from("<8xII", data, entry)
            found.append(data[strings + name : data.index(b"\0", strings + name)])
            entry += after
        if not following:
            break
        offset += following
    return found
