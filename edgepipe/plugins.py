"""Find a plug-in by the name of its file, then among installed entry points."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from functools import cache
from importlib import metadata
from types import ModuleType

from edgepipe.errors import UsageError


@cache
def names(kind: str) -> tuple[str, ...]:
    """Names of all plug-ins of a kind, sorted, e.g. ``names("agent.runtimes")``.

    ``kind`` is the dotted folder below ``edgepipe``; entry points are read from the group ``edgepipe.<kind>``.
    """
    package = importlib.import_module(f"edgepipe.{kind}")
    found = {module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")}
    return tuple(sorted(found | _points(kind).keys()))


@cache
def _points(kind: str) -> dict[str, str]:
    """Plug-ins of other packages: name -> module. Asking takes milliseconds, and a search asks often."""
    return {point.name: point.value for point in metadata.entry_points(group=f"edgepipe.{kind}")}


def load(kind: str, name: str, part: str = "") -> ModuleType:
    """Import the plug-in ``name`` of ``kind``, or one file ``part`` of a plug-in that is a folder.

    Raises:
        UsageError: no such plug-in (the near names are listed), or it has no such part.
    """
    if name not in names(kind):
        raise unknown(kind.rsplit(".", 1)[-1], name, names(kind))
    module = _points(kind).get(name, f"edgepipe.{kind}.{name}")
    path = f"{module}.{part}" if part else module
    if part and importlib.util.find_spec(path) is None:
        raise UsageError(f"{name} can't {part}", f"{kind}/{name}", f"choose another of: {', '.join(names(kind))}")
    return importlib.import_module(path)


def task(name: str) -> ModuleType:
    """The plug-in of a task, e.g. of ``image-classification``."""
    return load("tasks", name.replace("-", "_"))


def unknown(noun: str, name: str, known: tuple[str, ...] | list[str]) -> UsageError:
    """The error for a name nobody knows: it lists the near names first, else all."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    fix = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return UsageError(f"no such {noun}: {name}", where=noun, fix=fix)
