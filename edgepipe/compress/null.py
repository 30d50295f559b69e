"""A compression that changes nothing: what the network stage of a recipe is tested with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgepipe.data import Dataset
    from edgepipe.model import Model

STEP = "null"
HELP = "changes nothing"
DEFAULTS: dict[str, Any] = {}
NEEDS_DATA = False


def compress(model: Model, params: dict[str, Any], data: Dataset | None) -> Model:  # noqa: ARG001
    """Return a model with a copy of the module; the original stays as it is."""
    import copy
    from dataclasses import replace

    return replace(model, module=copy.deepcopy(model.module))
