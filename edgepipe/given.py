"""Data and preprocessing that the user names for a model on the command line: read, checked, and attached to it.

Data is raw: what the preprocessing says is done to it. Without one it is fed as it is.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe import data, isolate, model
from edgepipe.cache import hash_file
from edgepipe.codec import from_dict
from edgepipe.data import Dataset, Given
from edgepipe.errors import EdgepipeError, IntegrityError, UsageError
from edgepipe.schema import Preprocessing, TensorSpec

if TYPE_CHECKING:
    import numpy as np

    from edgepipe.model import Model

    Array = np.ndarray[Any, Any]

FLAG, PREPROCESSING = "--calibration", "--preprocessing"
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm")
ARRAYS = (".npy", ".npz")
MOST_FILES = 100_000
_HELD = 4  # every fourth sample is held out, so that data in the order of its classes is shared evenly
_EXAMPLE = (
    f"{PREPROCESSING} 'layout=NCHW scale=1/255 mean=0.485,0.456,0.406 std=0.229,0.224,0.225 color=RGB range=0,255'"
)
_LISTS = ("mean", "std", "range")
_COLORS = {"RGB": 3, "BGR": 3, "GRAY": 1}


@dataclass(frozen=True)
class Said:
    """What the user says of a model on the command line, as text; empty where nothing was said."""

    input_shape: model.Shapes | None = None
    calibration: str = ""
    preprocessing: str = ""
    task: str = ""


def load(ref: str, said: Said) -> Model:
    """Load a model as `edgepipe.model.load` does, with what the user says of it.

    Raises:
        UsageError: an option is wrong, or the data does not fit the model.
        IntegrityError: a file of the data is damaged, or what `edgepipe.model.load` raises.
    """
    preprocessing = parse(said.preprocessing) if said.preprocessing else None
    found = model.load(ref, said.input_shape, preprocessing=preprocessing, task=said.task)
    if preprocessing and found.inputs:
        _check_fits(preprocessing, found)
    return attach(found, Path(said.calibration).expanduser()) if said.calibration else found


def batch(said: Said, asked: int | None, found: Model) -> int:
    """The batch: ``asked``, or what a shape of the first input with a name says, or what the file fixes; else 1.

    Raises:
        UsageError: they are two.
    """
    if isinstance(said.input_shape, dict):
        told = next(iter(said.input_shape.values()))[0]
        if asked not in (None, 1, told):
            raise UsageError(f"a batch of {asked} and one of {told}", "--batch, --input-shape", "say one of the two")
        return told
    own = found.inputs[0].shape[0] if found.network is None and found.inputs and found.inputs[0].shape else 1
    return max(own, 1) if asked is None else asked


def parse(text: str) -> Preprocessing:
    """Read `key=value` pairs apart by spaces, or the table [preprocessing] of a TOML file.

    Raises:
        UsageError: an unknown key, or a value that makes no sense.
    """
    table = _table(Path(text)) if text.endswith(".toml") else _pairs(text)
    known = [each.name for each in fields(Preprocessing)]
    for key in table:
        if key not in known:
            raise UsageError(f"unknown key {key!r}", PREPROCESSING, f"known: {', '.join(known)}; {_EXAMPLE}")
    try:
        found = from_dict(Preprocessing, table, PREPROCESSING)
    except EdgepipeError as error:
        raise UsageError(f"{error.what} ({error.where})", PREPROCESSING, _EXAMPLE) from None
    numbers = [found.scale, *found.mean, *found.std, *found.range]
    wrong = next((what for what, holds in _rules(found, numbers) if not holds), "")
    if wrong:
        raise UsageError(wrong, PREPROCESSING, _EXAMPLE)
    return found


def _rules(found: Preprocessing, numbers: list[float]) -> list[tuple[str, bool]]:
    low_high = found.range if len(found.range) == 2 else [1.0, 0.0]  # noqa: PLR2004
    return [
        ("a number is not finite", all(math.isfinite(number) for number in numbers)),
        ("scale is 0", found.scale != 0),
        ("std holds 0", 0 not in found.std),
        ("range is two numbers, the lower one first", low_high[0] < low_high[1]),
        (f"no such colour order: {found.color}", found.color in ("", *_COLORS)),
        (f"a layout has each letter once, not {found.layout}", len(set(found.layout)) == len(found.layout)),
        (f"no such dtype: {found.dtype}", found.dtype in ("float32", "float16", "int8", "uint8", "int32", "int64")),
    ]


def _pairs(text: str) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for word in text.split():
        key, equals, value = word.partition("=")
        if not equals or key in table:
            raise UsageError(f"not key=value, or said twice: {word}", PREPROCESSING, _EXAMPLE)
        if key in _LISTS:
            table[key] = [_number(part) for part in value.split(",")]
        else:
            table[key] = _number(value) if key == "scale" else value
    return table


def _number(text: str) -> float:
    """A number, or a fraction such as 1/255."""
    top, _, bottom = text.partition("/")
    try:
        return float(top) / float(bottom or 1)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"not a number: {text}", PREPROCESSING, _EXAMPLE) from None


def _table(path: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the file can't be read: {error}", str(path), _EXAMPLE) from None
    inner = found.get("preprocessing", found)
    return inner if isinstance(inner, dict) else {}


def _check_fits(said: Preprocessing, found: Model) -> None:
    """Hold layout and channels against the first input."""
    shape, layout = found.inputs[0].shape, said.layout
    if layout and len(layout) != len(shape):
        raise UsageError(f"layout {layout} is not that of an input of shape {shape}", PREPROCESSING, _EXAMPLE)
    channels = shape[layout.index("C")] if "C" in layout else -1
    counts = {len(said.mean), len(said.std), _COLORS.get(said.color, 0)} - {0, 1} | (
        {1} if said.color == "GRAY" else set()
    )
    if channels > 0 and counts - {channels}:
        what = f"mean, std and color are for {max(counts)} channels, the input has {channels}"
        raise UsageError(what, PREPROCESSING, "give one number for each channel, or one for all")


def attach(found: Model, path: Path) -> Model:
    """The model with the data at ``path``: a .npz of arrays by input name, a .npy, or a folder of such files or images.

    Every fourth sample is held out: nothing is calibrated on it, and the gate of a model without data is held on it.

    Raises:
        UsageError: nothing there, or it does not fit the model's inputs.
        IntegrityError: a file is damaged.
    """
    arrays, digest, layout = _read(path, found)
    labels = arrays.pop("labels", None) if "labels" not in {spec.name for spec in found.inputs} else None
    arrays = _named(arrays, found.inputs, str(path))
    for spec in found.inputs[1:]:
        arrays[spec.name] = _checked(arrays[spec.name], spec, spec.shape[1:], str(path))
    first, layout = _laid_out(arrays.pop(found.inputs[0].name), found, layout, str(path))
    if first.size and first.dtype.kind == "f" and first.min() == first.max():
        raise UsageError(f"the data is {first.min()} everywhere", str(path), "give real samples")
    counts = {len(values) for values in (first, *arrays.values(), *([] if labels is None else [labels]))}
    if len(counts) != 1 or 0 in counts:
        raise UsageError(
            f"the arrays have {sorted(counts)} samples", str(path), "give each the same number, one at least"
        )
    if found.preprocessing != Preprocessing(layout=found.preprocessing.layout):
        _check_range(first, found.preprocessing, str(path))
    whole = Dataset(path.name, first, labels if found.task != "null" else None, layout, digest, arrays)
    whole = data.check(whole, found, str(path))
    return replace(found, given=_split(whole), raw_layout=layout)


def _split(whole: Dataset) -> Given:
    import numpy as np

    count = len(whole.inputs)
    place = np.arange(count)
    held = place % _HELD == _HELD - 1
    if count > 1 and not held.any():
        held[-1] = True
    said = f"samples of {whole.name}, sha256 {whole.sha256[:12]}"

    def part(chosen: Any, word: str) -> Dataset:
        named = replace(whole, name=f"{int(chosen.sum())} {word}{said}")
        return named.part(chosen, f"{whole.sha256}/{word}{count}")

    return Given(whole.name, whole.sha256, part(~held, ""), part(held, "held-out ") if held.any() else None)


def _read(path: Path, found: Model) -> tuple[dict[str, Array], str, str]:
    """The arrays by name ("" where the file has no names), the sha256, and the layout of images ("" for arrays)."""
    if path.is_file() and path.suffix in ARRAYS:
        return _arrays(path), hash_file(path), ""
    if not path.is_dir():
        what = "no such data" if not path.exists() else "neither a .npz, a .npy nor a folder"
        raise UsageError(what, str(path), f"{FLAG} calib.npz, with arrays named as the inputs; or a folder of samples")
    files = sorted(file for file in path.iterdir() if file.name[0] != "." and file.is_file())[: MOST_FILES + 1]
    kinds = {next((group for group in (ARRAYS, IMAGES) if file.suffix.lower() in group), ()) for file in files}
    if kinds not in ({ARRAYS}, {IMAGES}) or len(files) > MOST_FILES:
        other = next((file.name for file in files if file.suffix.lower() not in (*ARRAYS, *IMAGES)), "")
        what = "the folder holds no samples" if not files else f"{other or 'arrays beside images'} is no sample"
        what = f"more than {MOST_FILES} files" if len(files) > MOST_FILES else what
        raise UsageError(what, str(path), f"put {', '.join(ARRAYS)} files alone there, or images alone")
    lines = "".join(f"{hash_file(file)}  {file.name}\n" for file in files)
    digest = hashlib.sha256(lines.encode()).hexdigest()
    if kinds == {IMAGES}:
        return {"": _images(files, found)}, digest, "NHWC"
    return _joined([_arrays(file) for file in files], found.inputs, str(path)), digest, ""


def _arrays(path: Path) -> dict[str, Array]:
    import numpy as np

    if path.suffix == ".npz":
        return data.load_npz(path)
    try:
        return {"": np.load(path, allow_pickle=False)}
    except (ValueError, EOFError, OSError) as error:
        raise IntegrityError(f"the data file can't be read: {error}", str(path), "write it with numpy.save") from None


def _joined(parts: list[dict[str, Array]], inputs: list[TensorSpec], where: str) -> dict[str, Array]:
    """One array for each input out of many files, each of one sample or a batch."""
    import numpy as np

    named = [_named(part, inputs, where) for part in parts]
    found = {}
    for spec in inputs:
        columns = [part[spec.name] for part in named]
        columns = [values[None] if values.ndim == len(spec.shape) - 1 else values for values in columns]
        shapes = sorted({values.shape[1:] for values in columns})
        if len(shapes) > 1:
            raise UsageError(
                f"samples of {spec.name} differ in shape: {shapes[0]}, {shapes[1]}", where, "make them alike"
            )
        found[spec.name] = np.concatenate(columns)
    return found


def _named(arrays: dict[str, Array], inputs: list[TensorSpec], where: str) -> dict[str, Array]:
    """The arrays by the inputs' names; a single one needs no name where the model has one input."""
    if not inputs:
        raise UsageError("the model has no inputs to feed", where, "leave --calibration out")
    if len(arrays) == 1 and len(inputs) == 1:
        return {inputs[0].name: next(iter(arrays.values()))}
    wanted = {spec.name for spec in inputs}
    if set(arrays) == wanted:
        return dict(arrays)
    have = ", ".join(sorted(name or "one without a name" for name in arrays))
    what = f"the data has arrays {have}; the inputs are {', '.join(spec.name for spec in inputs)}"
    raise UsageError(what[:400], where, "write one array for each input, under its name, with numpy.savez")


