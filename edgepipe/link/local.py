"""This machine as a board: commands are child processes in sessions of their own, ended by process group."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading

from edgepipe import paths
from edgepipe.errors import BoardError, EdgepipeError
from edgepipe.link import Endpoint, Result, quote
from edgepipe.link._stream import Stream, collect

_GRACE = 1.0


class LocalLink:
    """A link without a wire. The agent's folder lies below edgepipe's own data folder."""

    def __init__(self, python: str, root: str) -> None:
        self.python = python
        self.root = root
        self._open: list[Stream] = []

    def open(self, argv: list[str]) -> Stream:
        """Start a command in a new session.

        Raises:
            BoardError: the program does not exist or may not be run.
        """
        quote(argv)
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            raise BoardError(f"can't start {argv[0]}: {error.strerror}", "this machine") from None
        channel = Stream(_Process(process))
        self._open.append(channel)
        return channel

    def run(self, argv: list[str], stdin: bytes = b"", deadline: float = 30.0) -> Result:
        """Run a command to its end."""
        return collect(self.open(argv), stdin, deadline)

    def describe(self) -> str:
        """Say where this leads."""
        return "this machine"

    def close(self) -> None:
        """End all that was started and still runs."""
        while self._open:
            self._open.pop().close()


class _Process:
    """A `Pipe` over a child process."""

    where = "this machine"

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin and process.stdout and process.stderr
        self._process = process
        self._in, self._out, self._err = process.stdin, process.stdout, process.stderr
        self._lock = threading.Lock()
        self._killed = False

    def recv(self, count: int, timeout: float) -> bytes | None:
        ready, _, _ = select.select([self._out], [], [], timeout)
        return os.read(self._out.fileno(), count) if ready else None

    def recv_error(self, count: int) -> bytes:
        return os.read(self._err.fileno(), count)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._in.fileno(), view) :]

    def close_write(self) -> None:
        with contextlib.suppress(OSError):
            self._in.close()

    def wait(self, timeout: float) -> int | None:
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def ended(self, tail: str) -> EdgepipeError:
        status = self.wait(_GRACE)
        what = f"the command on this machine ended (status {status})" + (f": {tail}" if tail else "")
        return BoardError(what, self.where)

    def kill(self) -> None:
        """Close stdin, which asks the agent to end what it started; then kill the whole group."""
        with self._lock:
            if self._killed:
                return
            self._killed = True
        # A writer blocked on a full pipe only wakes when the reader dies, so stdin is closed first only if idle.
        self.close_write()
        if self.wait(_GRACE if self._stoppable() else 0.0) is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self.wait(_GRACE)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for stream in (self._out, self._err):
            with contextlib.suppress(OSError):
                stream.close()

    def _stoppable(self) -> bool:
        """Tell whether the process can still react: one stopped by a signal can't, so waiting for it is vain."""
        try:
            with open(f"/proc/{self._process.pid}/stat", encoding="ascii", errors="replace") as stat:  # noqa: PTH123
                return stat.read().rpartition(")")[2].split()[0] not in {"T", "t"}
        except (OSError, IndexError):
            return True


def open_link(endpoint: Endpoint) -> LocalLink:
    """Open the link to this machine: edgepipe's own interpreter, so runtimes of its environment are found."""
    del endpoint  # it says nothing about this machine
    root = paths.data_home() / "boards" / "local" / ".edgepipe"
    return LocalLink(sys.executable, str(root))
