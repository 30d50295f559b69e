"""Torch modules: safetensors weights put into the network that ``model.py`` builds, or a function's module.

Nothing is unpickled: weights are safetensors alone.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

from edgepipe import fetched
from edgepipe.cache import Cache, NoRoomError, code, hash_file, key, versions
from edgepipe.codec import canonical, from_dict
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.fetched import Package
from edgepipe.formats.torch import program
from edgepipe.model import Card, Later, Loaded
from edgepipe.schema import TensorSpec

EXTENSIONS = (".safetensors", ".pt2", ".pt", ".pth", ".ckpt")
_PROGRAM, _WEIGHTS = ".pt2", ".safetensors"  # the others are pickles, which are refused
_LISTED = 3
_FACTS = "facts.json"


def load(path: Path, card: Card) -> Loaded:
    """Build the network with ``build()`` of the model.py beside ``path`` and put the weights into it.

    Raises:
        UsageError: no model.py, it fails, or the input's shape is not known.
        IntegrityError: the file is damaged, keys or shapes don't fit the network, or a weight is NaN or infinite.
    """
    if path.suffix == _PROGRAM:
        return _from_program(path, card)
    if path.suffix != _WEIGHTS:
        raise _pickled(path)
    source = path.parent / card.module
    if not source.is_file():
        raise UsageError("the weights have no network", str(source), "put model.py with build() beside them")
    digest, identity = _identified(path, card)
    made: list[Loaded] = []

    def describe(folder: Path) -> None:
        made.append(_loaded(_weighted(path, card), card, digest, identity, str(source)))
        facts = _Facts(made[0].outputs, made[0].parameters, made[0].macs, made[0].reason)
        (folder / _FACTS).write_bytes(canonical(facts))

    entry = key("network", identity=identity, code=code(__file__), versions=versions(("torch", "safetensors")))
    try:
        folder, _ = Cache().make(entry, describe)
    except NoRoomError:  # what is told of it is a convenience
        return made[0] if made else _loaded(_weighted(path, card), card, digest, identity, str(source))
    if made:
        return made[0]
    known = from_dict(_Facts, json.loads((folder / _FACTS).read_bytes()))

    def build() -> Any:
        if _identified(path, card)[1] != identity:
            raise IntegrityError("the model was changed in the meantime", str(path.parent), "run it again")
        return _weighted(path, card).eval()

    inputs = _shapes(card, str(source))
    return Loaded(
        "torch", inputs, known.outputs, digest, identity, Later(build), known.parameters, known.macs, known.reason
    )


@dataclass(frozen=True)
class _Facts:
    """What is known of a network that was built once and found to be sound."""

    outputs: list[TensorSpec]
    parameters: Optional[int]  # noqa: UP045  the codec reads Optional
    macs: Optional[int]  # noqa: UP045
    reason: str


def _identified(path: Path, card: Card) -> tuple[str, str]:
    """The hash of the weights, and of all that the network is made of."""
    digest = hash_file(path)
    if card.weights_from:
        digest = hashlib.sha256(f"{digest} {card.weights_from}".encode()).hexdigest()
    source = path.parent / card.module
    described = {"card": [card.inputs, card.outputs, card.preprocessing], "code": hash_file(source), "weights": digest}
    return digest, hashlib.sha256(canonical(_plain(described))).hexdigest()


def _weighted(path: Path, card: Card) -> Any:
    """The network with its weights, checked."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    module = _build(path.parent / card.module)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"the weights can't be read: {error}", str(path), "get the weights again") from None
    if card.weights_from:
        weights = {**_fetched(card.weights_from, set(module.state_dict())), **weights}
    _check_keys(module.state_dict(), weights, path)
    module.load_state_dict(weights, strict=True)
    return module


