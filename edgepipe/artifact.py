"""An exported model as files and a manifest: build it, save it, load it, and prove that its bytes are its bytes."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgepipe.cache import hash_file
from edgepipe.codec import from_dict, to_dict
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.schema import NAME, Artifact, FileRef, Preprocessing, TensorSpec

MANIFEST = "artifact.json"
MANIFEST_LIMIT = 1 << 20
_BLOCK = 1 << 20
_GZIP = 31  # zlib's window bits for a gzip header and trailer

Call = Callable[[str, dict[str, Any]], Any]
"""How a format runs its heavy part: ``call("module:function", kwargs)`` in a child process (see isolate.call)."""


@dataclass(frozen=True)
class ExportOptions:
    """What an exported file must be like.

    ``dynamic`` has, by input, the axes that stay free; axis 0 of one, or under the name "", is the batch of all.
    ``opset`` and ``ir_version`` are upper limits (an old runtime on the board); ``layout`` asks for an input layout
    other than the format's own, ``fold`` for the preprocessing inside the file; ``reduce_range`` keeps int8 weights to
    7 bits, for x86 CPUs with AVX2 and no VNNI, whose 8-bit products saturate; ``threads`` is for calibration on this
    machine; ``synthetic`` allows calibration on made-up data where the model has none.
    """

    batch: int = 1
    dynamic: dict[str, list[int]] = field(default_factory=dict)
    opset: int | None = None
    ir_version: int | None = None
    layout: str | None = None
    fold: bool = False
    threads: int = 2
    reduce_range: bool = False
    synthetic: bool = False

    @property
    def dynamic_batch(self) -> bool:
        """Whether the batch stays free."""
        return any(0 in axes for axes in self.dynamic.values())

    def freed(self, specs: list[TensorSpec]) -> list[TensorSpec]:
        """The inputs with -1 at the axes that stay free besides the batch."""
        free = {(name, axis) for name, axes in self.dynamic.items() for axis in axes if axis}
        return [
            replace(spec, shape=[-1 if (spec.name, axis) in free else size for axis, size in enumerate(spec.shape)])
            for spec in specs
        ]


@dataclass(frozen=True)
class Output:
    """What a format wrote into a folder: flat file names (the main one first) and what a runtime must know of them."""

    files: list[str]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    preprocessing: Preprocessing
    opset: int | None = None
    ir_version: int | None = None
    note: str = ""


def build(
    format: str,  # noqa: A002  the word of the contract
    folder: Path,
    output: Output,
    *,
    model: str,
    recipe: str,
    parent_sha256: str,
    raw_layout: str = "",
) -> Artifact:
    """Measure and hash the files of ``output`` in ``folder``. ``path`` of the result is absolute."""
    files = [FileRef(name, hash_file(folder / name), (folder / name).stat().st_size) for name in output.files]
    return Artifact(
        format=format,
        path=str((folder / output.files[0]).absolute()),
        bytes=sum(file.bytes for file in files),
        bytes_gzip=sum(gzip_size(folder / name) for name in output.files),
        sha256=files[0].sha256,
        files=files,
        inputs=output.inputs,
        outputs=output.outputs,
        preprocessing=output.preprocessing,
        opset=output.opset,
        ir_version=output.ir_version,
        model=model,
        recipe=recipe,
        parent_sha256=parent_sha256,
        raw_layout=raw_layout,
    )


def gzip_size(path: Path) -> int:
    """The size in bytes of the file as ``gzip -6`` would make it (without its name in the header)."""
    packer = zlib.compressobj(6, zlib.DEFLATED, _GZIP)
    total = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            total += len(packer.compress(block))
    return total + len(packer.flush())


def zstd_size(path: Path) -> int:
    """The size in bytes of the file as ``zstd`` would make it at its default level, 3."""
    import zstandard

    packer = zstandard.ZstdCompressor(level=3).compressobj()
    total = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            total += len(packer.compress(block))
    return total + len(packer.flush())


def portable(artifact: Artifact) -> Artifact:
    """The same artifact with a flat ``path``: what goes into a manifest, a release or a file."""
    return replace(artifact, path=Path(artifact.path).name)


def save(artifact: Artifact, folder: Path) -> Path:
    """Write ``artifact.json`` into ``folder`` beside the artifact's files, through a temporary file and a rename."""
    text = json.dumps(to_dict(portable(artifact)), indent=1, sort_keys=True) + "\n"
    descriptor, name = tempfile.mkstemp(prefix=".artifact-", dir=folder)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        path = folder / MANIFEST
        os.replace(name, path)  # noqa: PTH105  mkstemp gives a string
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def load(path: Path) -> Artifact:
    """Read ``artifact.json`` (or the one in the folder ``path``). ``path`` of the result is absolute.

    Raises:
        UsageError: there is none.
        IntegrityError: it is not an artifact's manifest, or it names a file outside its folder.
    """
    file = path / MANIFEST if path.is_dir() else path
    if not file.is_file():
        raise UsageError("no artifact.json here", str(path), "give a folder that `edgepipe export -o` wrote")
    try:
        with file.open("rb") as stream:
            artifact = from_dict(Artifact, json.loads(stream.read(MANIFEST_LIMIT)), "artifact")
    except ValueError:
        raise IntegrityError("the manifest is not JSON", str(file), "export the model again") from None
    names = [ref.name for ref in artifact.files]
    if not names or artifact.path != names[0] or not all(NAME.match(name) for name in names):
        raise IntegrityError("the manifest names a file outside its folder", str(file), "export the model again")
    return replace(artifact, path=str((file.parent / artifact.path).absolute()))


def check(artifact: Artifact) -> None:
    """Hash every file again.

    Raises:
        IntegrityError: a file is missing or differs from the manifest, or ``sha256`` is not that of the main file.
    """
    folder = Path(artifact.path).parent
    again = "export the model again"
    for ref in artifact.files:
        file = folder / ref.name
        if not file.is_file():
            raise IntegrityError(f"{ref.name} is missing", str(folder), again)
        if file.stat().st_size != ref.bytes or hash_file(file) != ref.sha256:
            raise IntegrityError(f"{ref.name} is not the file that was exported", str(file), again)
    if artifact.files[0].sha256 != artifact.sha256:
        raise IntegrityError("the artifact's hash is not that of its main file", artifact.path, again)


def copy(artifact: Artifact, folder: Path) -> Artifact:
    """Put the files and their manifest into ``folder`` (made if need be); return the artifact there.

    Raises:
        IntegrityError: the copy is not what the manifest says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(artifact.path).parent
    for ref in artifact.files:
        partial = folder / f".{ref.name}.part"
        try:
            shutil.copyfile(source / ref.name, partial)
            partial.replace(folder / ref.name)
        finally:
            partial.unlink(missing_ok=True)
    placed = replace(artifact, path=str((folder / Path(artifact.path).name).absolute()))
    check(placed)
    save(placed, folder)
    return placed
