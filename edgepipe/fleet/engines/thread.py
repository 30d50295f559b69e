"""Threads of this process: a job is short on CPU and long on waiting for a board."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from edgepipe.fleet import work
from edgepipe.fleet.engines import Options


class Threads(Executor):
    """A thread for each job. The planner bounds how many there are, so none waits for another.

    They are daemons, unlike those of `ThreadPoolExecutor`: a hung board must not keep the program from ending.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run it in a thread of its own."""
        future: Future[Any] = Future()
        threading.Thread(target=_run, args=(future, fn, args, kwargs), name="edgepipe-fleet", daemon=True).start()
        return future


def _run(future: Future[Any], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(fn(*args, **kwargs))
    except BaseException as error:
        future.set_exception(error)


class ThreadEngine:
    """All jobs in this process."""

    def __init__(self) -> None:
        self._threads = Threads()

    def executor(self, board: str, site: str) -> Executor:  # noqa: ARG002 - all alike here
        """The one executor."""
        return self._threads

    def share(self, value: Any) -> Any:
        """The value itself."""
        return value

    def abandon(self, board: str) -> None:
        """Close the board's connection: whoever waits for it gets an error at once."""
        work.close("", board)

    def close(self) -> None:
        """Close every connection."""
        work.close_all()


def open_engine(options: Options) -> ThreadEngine:  # noqa: ARG001 - nothing to choose here
    """Return the engine."""
    return ThreadEngine()
