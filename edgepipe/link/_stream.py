"""The half of a channel that all links share: bounded buffers, deadlines, and both output streams drained at once."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Protocol

from edgepipe.errors import DeadlineError, EdgepipeError, IntegrityError, LinkError
from edgepipe.link import Result

QUEUE_BYTES = 4 << 20
TAIL_BYTES = 16 << 10
RUN_LIMIT = 8 << 20
_READ = 256 << 10
_SLICE = 0.25


class Pipe(Protocol):
    """What a link does for a channel: blocking primitives, made to return soon after `kill`."""

    where: str

    def recv(self, count: int, timeout: float) -> bytes | None:
        """Read stdout: some bytes, empty at its end, None if none came in ``timeout`` seconds."""

    def recv_error(self, count: int) -> bytes:
        """Read stderr, blocking; empty at its end."""

    def write(self, data: bytes) -> None:
        """Write all to stdin, blocking; raises OSError or EOFError once the other end is gone."""

    def close_write(self) -> None:
        """Close stdin."""

    def wait(self, timeout: float) -> int | None:
        """Return the exit status, or None if the command still runs after ``timeout`` seconds."""

    def ended(self, tail: str) -> EdgepipeError:
        """Name the reason why stdout ended before the answer did."""

    def kill(self) -> None:
        """End the command and wake every blocked call."""


def printable(text: str) -> str:
    """Strip what a terminal would obey from text a board sent: escapes and control characters other than newline."""
    return "".join(char for char in text if char.isprintable() or char == "\n")


class Stream:
    """A channel over a `Pipe`. One thread writes, one drains stderr; the caller's own thread reads stdout."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._buffer = bytearray()
        self._scanned = 0
        self._tail = bytearray()
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._state = threading.Condition()
        self._finishing = self._closed = False
        self._broken: Exception | None = None
        self._drain = threading.Thread(target=self._drain_stderr, name="edgepipe-stderr", daemon=True)
        self._drain.start()
        threading.Thread(target=self._write_queue, name="edgepipe-stdin", daemon=True).start()

    def send(self, data: bytes, until: float) -> None:
        """Queue bytes for stdin; see `edgepipe.link.Channel`."""
        with self._state:
            while self._queued and self._queued + len(data) > QUEUE_BYTES and not self._broken:
                left = until - time.monotonic()
                if left <= 0 or not self._state.wait(left):
                    raise self._late("took no more data")
            if not self._broken:
                self._queue.append(data)
                self._queued += len(data)
                self._state.notify_all()
                return
        # Outside the lock: the writer may be waiting for it.
        raise self._ended()

    def finish(self, last: bytes = b"") -> None:
        """Close stdin after what is queued and ``last``, which may be of any length: it is in memory anyway."""
        with self._state:
            if last:
                self._queue.append(last)
                self._queued += len(last)
            self._finishing = True
            self._state.notify_all()

    def line(self, until: float, limit: int) -> bytes:
        """Read one line; see `edgepipe.link.Channel`."""
        while True:
            end = self._buffer.find(b"\n", self._scanned)
            size = end if end >= 0 else len(self._buffer)
            if size > limit:
                raise IntegrityError(f"the board sent a line longer than {limit} bytes", self._pipe.where)
            if end >= 0:
                self._scanned = 0
                return self._take(end + 1)[:-1]
            self._scanned = len(self._buffer)
            self._fill(until)

    def read(self, count: int, until: float) -> bytes:
        """Read exactly ``count`` bytes."""
        while len(self._buffer) < count:
            self._fill(until)
        self._scanned = 0
        return self._take(count)

    def rest(self, until: float, limit: int) -> bytes:
        """Read to the end of stdout, at most ``limit`` bytes."""
        while self._fill(until, end_is_fine=True):
            if len(self._buffer) > limit:
                raise IntegrityError(f"the board sent more than {limit} bytes", self._pipe.where)
        return self._take(len(self._buffer))

    def status(self, until: float) -> int:
        """Wait for the exit status."""
        found = self._pipe.wait(max(0.0, until - time.monotonic()))
        if found is None:
            raise self._late("did not end")
        self._drain.join(max(0.0, min(1.0, until - time.monotonic())))
        return found

    def stderr_tail(self) -> str:
        """Return the end of stderr without terminal escapes."""
        return printable(bytes(self._tail).decode("utf-8", "replace")).strip()

    def close(self) -> None:
        """End the command."""
        with self._state:
            self._closed = True
            self._broken = self._broken or LinkError("the channel was closed", self._pipe.where)
            self._state.notify_all()
        self._pipe.kill()

    def _take(self, count: int) -> bytes:
        data = bytes(memoryview(self._buffer)[:count])
        del self._buffer[:count]
        return data

    def _fill(self, until: float, end_is_fine: bool = False) -> bool:
        # Checked even if there is data: a board that never stops talking must not outlive the deadline.
        left = until - time.monotonic()
        data = self._pipe.recv(_READ, left) if left > 0 else None
        if data is None:
            raise self._late("did not answer")
        if not data and not end_is_fine:
            raise self._ended()
        self._buffer += data
        return bool(data)

    def _late(self, what: str) -> DeadlineError:
        tail = self.stderr_tail()
        return DeadlineError(
            f"the board {what} in time" + (f"; it last said: {tail[-300:]}" if tail else ""),
            self._pipe.where,
            "check that the board is up and not overloaded, then try again",
        )

    def _ended(self) -> EdgepipeError:
        # What the far side said last is the best explanation: give it a moment to arrive.
        self._drain.join(_SLICE)
        return self._pipe.ended(self.stderr_tail()[-1000:])

    def _drain_stderr(self) -> None:
        while True:
            try:
                data = self._pipe.recv_error(_READ)
            except (OSError, EOFError, ValueError):
                return
            if not data:
                return
            self._tail = (self._tail + data)[-TAIL_BYTES:]

    def _write_queue(self) -> None:
        try:
            while (data := self._next()) is not None:
                self._pipe.write(data)
                with self._state:
                    self._queued -= len(data)
                    self._state.notify_all()
            if not self._closed:
                self._pipe.close_write()
        except (OSError, EOFError, ValueError) as error:
            with self._state:
                self._broken = self._broken or error
                self._state.notify_all()

    def _next(self) -> bytes | None:
        with self._state:
            while not self._queue and not self._finishing and not self._closed:
                self._state.wait()
            return None if self._closed or not self._queue else self._queue.popleft()


def collect(channel: Stream, stdin: bytes, deadline: float) -> Result:
    """Feed a command its stdin, read it to its end and close it."""
    until = time.monotonic() + deadline
    try:
        # Not by send(): a command that answers while it reads would wait for us to take its output.
        channel.finish(stdin)
        out = channel.rest(until, RUN_LIMIT)
        status = channel.status(until)
        return Result(status, out, channel.stderr_tail().encode())
    finally:
        channel.close()
