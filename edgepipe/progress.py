"""How long work tells a person where it stands. Verbs get a `Progress` and never know what draws it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One running piece of work."""

    def update(self, done: float, total: float | None = None, text: str = "") -> None:
        """Say how far the work is: ``done`` of ``total`` (bytes, seconds or items), with an optional word."""


class Progress(Protocol):
    """What a verb may call to speak to a person."""

    def note(self, text: str) -> None:
        """Print one line that stays."""

    def task(self, title: str, unit: str = "") -> AbstractContextManager[Task]:
        """Open a task: ``with progress.task("push", "B") as task``; it ends with the block."""


class Silent:
    """A progress that says nothing: for --quiet, tests and library use."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def update(self, done: float, total: float | None = None, text: str = "") -> None:
        """Say nothing."""

    @contextmanager
    def task(self, title: str, unit: str = "") -> Iterator[Task]:  # noqa: ARG002
        """Open a task that says nothing."""
        yield self
