"""The difference between two networks as data: which layers were replaced, by what constructor arguments.

Only layers of torch.nn named here, and adapters, can be in an edit, so a file of edits never runs code of its own.
"""

from __future__ import annotations

from typing import Any

from edgepipe.errors import UsageError

# The constructor arguments of each kind that are attributes of the same name. ``bias`` is told by the parameter.
_KINDS: dict[str, tuple[str, ...]] = {
    "Conv1d": ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    "Conv2d": ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    "ConvTranspose2d": ("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding", "groups"),
    "Linear": ("in_features", "out_features"),
    "BatchNorm1d": ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    "BatchNorm2d": ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    "InstanceNorm2d": ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    "GroupNorm": ("num_groups", "num_channels", "eps", "affine"),
    "LayerNorm": ("normalized_shape", "eps", "elementwise_affine"),
    "Embedding": ("num_embeddings", "embedding_dim", "padding_idx"),
    "PReLU": ("num_parameters",),
    "Identity": (),
    "ReLU": (),
}
_HOLDERS = ("Sequential", "Adapted")  # their layers are described one by one
_BIASED = ("Conv1d", "Conv2d", "ConvTranspose2d", "Linear", "LayerNorm")

Edits = dict[str, Any]


def find_edits(base: Any, changed: Any) -> Edits:
    """Edits by dotted name that turn the structure of ``base`` into that of ``changed`` (both torch modules).

    Raises:
        UsageError: they differ in a layer that edits can't say.
    """
    found: Edits = {}
    _compare(base, changed, "", found)
    return found


def apply_edits(network: Any, edits: Edits) -> None:
    """Change ``network`` in place by the edits; new layers have fresh weights.

    Raises:
        UsageError: an edit names a layer or kind that is not there.
    """
    for path, edit in edits.items():
        parent, _, name = path.rpartition(".")
        try:
            owner = network.get_submodule(parent)
            if "attributes" in edit:
                owner = network.get_submodule(path)
                _set_attributes(owner, edit)
            else:
                owner.get_submodule(name)
                setattr(owner, name, _build(edit))
        except AttributeError:
            raise UsageError(f"the network has no layer {path}", path, "compress the model again") from None


def _set_attributes(module: Any, edit: dict[str, Any]) -> None:
    import torch

    for name, value in edit["attributes"].items():
        setattr(module, name, tuple(value) if isinstance(value, list) else value)
    for name, shape in edit["parameters"].items():
        setattr(module, name, torch.nn.Parameter(torch.zeros(shape)))


def _compare(base: Any, changed: Any, path: str, found: Edits) -> None:
    kind = type(changed).__name__
    if type(base) is not type(changed) or (kind in _KINDS and _spec(base) != _spec(changed)):
        found[path] = _describe(changed, path)
        return
    children, others = dict(base.named_children()), dict(changed.named_children())
    if list(children) != list(others):
        if kind == "Sequential":
            found[path] = _describe(changed, path)
            return
        raise UsageError(f"the layers inside {path or 'the network'} changed", kind, "report this: it is a bug")
    if kind not in _KINDS:
        _compare_own(base, changed, path, found)
    for name, child in children.items():
        _compare(child, others[name], f"{path}.{name}".lstrip("."), found)


def _compare_own(base: Any, changed: Any, path: str, found: Edits) -> None:
    """Whole numbers and parameters that belong to the module itself, such as a count of heads or a position table."""
    import torch

    def plain(module: Any) -> dict[str, Any]:
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in vars(module).items()
            if isinstance(value, int | float | tuple) and not key.startswith("_") and key != "training"
        }

    old, new = plain(base), plain(changed)
    attributes = {key: value for key, value in new.items() if old.get(key) != value}
    shapes = {
        name: list(value.shape)
        for name, value in changed.named_parameters(recurse=False)
        if value.shape != getattr(base, name, torch.empty(0)).shape
    }
    if attributes or shapes:
        found[path] = {"attributes": attributes, "parameters": shapes}


def _spec(module: Any) -> dict[str, Any]:
    kind = type(module).__name__
    values = {name: getattr(module, name) for name in _KINDS[kind]}
    if kind in _BIASED:
        values["bias"] = module.bias is not None
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _describe(module: Any, path: str) -> dict[str, Any]:
    kind = type(module).__name__
    if kind in _HOLDERS:
        items = [[name, _describe(child, path)] for name, child in module.named_children()]
        return {"kind": kind, "items": items}
    if kind not in _KINDS:
        raise UsageError(f"{path} became a {kind}, which can't be kept", path, f"use one of {', '.join(_KINDS)}")
    return {"kind": kind, "arguments": _spec(module)}


def _build(edit: dict[str, Any]) -> Any:
    from collections import OrderedDict

    from torch import nn

    kind = edit.get("kind")
    if kind == "Sequential":
        return nn.Sequential(OrderedDict((name, _build(item)) for name, item in edit["items"]))
    if kind == "Adapted":
        from edgepipe.adapted import Adapted

        return Adapted(**{name: _build(item) for name, item in edit["items"]})
    if kind not in _KINDS:
        raise UsageError(f"no such kind of layer: {str(kind)[:40]}", "edits", "compress the model again")
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in edit["arguments"].items()}
    return getattr(nn, str(kind))(**arguments)
