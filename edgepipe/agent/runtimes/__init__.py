"""Runtimes a board may have, a file each. The file's name is the runtime's name.

A runtime file has ``FORMATS`` (formats it runs), ``PACKAGES`` (distributions, the first one found is used), ``WHEELS``
(ways to get it by pip, the first that fits a board is used), ``CRASHES`` (versions known to die on a kind of CPU),
``arithmetic(machine, isa, package)`` (what int8 and int4 do there), ``version()`` and
``load(path, options, artifact) -> Session``.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import Any, Callable, Dict, List, Protocol, Tuple

from edgepipe.errors import UsageError
from edgepipe.schema import OpTime


class Session(Protocol):
    """A model opened by a runtime."""

    def run(self, feeds: List[Any]) -> List[Any]:
        """One inference: arrays in the artifact's input order in, in its output order out."""

    def prepare(self, feeds: List[Any]) -> Callable[[], object]:
        """Return a closure that does one inference on these feeds and nothing else."""

    def executed(self) -> Dict[str, Any]:
        """What really ran, as `edgepipe.agent.precision.Tally` says it; "unknown" where the runtime does not tell."""

    def profile(self, runs: int) -> List[OpTime]:
        """Time of each node over so many inferences on the feeds prepared, in a session of its own where need be."""

    def close(self) -> None:
        """Free what the runtime holds."""


@functools.lru_cache(maxsize=None)
def names() -> Tuple[str, ...]:
    """Names of all runtimes, sorted. The folder is listed once: a fleet's planner asks for each trial."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def find(name: str) -> Any:
    """The module of a runtime; importing it does not import the runtime's own package.

    Raises:
        UsageError: no such runtime.
    """
    if name not in names():
        raise UsageError(f"no such runtime: {name[:64]}", "runtime", f"known: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def runtime_for(file_format: str) -> str:
    """The runtime that runs a format: the first, by name, that lists it.

    Raises:
        UsageError: none does.
    """
    for name in names():
        if file_format in find(name).FORMATS:
            return name
    raise UsageError(f"no runtime runs {file_format[:64]} files", "runtime")
