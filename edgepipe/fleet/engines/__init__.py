"""What runs the fleet's jobs: a file each, with `open_engine(options)`. The planner only knows an `Engine`."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from edgepipe import plugins


@dataclass(frozen=True)
class Options:
    """``parallel`` boards at a time. ``scheduler`` is an address, the rest PEM files, for engines past this host."""

    parallel: int = 32
    scheduler: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""


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


@dataclass(frozen=True)
class Choice:
    """Which engine, by its name, and what it is told."""

    name: str = "thread"
    options: Options = field(default_factory=Options)

    def open(self, parallel: int) -> Engine:
        """Open it for so many boards at a time.

        Raises:
            UsageError: no such engine, or what it needs is missing. LinkError: it can't be reached.
        """
        opened: Engine = plugins.load("fleet.engines", self.name).open_engine(replace(self.options, parallel=parallel))
        return opened
