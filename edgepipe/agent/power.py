"""Power while something is measured: read by a process of its own, which neither the timed one nor the agent waits for.

A sensor that hangs in the kernel can't be interrupted, so only a process that is left behind keeps the run going.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, NamedTuple, Optional

from edgepipe.agent import child, meters, worker
from edgepipe.agent.text import clean, error_text
from edgepipe.errors import EdgepipeError
from edgepipe.schema import Power, PowerSamples, Window

# The host reads a meter itself; the board only rests beforehand.
ON_HOST = "host"
# How the fault of a reading begins that was read, and is none; others could not be read.
NONSENSE = "nonsense"
# Readings kept of one run: three hours at 20 Hz, 8 MB of JSON.
MOST_READINGS = 200_000
# Before the idle power counts, what was staged must have reached the disk.
_SETTLE_SECONDS = 1.0
_FIND_SECONDS = 20.0
_END_SECONDS = 1.0
_POLL_SECONDS = 0.5
_MOST_FAULTS = 8


class Reading(NamedTuple):
    """A reading in W, or null with what went wrong.

    ``at`` is the middle of the time it stands for, on the monotonic clock.
    """

    at: float
    watts: Optional[float]
    fault: str = ""


def readings(meter: meters.Meter, wait: Callable[[float], Any], clock: Callable[[], float]) -> Iterator[Reading]:
    """Read a meter at its own rate until ``wait(seconds)`` says true; what fails is a reading too."""
    due = last = clock()
    while not wait(max(0.0, due - clock())):
        began = clock()
        due = max(due + 1 / meter.rate_hz, began)
        watts, fault = None, ""
        try:
            watts = meter.read()
            if watts is None:
                continue
            if not math.isfinite(watts):
                watts, fault = None, f"{NONSENSE}: it said {watts:g}"
        except OSError as error:
            fault = clean(error_text(error), 200)
        except ValueError as error:
            fault = clean(f"{NONSENSE}: {error_text(error)}", 200)
        now = clock()
        at = (last + now) / 2 if meter.mean else (began + now) / 2
        last = now
        yield Reading(at, watts, fault)


def declared(meter: meters.Meter) -> Power:
    """What is known of a meter before it has said anything."""
    return Power(
        source=meter.source,
        rail=clean(meter.rail, 100),
        boundary=meter.boundary,
        resolution_w=meter.resolution_w,
    )


class Trace:
    """Readings as they come in, bounded; a thread may add while another one asks."""

    def __init__(self) -> None:
        self._readings: List[Reading] = []

    def add(self, reading: Reading) -> None:
        """Keep a reading; beyond `MOST_READINGS` it is dropped."""
        if len(self._readings) < MOST_READINGS:
            self._readings.append(reading)

    def samples(self, zero: float) -> PowerSamples:
        """All readings so far, on a clock that begins at ``zero`` of theirs."""
        kept = list(self._readings)
        faults: Dict[str, int] = {}
        for reading in kept:
            if reading.fault and (reading.fault in faults or len(faults) < _MOST_FAULTS):
                faults[reading.fault] = faults.get(reading.fault, 0) + 1
        return PowerSamples(
            at=[round(reading.at - zero, 4) for reading in kept],
            watts=[None if reading.watts is None else round(reading.watts, 6) for reading in kept],
            faults=faults,
        )


class Watch:
    """``with Watch(meter, rail, sysfs_root) as watch:`` reads the board's meter all the while, if there is one."""

    def __init__(self, meter: str = "", rail: str = "", sysfs_root: str = "/") -> None:
        self._job = {"meter": meter, "rail": rail, "sysfs_root": sysfs_root, "parent": os.getpid()}
        self._found = threading.Event()
        self._process: Optional["subprocess.Popen[bytes]"] = None
        self._trace = Trace()
        self._thread: Optional[threading.Thread] = None
        self.power = Power(
            reason="the host reads the meter" if meter == ON_HOST else "the meter gave no answer in time"
        )

    def __enter__(self) -> "Watch":
        if self._job["meter"] != ON_HOST:
            self._start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._process and self._thread:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            # One that hangs in the kernel goes when the sensor lets it; nobody waits for that.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
            self._thread.join(_END_SECONDS)

    def _start(self) -> None:
        self._process = worker.start("watch")
        assert self._process.stdin
        assert self._process.stdout
        self._thread = threading.Thread(target=self._take, args=(self._process.stdout,), name="power", daemon=True)
        self._thread.start()
        # If it died at once, the thread sees the end of its output.
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(json.dumps(self._job).encode())

    def _take(self, stream: BinaryIO) -> None:
        """Read the process's lines: the meter or the reason why there is none, then readings until it ends."""
        with stream:
            try:
                first = Power(**json.loads(stream.readline()))
                if self._found.is_set():
                    return  # too late
                self.power = first
                self._found.set()
                for line in stream:
                    self._trace.add(Reading(*json.loads(line)))
            except (ValueError, TypeError):  # it ended, or was ended in the middle of a line
                if not self._found.is_set():
                    self.power = Power(reason="the process that reads the meter died")
                self._found.set()

    def rest(
        self,
        seconds: float,
        zero: float,
        cancelled: Callable[[], bool],
        on_progress: worker.Progress,
    ) -> Optional[Window]:
        """Wait until the meter is found, then let the board rest for ``seconds`` if there is one; return when it did.

        Raises:
            CancelledError: the host went away.
        """
        began = time.monotonic()

        def stay(until: float) -> None:
            worker.go_on(cancelled)
            on_progress("idle", time.monotonic() - began)
            time.sleep(max(0.0, min(_POLL_SECONDS, until - time.monotonic())))

        if self._process:
            while not self._found.wait(_POLL_SECONDS) and time.monotonic() < began + _FIND_SECONDS:
                stay(0.0)
            self._give_up()
        if seconds <= 0 or (self.power.reason and self._job["meter"] != ON_HOST):
            return None
        start = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < start + seconds:
            stay(start + seconds)
        return Window(round(start - zero, 4), round(time.monotonic() - zero, 4))

    def _give_up(self) -> None:
        """End a process that has not found its meter by now."""
        if not self._found.is_set():
            self._found.set()
            self._end()

    def samples(self, zero: float) -> PowerSamples:
        """All readings so far; ``zero`` is where the run's own clock begins, on the monotonic clock."""
        return self._trace.samples(zero)


def main() -> None:
    """Read the job from stdin, then the meter until the parent ends this process; lines of JSON go to stdout."""
    job = json.loads(sys.stdin.buffer.read().decode())
    own = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    child.confine(int(job["parent"]))

    def say(message: Any) -> None:
        own.write(json.dumps(message, allow_nan=False).encode() + b"\n")

    try:
        meter = meters.find(job["meter"], job["sysfs_root"], job["rail"])
    except EdgepipeError as error:
        say(asdict(Power(reason=clean(f"{error.what}: {error.fix}" if error.fix else error.what, 300))))
        return
    say(asdict(declared(meter)))
    for reading in readings(meter, time.sleep, time.monotonic):
        say(reading)
