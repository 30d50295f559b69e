"""Models: found by name, path or ``package.module:function``, loaded, checked and counted."""

from __future__ import annotations

import re
import threading
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

from edgepipe import paths, plugins
from edgepipe.cache import hash_file
from edgepipe.codec import from_dict
from edgepipe.data import DataPaths, Given, IdxPair
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.fetched import Package
from edgepipe.record import ModelFacts
from edgepipe.schema import NAME, Preprocessing, TensorSpec

CARD = "model.toml"
Shapes = Sequence[int] | dict[str, list[int]]
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*\Z")


@dataclass(frozen=True)
class Card:
    """What ``model.toml`` says. Shapes are of one sample: without the batch. A file without a card has an empty one.

    ``weights_from`` is the part of the weights that a package has.
    ``features`` names the model whose last layer's input a task compares images by.
    """

    name: str
    task: str = "null"
    description: str = ""
    license: str = ""
    module: str = "model.py"
    weights: str = ""
    weights_sha256: str = ""
    weights_from: Optional[Package] = None  # noqa: UP045  the codec reads Optional
    labels: list[str] = field(default_factory=list)
    inputs: list[TensorSpec] = field(default_factory=list)
    outputs: list[TensorSpec] = field(default_factory=list)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    metric: str = ""
    floor: float = 0.0
    features: str = ""
    data: DataPaths | None = None


_BARE = Card("")


class Later:
    """A torch module in eval mode, built when somebody first asks for it: importing torch alone takes seconds.

    ``traced``: it is a program of torch.export, which has operators and no layers.
    """

    def __init__(self, build: Callable[[], Any], *, traced: bool = False) -> None:
        self.traced = traced
        self._build: Callable[[], Any] | None = build
        self._module: Any = None
        self._lock = threading.Lock()

    @staticmethod
    def of(module: Any) -> Later:
        """One that is there already."""
        found = Later(lambda: module, traced=getattr(module, "traced", False))
        found.get()
        return found

    def get(self) -> Any:
        """The module.

        Raises:
            UsageError, IntegrityError, LinkError: it can't be built, or its files have changed.
        """
        with self._lock:
            if self._build:
                self._module, self._build = self._build(), None
            return self._module


@dataclass(frozen=True)
class Loaded:
    """What a format's ``load`` hands back. ``identity`` changes whenever what the model computes may have changed.

    ``network`` is None where the model is a file. ``reason`` says why a count is null.
    """

    format: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    sha256: str
    identity: str
    network: Later | None = None
    parameters: int | None = None
    macs: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Model:
    """A trained model, ready to be compressed and exported.

    ``shape[0]`` of inputs and outputs is the batch: -1 where it is free. ``format`` is that of the source: "torch"
    where ``network`` is set, else the format of the file ``path``. ``identity`` is what caches go by. ``ref`` and
    ``input_shape`` are what `load` was given: another process loads the same model by them. ``given`` is data that the
    user named for it. ``learnt`` names the parameters that differ between adapters of one base, if it has adapters.
    """

    name: str
    task: str
    folder: Path
    format: str
    network: Later | None
    path: Path | None
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    preprocessing: Preprocessing
    raw_layout: str
    labels: list[str]
    data: DataPaths | None
    metric: str
    floor: float | None
    facts: ModelFacts
    identity: str
    ref: str = ""
    input_shape: Shapes | None = None
    given: Given | None = None
    features: str = ""
    learnt: tuple[str, ...] = ()

    @property
    def module(self) -> Any:
        """The torch module, built now if it was not before; None where the model is a file."""
        return self.network.get() if self.network else None


def listing() -> list[str]:
    """Names of all models found under ``models/`` folders, sorted."""
    found = set()
    for base in paths.search("models"):
        if base.is_dir():
            found |= {card.parent.name for card in base.glob(f"*/{CARD}") if card.parent.name[0] not in "_."}
    return sorted(found)


def find(ref: str) -> Path:
    """Where the model ``ref`` is: its folder for a name, else the folder or file that ``ref`` is a path to.

    Raises:
        UsageError: no such model; near names are listed.
    """
    if NAME.match(ref) and ref[0] not in "_.":
        for base in paths.search("models"):
            if (base / ref / CARD).is_file():
                return base / ref
    path = Path(ref).expanduser()
    if (path / CARD).is_file() or path.is_file():
        return path
    if path.is_dir():
        inside = next((path / name for name in _names() if (path / name).is_file()), None)
        if inside:
            return inside
        raise UsageError("this folder holds no model.toml", str(path), "give a model folder, a file or a name")
    if "/" in ref or path.suffix in _suffixes():
        raise UsageError("no such model file", ref, "check the path")
    raise plugins.unknown("model", ref, listing())


