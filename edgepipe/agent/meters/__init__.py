"""Power meters read on the board, a file each; the file's name is the meter's name.

A meter file has ``find(sysfs_root, rail) -> Meter``, which reads it once and raises `NoMeterError` where it can't, and
the `Meter` has ``read() -> watts``. ``sysfs_root`` is the folder that holds sys/ and proc/. Meters read on the host
(edgepipe/meters/) give the same `Meter`.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any, Callable, List, Optional, Tuple

from edgepipe.errors import BoardError, UsageError

# From the most to the least that a meter on the board can see.
BOUNDARIES = ("wall", "board", "soc")


class NoMeterError(BoardError):
    """There is no such meter here, or it can't be read; ``what`` is the reason a report shows beside the null.

    ``present`` is true where the sensor is there, and something else is in the way.
    """

    def __init__(self, what: str, present: bool = False, fix: str = "") -> None:
        super().__init__(what, "power meter", fix)
        self.present = present


def _nothing() -> None:
    """There is nothing to close."""


@dataclass(frozen=True)
class Meter:
    """A meter that was found, and what its figures are worth.

    ``read()`` gives watts, or None while there is nothing new; it raises OSError where the sensor can't be read and
    ValueError where it says something else than a number. ``mean`` is true where a reading is the mean since the one
    before, false where it is of the moment. ``rate_hz`` is how often it is worth asking, ``resolution_w`` the smallest
    step it shows, null where that is not known.
    """

    source: str
    rail: str
    boundary: str
    read: Callable[[], Optional[float]]
    rate_hz: float
    resolution_w: Optional[float] = None
    mean: bool = False
    close: Callable[[], None] = _nothing


def names() -> Tuple[str, ...]:
    """Names of all meters, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def load(name: str) -> Any:
    """The module of a meter.

    Raises:
        UsageError: no such meter.
    """
    if name not in names():
        raise UsageError(f"no such power meter on a board: {name[:64]}", "meter", f"known: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def find(name: str = "", sysfs_root: str = "/", rail: str = "") -> Meter:
    """The meter of that name; without a name the one that sees most of the board.

    Raises:
        NoMeterError: there is none, or it can't be read. UsageError: no such name.
    """
    if name:
        return _try(name, sysfs_root, rail)
    found: List[Meter] = []
    obstacle: Optional[NoMeterError] = None
    for each in names():
        if each == "null":
            continue
        try:
            found.append(_try(each, sysfs_root, rail))
        except NoMeterError as error:
            obstacle = obstacle or (error if error.present else None)
    if found:
        return min(found, key=lambda meter: BOUNDARIES.index(meter.boundary))
    if obstacle:
        raise obstacle
    return _try("null", sysfs_root, rail)


def _try(name: str, sysfs_root: str, rail: str) -> Meter:
    try:
        meter: Meter = load(name).find(sysfs_root, rail)
    except PermissionError as error:
        what = f"permission denied: {name} is read from {error.filename}"
        raise NoMeterError(what, present=True, fix="let the agent's user read that file") from None
    except OSError as error:
        raise NoMeterError(f"{name} can't be read: {error}", present=True) from None
    except ValueError as error:
        raise NoMeterError(f"{name} says nonsense: {error}", present=True) from None
    return meter
