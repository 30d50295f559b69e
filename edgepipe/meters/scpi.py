"""An instrument that answers SCPI over TCP or a serial device, or one that sends a line for each reading by itself."""

from __future__ import annotations

import fcntl
import os
import re
import select
import socket
import termios
import time
import tty

from edgepipe.agent.meters import Meter
from edgepipe.errors import UsageError
from edgepipe.meters import Settings

OPTIONS = {
    "query": "what asks for the power; MEAS:POW? if left out, empty where the instrument sends by itself",
    "column": "which number of the line is the power, from 0",
    "scale": "what a unit of the figure is in W, e.g. 0.001 for mW",
    "baud": "speed of a serial device; 9600 if left out, USB does not care",
}
# Bench instruments answer some ten questions a second; rate_hz says otherwise.
_RATE_HZ = 10.0
_SECONDS = 2.0
_MOST_BYTES = 4096
_PORT = 5025  # IANA: scpi-raw
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf)\b", re.IGNORECASE)


def find(settings: Settings) -> Meter:
    """The instrument at ``address``: ``host[:port]``, or the path of a serial device.

    Raises:
        UsageError: a speed that no serial device has.
        OSError: it can't be opened, or does not answer. ValueError: no number in its answer.
    """
    address = settings.place("192.168.1.60:5025, or /dev/ttyUSB0")
    query = settings.text("query", "MEAS:POW?")
    column, scale = int(settings.number("column", 0)), settings.number("scale", 1.0)
    wire = _Wire(_serial(address, settings) if address.startswith("/") else _connect(address))

    def read() -> float | None:
        line = wire.ask(query) if query else wire.latest()
        if line is None:
            return None
        numbers = _NUMBER.findall(line)
        if column >= len(numbers):
            raise ValueError(f"no number {column} in the line {line[:40]!r}")
        return float(numbers[column]) * scale

    try:
        if query:
            read()
    except BaseException:
        wire.close()
        raise
    return Meter("scpi", "what the instrument is wired to", "board", read, _RATE_HZ, close=wire.close)


def _connect(address: str) -> int:
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port) if port.isdigit() else _PORT), timeout=_SECONDS) as connection:
        return connection.detach()


def _serial(path: str, settings: Settings) -> int:
    """Open a serial device raw, at its speed, and for nobody else."""
    speed = getattr(termios, f"B{int(settings.number('baud', 9600))}", None)
    if speed is None:
        raise UsageError(f"no such speed: {settings.options['baud']}", "[meter.options]", "e.g. baud = 115200")
    handle = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        fcntl.ioctl(handle, termios.TIOCEXCL)
        tty.setraw(handle)
        state = termios.tcgetattr(handle)
        state[4] = state[5] = speed
        termios.tcsetattr(handle, termios.TCSANOW, state)
    except (termios.error, OSError) as error:
        os.close(handle)
        raise OSError(f"{path} is no serial device: {error.args[-1]}") from None
    return handle


class _Wire:
    """Lines over an open file; nothing waits longer than two seconds."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._rest = b""
        os.set_blocking(handle, False)

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def ask(self, query: str) -> str:
        """Send a question and return the line that answers it; what was still under way before is dropped."""
        while self._fill(0.0):
            pass
        self._rest = b""
        os.write(self._handle, query.encode() + b"\n")
        end = time.monotonic() + _SECONDS
        while b"\n" not in self._rest:
            left = end - time.monotonic()
            if left <= 0 or not self._fill(left):
                raise TimeoutError(f"no answer to {query} in {_SECONDS:g} s")
        return self._lines()[-1]

    def latest(self) -> str | None:
        """Return the newest whole line that has come by itself, or None."""
        while self._fill(0.0):
            pass
        return self._lines()[-1] if b"\n" in self._rest else None

    def _lines(self) -> list[str]:
        *lines, self._rest = self._rest.split(b"\n")
        return [line.decode("ascii", "replace").strip() for line in lines]

    def _fill(self, seconds: float) -> bool:
        """Wait for bytes and take them; False if none came."""
        if not select.select([self._handle], [], [], seconds)[0]:
            return False
        data = os.read(self._handle, _MOST_BYTES)
        if not data:
            raise ConnectionError("the instrument closed the connection")
        self._rest = (self._rest + data)[-_MOST_BYTES:]
        return True