def _fetched(wanted: Package, names: set[str]) -> dict[str, Any]:
    """Those tensors of a package that the network has, by its names; the package may hold more.

    Raises:
        LinkError: it is not in the cache, and can't be fetched.
        IntegrityError: it is not the file that was promised.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = fetched.fetch(wanted)
    try:
        found = {f"{wanted.prefix}{name}": value for name, value in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"the weights can't be read: {error}", str(path), "name a safetensors file") from None
    return {name: value for name, value in found.items() if name in names}


def _from_program(path: Path, card: Card) -> Loaded:
    """A program of torch.export; sizes it leaves open after the batch are the card's."""
    module = program.load(path)
    specs = []
    for index, spec in enumerate(module.inputs):
        told = card.inputs[index] if index < len(card.inputs) else spec
        sizes = list(told.shape) if told is not spec else spec.shape[1:]
        if (
            not spec.shape
            or len(sizes) != len(spec.shape) - 1
            or any(have not in (-1, size) for have, size in zip(spec.shape[1:], sizes, strict=True))
        ):
            raise UsageError(f"input {spec.name} is {spec.shape[1:]}, not {sizes}", str(path), "correct the shape")
        if -1 in sizes:
            fix = "say it with --input-shape, or in model.toml"
            raise UsageError(f"input {spec.name} leaves its size open: {sizes}", str(path), fix)
        name = told.name if index < len(card.inputs) and card.weights == path.name and card.outputs else spec.name
        layout = spec.layout or (card.preprocessing.layout if index == 0 else "")
        specs.append(TensorSpec(name, [spec.shape[0], *sizes], spec.dtype, layout))
    made, macs, reason = count(module, specs, str(path))
    fixed = specs[0].shape[0] if specs else -1
    outputs = [TensorSpec(spec.name, [fixed, *spec.shape[1:]], spec.dtype) for spec in card.outputs or made]
    if card.outputs:
        outputs = [TensorSpec(spec.name, [fixed, *spec.shape], spec.dtype, spec.layout) for spec in card.outputs]
    parameters = sum(parameter.numel() for parameter in module.parameters())
    digest = hash_file(path)
    identity = f"{digest}-{card.preprocessing!r}-{specs!r}-{outputs!r}"
    return Loaded("torch", specs, outputs, digest, identity, Later.of(module), parameters, macs, reason)


