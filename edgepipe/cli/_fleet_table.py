"""The live table of a fleet run: one line for each board that is at work or in trouble, and how far all of them are."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgepipe.cli import console
from edgepipe.progress import Progress, Silent

if TYPE_CHECKING:
    from edgepipe.fleet.lane import Lane

_SHOWN = 24


@contextmanager
def open_table(*, quiet: bool) -> Iterator[tuple[Progress, Callable[[Lane], None]]]:
    """A progress, and what to call when a board's state changes; live on a terminal, plain lines elsewhere."""
    if quiet:
        yield Silent(), lambda _: None
    elif not sys.stderr.isatty():
        with console.open_progress(quiet=False) as progress:
            yield progress, lambda lane: _tell(lane, progress)
    else:
        from rich.live import Live

        table = _Table()
        with Live(get_renderable=table.drawn, console=console.stderr(), refresh_per_second=4, transient=True) as live:
            yield _Notes(live.console), table.watch


def _tell(lane: Lane, progress: Progress) -> None:
    if lane.ended:
        progress.note(f"{lane.name}: {lane.state}{': ' + lane.reason if lane.state == 'gone' else ''}")


class _Notes(Silent):
    """Notes above the table; what single files need is not shown."""

    def __init__(self, out: Any) -> None:
        self._out = out

    def note(self, text: str) -> None:
        """Print one line that stays."""
        self._out.print(text, markup=False)


class _Table:
    """The boards as they were last seen."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[str, str, int, int, str, str]] = {}
        self._lock = threading.Lock()

    def watch(self, lane: Lane) -> None:
        """Take in a change."""
        row = (lane.member.site, lane.state, lane.total - len(lane.trials), lane.total, lane.doing, lane.reason)
        with self._lock:
            self._rows[lane.name] = row

    def drawn(self) -> Any:
        """The table as it is now."""
        from rich.table import Table
        from rich.text import Text

        from edgepipe.report.rows import plain

        with self._lock:
            rows = dict(self._rows)
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold dim")
        for name in ("board", "site", "state", "done", "at", "trouble"):
            table.add_column(name, no_wrap=True)
        busy = [(name, row) for name, row in rows.items() if row[1] not in {"done", "waiting"} or row[5]]
        for name, (site, state, done, total, doing, reason) in busy[:_SHOWN]:
            cells = (name, site, state, f"{done}/{total}", doing)
            table.add_row(*(Text(plain(cell)) for cell in cells), Text(plain(reason)[:60], "red"))
        done, total = sum(row[2] for row in rows.values()), sum(row[3] for row in rows.values())
        more = f", {len(busy) - _SHOWN} more boards at work" if len(busy) > _SHOWN else ""
        table.add_row(Text(f"{done} of {total} trials{more}", "bold"))
        return table