def load(
    ref: str, input_shape: Shapes | None = None, *, preprocessing: Preprocessing | None = None, task: str = ""
) -> Model:
    """Load a model by name, path or ``package.module:function``, and check it.

    Args:
        ref: what the user named.
        input_shape: the shape of one sample without the batch, or shapes with it by input name, for models that don't
            say it themselves, and for files that leave it open.
        preprocessing: how raw data becomes input, for models without a card.
        task: what the model does, for models without a card.

    Raises:
        UsageError: no such model, or its description is wrong.
        IntegrityError: its weights are not those promised, are damaged, or hold NaN.
    """
    shape = input_shape or None
    task = (task or "null").replace("-", "_")
    if task not in plugins.names("tasks"):
        raise plugins.unknown("task", task, plugins.names("tasks"))
    bare = Card("", task, inputs=_sample_input(shape), preprocessing=preprocessing or Preprocessing())
    if _FUNCTION.match(ref) and not Path(ref).exists():
        torch_load = plugins.load("formats", "torch", "load")
        card = replace(bare, name=ref.rsplit(":", 1)[1])
        loaded: Loaded = torch_load.from_function(ref, card)
        loaded = replace(loaded, identity=f"{loaded.identity}-{preprocessing!r}" if preprocessing else loaded.identity)
        return _named(_model(card, Path(), None, loaded), ref, shape)
    path = find(ref)
    card, weights = _described(path, bare)
    if not weights.is_file():
        raise UsageError("the weights are missing", str(weights), "check `weights` in model.toml")
    loader = _loader(weights)
    digest = hash_file(weights)
    if card.weights_sha256 and digest != card.weights_sha256:
        what = (
            f"the weights are not those model.toml promises: sha256 {digest[:12]}..., not {card.weights_sha256[:12]}..."
        )
        raise IntegrityError(what, str(weights), "get the weights again, or correct weights_sha256 if you trained anew")
    loaded = loader.load(weights, card)
    loaded = _pinned(loaded, shape, str(weights)) if shape and loaded.network is None else loaded
    return _named(_model(card, weights.parent, weights, loaded), str(path.absolute()), shape)


def weights_of(ref: str) -> Path | None:
    """The file that holds the weights of the model ``ref``; None where a function returns it."""
    if _FUNCTION.match(ref) and not Path(ref).exists():
        return None
    return _described(find(ref), _BARE)[1]


def _named(model: Model, ref: str, shape: Shapes | None) -> Model:
    return replace(model, ref=ref, input_shape=shape)


def _pinned(loaded: Loaded, shape: Shapes, where: str) -> Loaded:
    """A file with the sizes that it leaves open fixed.

    Raises:
        UsageError: no such input, another rank, another size than the file fixes, or a format that can't be changed.
    """
    flag, inputs = "--input-shape", {spec.name: spec for spec in loaded.inputs}
    if not isinstance(shape, dict):
        first = next(iter(inputs.values()), None)
        shape = {first.name: [first.shape[0] if first.shape else -1, *shape]} if first else {"": list(shape)}
    for name, sizes in shape.items():
        if name not in inputs:
            raise plugins.unknown("input", name, list(inputs))
        own = inputs[name].shape
        if len(own) != len(sizes) or any(has not in (-1, size) for has, size in zip(own, sizes, strict=False)):
            raise UsageError(f"{name} has shape {own} in the file, not {list(sizes)}", f"{flag}, {where}", "correct it")
        if loaded.format == "tflite" and own != list(sizes):
            fix = "fix it where the file was made"
            raise UsageError("the shapes of a TFLite file can't be changed", f"{flag}, {where}", fix)
    fixed = [replace(spec, shape=list(shape.get(spec.name, spec.shape))) for spec in loaded.inputs]
    return replace(loaded, inputs=fixed, identity=f"{loaded.identity}-{sorted(shape.items())}")


def _model(card: Card, folder: Path, weights: Path | None, loaded: Loaded) -> Model:
    facts = ModelFacts(card.name, card.task, loaded.sha256, loaded.parameters, loaded.macs, loaded.reason)
    return Model(
        name=card.name,
        task=card.task,
        folder=folder,
        format=loaded.format,
        network=loaded.network,
        path=None if loaded.network is not None else weights,
        inputs=loaded.inputs,
        outputs=loaded.outputs,
        preprocessing=card.preprocessing,
        raw_layout=card.data.layout if card.data else card.preprocessing.layout,
        labels=card.labels,
        data=card.data,
        metric=card.metric,
        floor=card.floor or None,
        facts=facts,
        identity=loaded.identity,
        features=card.features,
    )


