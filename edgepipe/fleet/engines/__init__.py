"""What runs the fleet's jobs: a file each, with `open_engine(options)`. The planner only knows an `Engine`."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Options:
    """``parallel`` boards at a time."""

    parallel: int = 32


class Engine(Protocol):
    """Executors, and the little that `concurrent.futures` has no word for."""

    def executor(self, board: str, site: str) -> Executor:
        """The executor for the jobs of a board."""

    def share(self, value: Any) -> Any:
        """Make a value known to all who run jobs, once; what it returns is passed to jobs in its place."""

    def abandon(self, board: str) -> None:
        """Wake a job of this board that hangs, where that can be done."""

    def close(self) -> None:
        """End. Jobs that still run are left to their own deadlines."""
