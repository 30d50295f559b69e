"""Every kind of file to every format, tried on a small network: what docs/conversions.md says, and who writes it.

A cell is right where the file that came out, run by its own runtime, gives the answers that the source gives in the
framework it came from: torch for what torch wrote, TensorFlow for what TensorFlow wrote.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from edgepipe import export, model
from edgepipe.cache import Cache
from edgepipe.errors import EdgepipeError
from tests.unit import formats_kit as kit
from tests.unit import keras_kit

PAGE = Path(__file__).parents[2] / "docs" / "conversions.md"
FORMATS = ("onnx", "tflite", "openvino")
CLOSE = 1e-4  # of the answers' largest value; the converters fold and reorder float32 arithmetic
SAMPLES = 4

_HEAD = """# What becomes what

Written by `python -m tests.conformance.conversions`, which `make conformance` begins with; don't edit it by hand.
Tests try what is refused and a format from each kind of file, and fail where this page is wrong.
`right`: the file that came out, run by its own runtime, gave the answers of the source in the framework that wrote it,
within {close:g} of the largest, for a small convolutional network. What larger ones do: [Conformance](conformance.md).

| from | {formats} |
|---|{rule}|
"""


@dataclass(frozen=True)
class Source:
    """A kind of source: what the page calls it, what the user names, and what is known of its answers."""

    kind: str
    ref: str
    images: np.ndarray[Any, Any]  # [SAMPLES, 3, 8, 8] or [SAMPLES, 8, 8, 3], as the source takes them
    answers: np.ndarray[Any, Any]
    input_shape: list[int] | None = None  # of one sample


def sources(folder: Path) -> Iterator[Source]:
    """A small network in each kind of file that is read without TensorFlow, below ``folder``."""
    yield from _torch(folder)
    nchw, answers = kit.prepared("NCHW", SAMPLES), kit.torch_outputs(SAMPLES)
    for kind, name in (("ONNX `.onnx`", "onnx"), ("TFLite `.tflite`", "tflite"), ("OpenVINO IR `.xml`", "openvino")):
        bare = folder / name
        shutil.copytree(Path(kit.made(name).artifact.path).parent, bare)
        (bare / "artifact.json").unlink(missing_ok=True)  # what a file of somebody else's has not
        images = kit.prepared("NHWC", SAMPLES) if name == "tflite" else nchw
        yield Source(kind, str(bare / Path(kit.made(name).artifact.path).name), images, answers)


def _tensorflow() -> Iterator[Source]:
    """The small network in each kind of file that TensorFlow writes."""
    with np.load(keras_kit.files() / "answers.npz") as known:
        images, answers = known["image"][:SAMPLES], known["scores"][:SAMPLES]
    named = {
        "Keras `.keras`": "net.keras",
        "Keras `.h5`": "net.h5",
        "SavedModel": "saved",
        "frozen graph `.pb`": "net.pb",
    }
    for kind, name in named.items():
        yield Source(kind, str(keras_kit.files() / name), images, answers)


def _torch(folder: Path) -> Iterator[Source]:
    import torch

    module, images, answers = kit.tiny().module, kit.prepared("NCHW", SAMPLES), kit.torch_outputs(SAMPLES)
    name = f"{folder.name.replace('-', '_')}_source"
    loading = f"from edgepipe.model import load\n\n\ndef net():\n    return load({str(kit.tiny().folder)!r}).module\n"
    (folder / f"{name}.py").write_text(loading, encoding="utf-8")
    sys.path.insert(0, str(folder))
    yield Source("torch module `package.module:function`", f"{name}:net", images, answers, [3, 8, 8])
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=batch, strict=False)
    torch.export.save(program, folder / "net.pt2")
    yield Source("torch.export `.pt2`", str(folder / "net.pt2"), images, answers)
    yield Source("`.safetensors` with its `model.py`", str(kit.tiny().folder), images, answers)


def tried(source: Source, name: str) -> str:
    """``right``, or what became of it otherwise: ``refused: REASON`` or ``wrong: HOW FAR OFF``."""
    try:
        loaded = model.load(source.ref, source.input_shape)
        found = export.make(loaded, "none", name, cache=Cache(kit.home() / "work")).artifact
    except EdgepipeError as error:
        return f"refused: {error.what}"
    images, wanted = source.images, found.inputs[0].shape[1:]
    if list(images.shape[1:]) != wanted:
        images = images.transpose(0, 2, 3, 1) if images.shape[1] == wanted[-1] else images.transpose(0, 3, 1, 2)
    off = np.abs(kit.run(found, np.ascontiguousarray(images)) - source.answers).max()
    return "right" if off <= CLOSE * np.abs(source.answers).max() else f"wrong: off by {off:.3g}"


def said() -> dict[tuple[str, str], str]:
    """What the page says of each cell: (kind of source, format) -> ``right`` or ``refused``."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    return {(kind, name): cell for kind, *cells in rows[2:] for name, cell in zip(FORMATS, cells, strict=True)}


def page(folder: Path) -> str:
    """Try every cell, with the sources' files below ``folder``; the page as it should be."""
    lines, notes = [], []
    for source in chain(sources(folder), _tensorflow()):
        cells = []
        for name in FORMATS:
            outcome, _, why = tried(source, name).partition(": ")
            cells.append(outcome)
            notes += [f"* {source.kind} to {name}: {outcome}, {why}"] if why else []
        lines.append(f"| {source.kind} | {' | '.join(cells)} |")
    head = _HEAD.format(close=CLOSE, formats=" | ".join(FORMATS), rule="|".join(["---"] * len(FORMATS)))
    return head + "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def main() -> int:
    """Write the page, and print it; exit 1 if anything is wrong."""
    folder = kit.home() / "conversions"
    folder.mkdir()
    kit.use_home()
    text = page(folder)
    PAGE.write_text(text, encoding="utf-8")
    print(text)
    return int("| wrong" in text)


if __name__ == "__main__":
    sys.exit(main())
