"""A node of an ONNX graph as its rule sees it: attributes, and the inputs whose values are known before it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgepipe.errors import UsageError

FIX = "leave the operation out of the model, or fix its shapes"


@dataclass(frozen=True)
class Node:
    """``known`` holds, for each input, a numpy array where its value does not depend on the model's inputs."""

    op: str
    name: str
    opset: int
    attributes: dict[str, Any]
    outputs: int
    known: list[Any] = field(default_factory=list, repr=False)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute; text as str."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def has(self, place: int) -> bool:
        """Whether input ``place`` is there."""
        return len(self.known) > place and self.known[place] is not ABSENT

    def value(self, place: int, noun: str) -> Any:
        """The array of an input that must be known, or None where the input is absent.

        Raises:
            UsageError: it depends on the model's inputs.
        """
        if not self.has(place):
            return None
        if self.known[place] is None:
            raise self.refusal(f"the {noun} must not depend on the data")
        return self.known[place]

    def ints(self, place: int, noun: str) -> list[int] | None:
        """The attribute ``noun``, or the known input ``place``, as a list of whole numbers; None where neither is."""
        if noun in self.attributes:
            found = self.attributes[noun]
            return [int(each) for each in found] if isinstance(found, list) else [int(found)]
        array = self.value(place, noun)
        return None if array is None else [int(each) for each in array.reshape(-1)]

    def refusal(self, why: str) -> UsageError:
        """The error for a use of the operator that is not followed."""
        return UsageError(f"{self.op} (at {self.name[:60]}) has no TFLite form here: {why}", self.name[:60], FIX)


ABSENT = object()
"""Stands in `Node.known` for an optional input that is not there."""

Rule = Callable[..., Any]
"""``rule(node, *inputs)`` gives the output, or a tuple of them; absent inputs are None."""