def _described(path: Path, bare: Card) -> tuple[Card, Path]:
    """The card and the weights of a folder or file; a file whose folder's card names it gets that card, else ``bare``.

    Raises:
        UsageError: there is a card, and it says something else than the user did.
    """
    folder = path if path.is_dir() else path.parent
    card = read_card(folder / CARD) if (folder / CARD).is_file() else None
    if card and (path.is_dir() or card.weights == path.name):
        for word in ("preprocessing", "task"):
            if getattr(bare, word) != getattr(_BARE, word):
                what = f"--{word} is for models without a card"
                raise UsageError(what, str(folder / CARD), f"leave it out, or correct {word} there")
        return card, folder / card.weights
    named = folder.absolute().name if path.name in _names() else path.stem
    return replace(bare, name=_flat_name(named), weights=path.name), path


def _sample_input(shape: Shapes | None) -> list[TensorSpec]:
    """Inputs of a model without a card: one of a shape without the batch, or some with it, by name."""
    if isinstance(shape, dict):
        return [TensorSpec(name, list(sizes[1:])) for name, sizes in shape.items()]
    return [TensorSpec("input", [int(size) for size in shape])] if shape else []


def _flat_name(text: str) -> str:
    """A name for a file without a card, safe on any board."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip(".")[:64]
    return name or "model"


def _parts() -> Iterator[tuple[str, Any]]:
    """Every format that can load, and its part that does."""
    for name in plugins.names("formats"):
        try:
            yield name, plugins.load("formats", name, "load")
        except UsageError:
            continue  # a format that can only be written


def _suffixes() -> dict[str, str]:
    """File suffix -> format, for all formats that can load."""
    return {suffix: name for name, part in _parts() for suffix in part.EXTENSIONS}


def _names() -> tuple[str, ...]:
    """Names of files that make their folder a model."""
    return tuple(file for _, part in _parts() for file in getattr(part, "NAMES", ()))


def _loader(weights: Path) -> Any:
    known = _suffixes()
    if weights.suffix not in known:
        what = f"no format reads {weights.suffix or 'files without a suffix'}"
        raise UsageError(what, str(weights), f"give one of: {', '.join(sorted(known))}")
    return plugins.load("formats", known[weights.suffix], "load")


def read_card(path: Path) -> Card:
    """Read and check ``model.toml``.

    Raises:
        UsageError: it is not TOML, lacks something, or has something of a wrong type.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"model.toml can't be read: {error}", str(path), "correct it there") from None
    data, accuracy = table.pop("data", None), table.pop("accuracy", {})
    table.setdefault("name", path.parent.resolve().name)
    try:
        if not isinstance(accuracy, dict):
            raise IntegrityError("expected a table", "accuracy")
        card = from_dict(Card, {**table, **accuracy}, "model.toml")
        places = _data_paths(data, path.parent) if data is not None else None
    except (IntegrityError, TypeError) as error:
        raise UsageError(
            f"model.toml is wrong: {error}", f"{path}, {getattr(error, 'where', '')}", "correct it"
        ) from None
    _check_card(card, path)
    return replace(card, data=places)


def _check_card(card: Card, path: Path) -> None:
    for name in (card.weights, card.module):
        if not NAME.match(name):
            raise UsageError(f"{name!r} is not the name of a file in the model's folder", str(path), "use a flat name")
    if not NAME.match(card.name):
        raise UsageError(f"{card.name!r} can't be a model's name", str(path), "use letters, digits, '.', '_' and '-'")
    task = card.task.replace("-", "_")
    if task not in plugins.names("tasks"):
        raise plugins.unknown("task", task, plugins.names("tasks"))


def _data_paths(table: dict[str, Any], folder: Path) -> DataPaths:
    if not isinstance(table, dict):
        raise IntegrityError("expected a table", "data")

    def place(key: str, value: Any) -> Path | None:
        if value is not None and not isinstance(value, str):
            raise IntegrityError("a path must be a string", f"data.{key}")
        return None if value is None else folder / value  # an absolute path stays as it is

    def pair(key: str) -> IdxPair | None:
        part = table.get(key)
        if part is None:
            return None
        if not isinstance(part, dict) or not {"images", "labels"} <= set(part):
            raise IntegrityError("expected a table with images and labels", f"data.{key}")
        limit = part.get("limit")
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise IntegrityError("limit must be a positive whole number", f"data.{key}")
        images, labels = place(key, part["images"]), place(key, part["labels"])
        assert images is not None
        assert labels is not None
        return IdxPair(images, labels, str(part.get("package", "")), limit)

    sets = {key: place(key, table.get(key)) for key in ("calibration", "evaluation", "training", "validation")}
    return DataPaths(
        layout=str(table.get("layout", "")),
        full=pair("full"),
        full_training=pair("full_training"),
        license=str(table.get("license", "")),
        **sets,
    )