def _laid_out(values: Array, found: Model, layout: str, where: str) -> tuple[Array, str]:
    """Check the first input's data; its layout is that of images, or the model's own, or its own with channels last."""
    spec, own = found.inputs[0], found.preprocessing.layout
    tried = [layout] if layout else [own, *([own.replace("C", "") + "C"] if "C" in own else [])]
    shapes = {each: data.expected_shape(found, each) if each else spec.shape[1:] for each in tried}
    fitting = next((each for each, shape in shapes.items() if shape is not None and _like(values, shape)), tried[0])
    return _checked(values, spec, shapes[fitting] or [], where), fitting


def _like(values: Array, shape: list[int]) -> bool:
    have = list(values.shape[1:])
    return len(have) == len(shape) and all(want in (-1, size) for want, size in zip(shape, have, strict=True))


def _checked(values: Array, spec: TensorSpec, shape: list[int], where: str) -> Array:
    """Refuse what the input can't take: another kind of number, another shape, NaN, integers beyond its type."""
    import numpy as np

    dtype = np.dtype(spec.dtype)
    if values.dtype.kind not in "uif" or (dtype.kind != "f" and values.dtype.kind == "f"):
        fix = "give numbers, and whole ones where the input takes whole ones"
        raise UsageError(f"the data for {spec.name} is {values.dtype}, the input takes {dtype}", where, fix)
    if not _like(values, shape):
        what = f"the data for {spec.name} has shape {list(values.shape)}; it takes samples of {shape}"
        raise UsageError(what, where, f"give an array of shape [samples, {', '.join(map(str, shape))}]")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UsageError(f"the data for {spec.name} holds NaN or infinity", where, "remove those samples")
    if values.size and dtype.kind != "f":
        limits = np.iinfo(dtype)
        if values.min() < limits.min or values.max() > limits.max:
            what = f"the data for {spec.name} goes from {values.min()} to {values.max()}, beyond {dtype}"
            raise UsageError(what, where, "give numbers that the input can hold")
        return values.astype(dtype)
    return values


