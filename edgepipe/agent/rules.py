"""Pure decisions about releases: what activation and rollback make of the links, what may be collected, what passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import FrozenSet, Optional

from edgepipe.agent.orders import Statement
from edgepipe.errors import BoardError, IntegrityError

# How far a counter may leap ahead, for orders that were signed and never came: one absurd counter would lock out all
# the honest ones after it.
MOST_LEAP = 1 << 20


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


def withdrawn(links: Links) -> Links:
    """The links after the current release is given up for good: the one before, and nothing before that."""
    return Links(current=links.previous)


def collectable(links: Links, releases: FrozenSet[str]) -> FrozenSet[str]:
    """Releases that may be removed: all but the two the links name."""
    return releases - {links.current, links.previous}


@dataclass(frozen=True)
class Trust:
    """What a board knows of itself: its name, the counter of the last statement acted upon and that one's digest."""

    target: str
    counter: int = 0
    last: str = ""


def admit(statement: Statement, verb: str, subject: str, trust: Trust) -> None:
    """Let a statement pass (its signature is another matter) if it is about this very order on this board, and new.

    The statement acted upon last passes again: a cut may have come between its counter and the links.

    Raises:
        IntegrityError: it is about something else, for another board, or an old one.
    """
    where = f"{verb} on {trust.target}"
    if statement.verb != verb or statement.subject != subject:
        raise IntegrityError("refused: what is signed is not what is asked for", where, "sign it anew")
    if statement.target != trust.target:
        raise IntegrityError(
            f"refused: it is signed for {statement.target[:64]!r}, and this board is {trust.target!r}",
            where,
            "name the target as the board does, or pin its signers again under the other name",
        )
    if statement.digest == trust.last:
        return
    if not trust.counter < statement.counter <= trust.counter + MOST_LEAP:
        raise IntegrityError(
            f"refused: counter {statement.counter} does not follow the board's {trust.counter}; it may be a replay",
            where,
            "run the same command again: it signs anew",
        )
