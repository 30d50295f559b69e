"""A compression that changes nothing: what the network stage of a recipe is tested with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.training import Changed

if TYPE_CHECKING:
    from edgepipe.training import Context

STEP = "null"
HELP = "changes nothing"
DEFAULTS: dict[str, Any] = {}
LIBRARIES: tuple[str, ...] = ()


def needs(params: dict[str, Any]) -> str:  # noqa: ARG001
    """No data."""
    return ""


def compress(network: Any, params: dict[str, Any], context: Context) -> Changed:  # noqa: ARG001
    """Return the network as it is."""
    return Changed(network)