def _check_range(values: Array, pre: Preprocessing, where: str) -> None:
    low, high = float(values.min()), float(values.max())
    margin = 1e-3 * (pre.range[1] - pre.range[0])
    if low < pre.range[0] - margin or high > pre.range[1] + margin:
        what = f"the data goes from {low:g} to {high:g}; raw data lies in {pre.range[0]:g} to {pre.range[1]:g}"
        raise UsageError(what, where, "give raw data, before the preprocessing; or correct the preprocessing's range")


def _images(files: list[Path], found: Model) -> Array:
    """Images as one uint8 array [N, H, W, C]; decoded in a child process, since files may be hostile."""
    import numpy as np

    pre = found.preprocessing
    if not {"H", "W"} <= set(pre.layout) or pre.color not in _COLORS:
        what = "images need the preprocessing: how pixels become input"
        raise UsageError(what, str(files[0].parent), _EXAMPLE)
    sizes = dict(zip(pre.layout, found.inputs[0].shape, strict=True))
    wanted = {"height": sizes["H"], "width": sizes["W"], "gray": pre.color == "GRAY"}
    with tempfile.TemporaryDirectory(prefix="edgepipe-") as folder:
        target = Path(folder) / "images.npy"
        names = [str(file.absolute()) for file in files]
        isolate.call(f"{__name__}:decode", {"files": names, "target": str(target), **wanted})
        pixels: Array = np.load(target, allow_pickle=False)
    return pixels


def decode(files: list[str], target: str, height: int, width: int, gray: bool) -> None:
    """Write the pixels of all files, uint8 [N, H, W, C], to ``target`` (runs in the child). A size of -1 is free.

    Raises:
        UsageError: Pillow is missing, or an image has another size.
        IntegrityError: a file is no image.
    """
    import numpy as np

    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise UsageError(
            "reading images needs Pillow", FLAG, "pip install 'edgepipe[images]', or give arrays"
        ) from None
    found: list[Array] = []
    for name in files:
        try:
            with Image.open(name) as image:
                size = (height if height > 0 else image.height, width if width > 0 else image.width)
                if found:
                    size = (found[0].shape[0], found[0].shape[1])
                if (image.height, image.width) != size:
                    what = f"the image is {image.width} x {image.height}, the model takes {size[1]} x {size[0]}"
                    raise UsageError(what, name, "resize the images first, the way the application does")
                pixels = np.asarray(image.convert("L" if gray else "RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise IntegrityError(
                f"not an image that can be read: {error}", name, "remove it or save it again"
            ) from None
        found.append(pixels[..., None] if gray else pixels)
    np.save(target, np.stack(found))