def _pickled(path: Path) -> UsageError:
    """What to do with a pickle, or with TorchScript, which is one too."""
    try:
        with zipfile.ZipFile(path) as archive:
            script = any("/code/" in name for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        script = False
    if script:
        fix = "export the module it was made of: torch.export.save(torch.export.export(model, inputs), 'model.pt2')"
        return UsageError("TorchScript carries pickled code and is not read", str(path), fix)
    fix = (
        "keep its tensors only: safetensors.torch.save_file(torch.load(path, weights_only=True), 'weights.safetensors')"
    )
    return UsageError("a pickled checkpoint can run code when it is loaded, and is not read", str(path), fix)


def from_function(ref: str, card: Card) -> Loaded:
    """Call ``package.module:function``, which returns a torch module with its weights.

    The input's shape (one sample, without the batch) is ``card.inputs`` or the module's attribute ``input_shape``.

    Raises:
        UsageError: the function can't be imported or called, or its result is not a torch module.
    """
    import torch

    name, _, function = ref.partition(":")
    try:
        if str(Path.cwd()) not in sys.path:  # as `python -m` would find it
            sys.path.insert(0, str(Path.cwd()))
        module = getattr(importlib.import_module(name), function)()
    except Exception as error:  # the user's own code may raise anything
        raise UsageError(
            f"{ref} failed: {type(error).__name__}: {error}", ref, "check the name and call it in Python"
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise UsageError(
            f"{ref} returned a {type(module).__name__}, not a torch module", ref, "return a torch.nn.Module"
        )
    if not card.inputs and hasattr(module, "input_shape"):
        card = replace(card, inputs=[TensorSpec("input", [int(size) for size in module.input_shape])])
    digest = _hash_state(module)
    # The graph says what the code does; its source files alone would miss what they import.
    graph = _trace(module.eval(), _shapes(card, ref), ref)
    identity = hashlib.sha256(f"{digest}\n{graph}\n{_plain(card.inputs)}".encode()).hexdigest()
    return _loaded(module, card, digest, identity, ref)


def _build(source: Path) -> Any:
    """Import ``source`` under a name of its own and call its ``build``."""
    import torch

    name = "edgepipe_model_" + hash_file(source)[:16]
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # classes must find their module, e.g. to be copied
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise UsageError(
                f"model.py failed: {type(error).__name__}: {error}", str(source), "run it in Python"
            ) from error
    build = getattr(sys.modules[name], "build", None)
    if build is None:
        raise UsageError("model.py has no build()", str(source), "define build() -> torch.nn.Module")
    try:
        network = build()
    except Exception as error:
        raise UsageError(f"build() failed: {type(error).__name__}: {error}", str(source), "run it in Python") from error
    if not isinstance(network, torch.nn.Module):
        raise UsageError("build() did not return a torch module", str(source), "return a torch.nn.Module")
    return network


def _check_keys(expected: dict[str, Any], weights: dict[str, Any], path: Path) -> None:
    import torch

    missing = sorted(set(expected) - set(weights))
    surplus = sorted(set(weights) - set(expected))
    wrong = [key for key in sorted(set(expected) & set(weights)) if expected[key].shape != weights[key].shape]
    fix = "the weights are of another network: check `weights` and model.py"
    for text, keys in (("lack", missing), ("have in surplus", surplus), ("have other shapes at", wrong)):
        if keys:
            more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
            raise IntegrityError(f"the weights {text} {', '.join(keys[:_LISTED])}{more}", str(path), fix)
    broken = [key for key, value in weights.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        what = f"the weights hold NaN or infinity: {', '.join(sorted(broken)[:_LISTED])}"
        raise IntegrityError(what, str(path), "train the model again")


def _loaded(module: Any, card: Card, digest: str, identity: str, where: str) -> Loaded:
    module.eval()
    inputs = _shapes(card, where)
    made, macs, reason = count(module, inputs, where)
    outputs = [TensorSpec(spec.name, [-1, *spec.shape], spec.dtype, spec.layout) for spec in card.outputs] or made
    if [spec.shape for spec in outputs] != [spec.shape for spec in made]:
        told, are = ([spec.shape[1:] for spec in specs] for specs in (outputs, made))
        raise UsageError(f"the outputs are {are}, but model.toml says {told}", where, "correct [[outputs]]")
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Loaded("torch", inputs, outputs, digest, identity, Later.of(module), parameters, macs, reason)


def _shapes(card: Card, where: str) -> list[TensorSpec]:
    """The card's inputs with a free batch in front, and the layout the preprocessing says for the first."""
    if not card.inputs:
        fix = "say it with --input-shape 3,224,224, or in model.toml"
        raise UsageError("the shape of the input is not known", where, fix)
    specs = []
    for index, spec in enumerate(card.inputs):
        if not spec.shape or min(spec.shape) < 1:
            raise UsageError(
                f"input {spec.name} has shape {spec.shape}", where, "give sizes of one sample, all positive"
            )
        layout = spec.layout or (card.preprocessing.layout if index == 0 else "")
        specs.append(TensorSpec(spec.name, [-1, *spec.shape], spec.dtype, layout))
    return specs


def example(inputs: list[TensorSpec]) -> tuple[Any, ...]:
    """One sample of zeros in the inputs' shapes and types, or as many as their batch is fixed to, for tracing."""
    import torch

    return tuple(
        torch.zeros([max(spec.shape[0], 1), *spec.shape[1:]], dtype=getattr(torch, spec.dtype)) for spec in inputs
    )


def count(module: Any, inputs: list[TensorSpec], where: str) -> tuple[list[TensorSpec], int | None, str]:
    """Run one sample; return its outputs' specs and the multiply-accumulates of its matrix products and convolutions.

    torch.utils.flop_counter counts two operations for one multiply-accumulate.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused encoder layer would hide its products from the counter
    try:
        with torch.no_grad(), counter:
            result = module(*example(inputs))
    except Exception as error:
        shapes = [spec.shape[1:] for spec in inputs]
        what = f"the model does not run on an input of shape {shapes}: {error}"
        raise UsageError(what, where, "correct [[inputs]] or --input-shape") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    results = [result] if isinstance(result, torch.Tensor) else list(result) if isinstance(result, tuple | list) else []
    if not results or not all(isinstance(item, torch.Tensor) for item in results):
        raise UsageError(
            "the model returns something else than tensors", where, "return a tensor or a tuple of tensors"
        )
    names = ["output"] if len(results) == 1 else [f"output{index}" for index in range(len(results))]
    specs = [
        TensorSpec(name, [-1, *item.shape[1:]], str(item.dtype).removeprefix("torch."))
        for name, item in zip(names, results, strict=True)
    ]
    macs = counter.get_total_flops() // 2
    return specs, macs or None, "" if macs else "no operation of it is one whose multiply-accumulates are counted"


def _hash_state(module: Any) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(_bytes()).numpy().tobytes())
    return digest.hexdigest()


def _bytes() -> Any:
    import torch

    return torch.uint8


def _trace(module: Any, inputs: list[TensorSpec], where: str) -> str:
    import torch

    try:
        return str(torch.export.export(module, example(inputs), strict=False).graph)
    except Exception as error:
        raise UsageError(f"the model can't be traced: {error}", where, "remove branches that depend on data") from error


def _plain(value: Any) -> Any:
    """Dataclasses anywhere inside ``value`` as JSON values."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | None) else vars(value)
