"""One way to say what really ran, for all runtimes: counted, never guessed from the file's name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, Hashable, Iterable, List

from edgepipe.schema import Executed, OpTime


class Tally:
    """Counts the nodes of one run. Raises nothing; what is empty is not counted."""

    def __init__(self) -> None:
        self._kernels: Dict[str, int] = {}
        self._layers: Dict[str, int] = {}
        self._providers: Dict[str, int] = {}

    def add(self, precision: str, provider: str, *, layer: bool) -> None:
        """Count a node: its precision (empty if it computes nothing), what took it, whether it is a layer."""
        _count(self._providers, provider)
        _count(self._kernels, precision)
        if layer:
            _count(self._layers, precision)

    def executed(self, provider: str = "") -> Dict[str, Any]:
        """The answer of a session's ``executed()``; ``provider`` in words, else the names that were counted."""
        words = provider or ",".join(sorted(self._providers)) or "unknown"
        counted = {"kernels": self._kernels, "layers": self._layers, "providers": self._providers}
        return {"precision": describe(self._kernels), "provider": words, "counted": counted}


class Times:
    """Adds up what single runs of nodes took."""

    def __init__(self) -> None:
        self._found: Dict[Hashable, OpTime] = {}

    def add(self, key: Hashable, node: OpTime) -> None:
        """One more run of the node ``key``: ``node`` has its time in us, and one call."""
        known = self._found.get(key)
        if known:
            total = (known.total_us or 0.0) + (node.total_us or 0.0)
            node = replace(known, calls=known.calls + node.calls, total_us=total)
        self._found[key] = node

    def rows(self) -> List[OpTime]:
        """Each node once, in the order they first ran."""
        return list(self._found.values())


def unknown(provider: str = "unknown") -> Dict[str, Any]:
    """The answer of a runtime that does not say what it ran."""
    return Tally().executed(provider)


def _count(where: Dict[str, int], name: str) -> None:
    if name:
        where[name] = where.get(name, 0) + 1


def integers(counts: Dict[str, int]) -> int:
    """How many of the counted kernels computed in integers."""
    return sum(count for name, count in counts.items() if name in ("int4", "int8", "uint8", "int16"))


def describe(kernels: Dict[str, int]) -> str:
    """From kernels counted by precision to words, the most frequent first, e.g. ``int8 (12 of 14 kernels; 2 float32)``.

    Nothing counted is ``unknown``: it is not guessed from the file's name.
    """
    counted = sorted(((count, name) for name, count in kernels.items() if count > 0), reverse=True)
    if not counted:
        return "unknown"
    total = sum(count for count, _ in counted)
    most, name = counted[0]
    others = "".join(f"; {count} {kind}" for count, kind in counted[1:])
    return f"{name} ({most} of {total} kernels{others})"


def fallback(ran: Executed) -> str:
    """Why a file did not run as it says it should, in words; empty where it did, or where nobody can tell.

    It fell back where fewer than half of the layers that the file says are integer ones ran in integers: runtimes fuse
    layers and split them, so the counts need not be equal.
    """
    if not ran.integer_layers or not ran.layers:
        return ""
    have = integers(ran.layers)
    if 2 * have >= ran.integer_layers:
        return ""
    return f"{ran.integer_layers} layers of the file are integer ones, {have} ran in integers ({describe(ran.layers)})"


def replaced(delegates: Iterable[Dict[str, Any]], operators: List[Dict[str, Any]]) -> Dict[int, int]:
    """Which operators each delegate took: position of the operator -> position of the delegate.

    Both lists are rows of ``inputs`` and ``outputs`` (tensor indices), ``operators`` in order of execution. Those are a
    delegate's from which its outputs are computed, back to its inputs.
    """
    makers = {int(index): place for place, row in enumerate(operators) for index in row["outputs"]}
    taken: Dict[int, int] = {}
    for number, delegate in enumerate(delegates):
        stop = {int(index) for index in delegate["inputs"]}
        open_ends = [int(index) for index in delegate["outputs"]]
        while open_ends:
            tensor = open_ends.pop()
            place = makers.get(tensor)
            if place is None or place in taken or tensor in stop:
                continue
            taken[place] = number
            open_ends += [int(index) for index in operators[place]["inputs"]]
    return taken
