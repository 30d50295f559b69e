"""Wheels and shared libraries of a few bytes, true to their formats."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path


def library(
    machine: int = 183,
    wide: bool = True,
    versions: tuple[bytes, ...] = (b"GLIBC_2.17", b"GLIBC_2.34", b"GLIBCXX_3.4.30", b"CXXABI_1.3"),
) -> bytes:
    """An ELF file of one section of version needs and one of its strings."""
    names, strings = [], b"\0libc.so.6\0"
    for version in versions:
        names.append(len(strings))
        strings += version + b"\0"
    needs = struct.pack("<HHIII", 1, len(versions), 1, 16, 0)
    for index, name in enumerate(names):
        needs += struct.pack("<IHHII", 0, 0, 0, name, 16 if index + 1 < len(names) else 0)
    start = 64
    body = needs + strings
    table = start + len(body)
    section = "<4xI16xQQI20x" if wide else "<4xI8xIII12x"
    size = struct.calcsize(section)
    sections = struct.pack(section, 0, 0, 0, 0)
    sections += struct.pack(section, 0x6FFFFFFE, start, len(needs), 2)
    sections += struct.pack(section, 3, start + len(needs), len(strings), 0)
    header = bytearray(64)
    header[:6] = b"\x7fELF" + bytes([2 if wide else 1, 1])
    struct.pack_into("<H", header, 18, machine)
    struct.pack_into("<Q" if wide else "<I", header, 40 if wide else 32, table)
    struct.pack_into("<HH", header, 58 if wide else 46, size, 3)
    return bytes(header) + body + sections


def wheel(
    folder: Path, name: str, version: str, tag: str, files: dict[str, bytes], requires: str = "", python: str = ""
) -> Path:
    """Write a wheel that pip installs."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += f"Requires-Dist: {requires}\n" if requires else ""
    metadata += f"Requires-Python: {python}\n" if python else ""
    tags = "".join(f"Tag: {tag.rsplit('-', 1)[0]}-{each}\n" for each in tag.rsplit("-", 1)[1].split("."))
    content = {
        **files,
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: kit\nRoot-Is-Purelib: false\n{tags}".encode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for each, data in content.items():
            archive.writestr(each, data)
        archive.writestr(f"{info}/RECORD", "".join(f"{each},,\n" for each in (*content, f"{info}/RECORD")))
    return path
