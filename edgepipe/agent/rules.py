"""Pure decisions about releases: what activation and rollback make of the links, and what may be collected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import FrozenSet, Optional

from edgepipe.errors import BoardError


@dataclass(frozen=True)
class Links:
    """Which releases the two links name; null where there is none."""

    current: Optional[str] = None
    previous: Optional[str] = None

    def __post_init__(self) -> None:
        # A cut between the two moves of an activation leaves both on the same release: there is nothing to go back to.
        if self.previous == self.current:
            object.__setattr__(self, "previous", None)


def activated(links: Links, new: str) -> Links:
    """The links after ``new`` is activated. Activating the current release changes nothing."""
    return links if new == links.current else Links(current=new, previous=links.current)


def rolled_back(links: Links) -> Links:
    """The links after a rollback: current and previous change places.

    Raises:
        BoardError: there is no previous release.
    """
    if links.previous is None:
        raise BoardError(
            "there is no previous release to go back to",
            where=f"current release {links.current or 'none'}",
            fix="deploy another release first; each one keeps the one before",
        )
    return Links(current=links.previous, previous=links.current)


def collectable(links: Links, releases: FrozenSet[str]) -> FrozenSet[str]:
    """Releases that may be removed: all but the two the links name."""
    return releases - {links.current, links.previous}
