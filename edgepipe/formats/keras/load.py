"""Keras files, SavedModel folders and frozen graphs as models: read by TensorFlow in a child process, sealed off."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from edgepipe import isolate
from edgepipe.cache import hash_file
from edgepipe.codec import from_dict
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.model import Card, Loaded
from edgepipe.schema import TensorSpec

EXTENSIONS = (".keras", ".h5", ".hdf5", ".pb")
NAMES = ("saved_model.pb",)  # the file that makes a folder a SavedModel
_VARIABLES = "variables"


def load(path: Path, card: Card) -> Loaded:
    """Inspect the file ``path``, or the SavedModel whose ``saved_model.pb`` it is.

    Shapes and types are the file's own, but for sizes it leaves open after the batch: those are ``card.inputs``'.

    Raises:
        UsageError: TensorFlow is not installed, the model needs code or strings that no file can bring along, or a size
            is not known.
        IntegrityError: the file is damaged, or reaches for other files.
    """
    require(str(path))
    parts = [path, *_variables(path)]
    facts = isolate.read(f"{__package__}.read:inspect", path)
    inputs, outputs = ([from_dict(TensorSpec, spec) for spec in facts[side]] for side in ("inputs", "outputs"))
    inputs = _sized(inputs, card, path)
    digest = hashlib.sha256("\n".join(hash_file(part) for part in parts).encode()).hexdigest()
    identity = f"{digest}-{card.preprocessing!r}-{[spec.shape for spec in inputs]}"
    return Loaded(
        "keras",
        inputs,
        outputs,
        digest if len(parts) > 1 else hash_file(path),
        identity,
        None,
        facts["parameters"],
        facts["macs"],
        facts["reason"],
    )


def require(where: str) -> None:
    """Refuse to go on without TensorFlow.

    Raises:
        UsageError: it is not installed.
    """
    if importlib.util.find_spec("tensorflow") is None:
        fix = "pip install 'edgepipe[keras]'  (tensorflow, about 2 GB)"
        raise UsageError("TensorFlow is needed for this file, and is not installed", where, fix)


def _variables(path: Path) -> list[Path]:
    """The other files of a SavedModel, each a plain file inside its folder."""
    if path.name not in NAMES:
        return []
    found = sorted(part for part in path.parent.rglob("*") if part != path and not part.is_dir())
    for part in (path, *found, *(folder for folder in path.parent.rglob("*") if folder.is_dir())):
        if part.is_symlink() or not (part.is_file() or part.is_dir()):
            raise IntegrityError(f"{part.name} is not a plain file", str(path.parent), "copy the files, not links")
    return [part for part in found if part.parent.name == _VARIABLES]


def _sized(inputs: list[TensorSpec], card: Card, path: Path) -> list[TensorSpec]:
    """The inputs with the card's layout and, where the file leaves sizes open, the card's sizes."""
    specs: list[TensorSpec] = []
    for index, spec in enumerate(inputs):
        shape: list[Any] = list(spec.shape)
        told = card.inputs[index].shape if index < len(card.inputs) else None
        if told and (
            not shape
            or len(told) != len(shape) - 1
            or any(have not in (-1, size) for have, size in zip(shape[1:], told, strict=True))
        ):
            raise UsageError(f"input {spec.name} is {shape[1:]}, not {told}", str(path), "correct the shape")
        if told:
            shape = [shape[0], *told]
        if -1 in shape[1:]:
            fix = "say it with --input-shape, e.g. --input-shape 224,224,3, or in model.toml"
            raise UsageError(f"input {spec.name} leaves its size open: {shape[1:]}", str(path), fix)
        layout = spec.layout or (card.preprocessing.layout if index == 0 else "")
        specs.append(TensorSpec(spec.name, shape, spec.dtype, layout))
    return specs
