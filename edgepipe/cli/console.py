"""What people see while work goes on, all on stderr: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgepipe.progress import Progress, Silent, Task

if TYPE_CHECKING:
    import rich.console
    import rich.progress


def stderr() -> rich.console.Console:
    """A rich console on stderr; without a terminal it writes no control characters and does not wrap early."""
    from rich.console import Console

    terminal = sys.stderr.isatty()
    return Console(stderr=True, highlight=False, width=None if terminal else 140, no_color=not terminal)


@contextmanager
def open_progress(*, quiet: bool) -> Iterator[Progress]:
    """The progress for this command: silent, live on a terminal, or plain lines."""
    if quiet:
        yield Silent()
    elif sys.stderr.isatty():
        with _bars() as bars:
            yield _Live(bars)
    else:
        yield _Lines()


def _bars() -> rich.progress.Progress:
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    return Bars(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}", style="dim"),
        console=stderr(),
        transient=True,
    )


class _Live:
    """Bars on a terminal; a finished task leaves one line behind."""

    def __init__(self, bars: rich.progress.Progress) -> None:
        self._bars = bars

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False)

    @contextmanager
    def task(self, title: str, unit: str = "") -> Iterator[Task]:
        number = self._bars.add_task(title, total=None, amount="", text="")
        task = _Bar(self._bars, number, unit)
        started = time.monotonic()
        try:
            yield task
            self._bars.console.print(_ended(title, task.amount, unit, started), markup=False, style="dim")
        finally:
            self._bars.remove_task(number)


class _Bar:
    def __init__(self, bars: rich.progress.Progress, number: Any, unit: str) -> None:
        self._bars, self._number, self._unit = bars, number, unit
        self.amount = ""

    def update(self, done: float, total: float | None = None, text: str = "") -> None:
        # Where time is the measure the bar's own clock shows it.
        self.amount = "" if self._unit == "s" else amount(done, total, self._unit)
        self._bars.update(self._number, completed=done, total=total, amount=self.amount, text=text)


class _Lines:
    """One line when a task ends: nothing that a log file could not hold."""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, title: str, unit: str = "") -> Iterator[Task]:
        line = _Line(unit)
        started = time.monotonic()
        yield line
        self.note(_ended(title, line.amount, unit, started))


class _Line:
    def __init__(self, unit: str) -> None:
        self._unit = unit
        self.amount = ""

    def update(self, done: float, total: float | None = None, text: str = "") -> None:  # noqa: ARG002
        self.amount = amount(done, total, self._unit)


def _ended(title: str, done: str, unit: str, started: float) -> str:
    """The line a finished task leaves: how much it did, or how long it took where that is its measure."""
    return f"{title}  {done if unit != 's' and done else f'{time.monotonic() - started:.1f} s'}"


def amount(done: float, total: float | None, unit: str) -> str:
    """``done`` of ``total`` as people read it: bytes scaled, seconds with one decimal, items as they are."""
    if unit == "B":
        return f"{size(done)} of {size(total)}" if total and done < total else size(done)
    if unit == "s":
        return f"{done:.1f} s"
    text = f"{done:g}" + (f" of {total:g}" if total else "")
    return f"{text} {unit}".strip()


def size(count: float | None) -> str:
    """Bytes with a decimal unit, e.g. ``1.2 MB``; a dash where nobody knows."""
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB"):
        if count < 1000:  # noqa: PLR2004 - decimal units by definition
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def stdout() -> rich.console.Console:
    """A rich console on stdout, for what was asked for rather than told along the way."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 140, no_color=not sys.stdout.isatty())


def inline(value: Any) -> str:
    """A value of a record on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {inline(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(inline(item) for item in value)
    return str(value)
