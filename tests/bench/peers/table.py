"""Rows of the comparison, and which of them another row dominates."""

from __future__ import annotations

from dataclasses import dataclass

TIE = 0.02  # latencies closer than this are the same: what an idle machine repeats to


@dataclass(frozen=True)
class Row:
    """One tool's int8 file of one model; a row without a file has ``why``, and no figures.

    ``score`` is a share of 1 (accuracy, or agreement with the float network), ``bytes`` of all files, ``latency_ms`` a
    median, ``seconds`` and ``peak_bytes`` those of making it.
    """

    model: str
    format: str
    tool: str
    score: float | None = None
    bytes: int | None = None
    latency_ms: float | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    why: str = ""

    @property
    def ours(self) -> bool:
        """Whether edgepipe made it."""
        return self.tool == "edgepipe"


def dominates(row: Row, other: Row) -> bool:
    """Whether ``row`` is nowhere worse than ``other`` and somewhere better; on latency, by more than the tie."""
    if None in (row.score, row.bytes, row.latency_ms, other.score, other.bytes, other.latency_ms):
        return False
    assert row.score is not None and other.score is not None
    assert row.bytes is not None and other.bytes is not None
    assert row.latency_ms is not None and other.latency_ms is not None
    worse = row.score < other.score or row.bytes > other.bytes or row.latency_ms > other.latency_ms * (1 + TIE)
    better = row.score > other.score or row.bytes < other.bytes or row.latency_ms < other.latency_ms * (1 - TIE)
    return better and not worse


def dominated_by(row: Row, rows: list[Row]) -> list[str]:
    """The tools whose file for the same model and format dominates that of ``row``."""
    rivals = [other for other in rows if (other.model, other.format) == (row.model, row.format)]
    return [other.tool for other in rivals if other.tool != row.tool and dominates(other, row)]


def fastest(rows: list[Row]) -> Row | None:
    """The peers' row that was made in the least time, or None where no peer made any."""
    timed = [row for row in rows if not row.ours and row.seconds is not None]
    return min(timed, key=lambda row: row.seconds or 0.0, default=None)


def text(rows: list[Row]) -> str:
    """The table for people."""
    head = ("model", "format", "tool", "score", "bytes", "ms", "PTQ s", "peak MB", "dominated")
    lines = [head]
    for row in rows:
        if row.why:
            lines.append((row.model, row.format, row.tool, row.why, "", "", _number(row.seconds, 2), "", ""))
            continue
        by = dominated_by(row, rows)
        lines.append((
            row.model, row.format, row.tool, _number(row.score, 4), f"{row.bytes:,}", _number(row.latency_ms, 3),
            _number(row.seconds, 2), f"{row.peak_bytes / 1e6:.0f}" if row.peak_bytes else "-",
            f"yes, by {', '.join(by)}" if by else "no",
        ))  # fmt: skip
    widths = [
        max(len(line[column]) for line in lines if column != 3 or not line[4] == line[5] == "")
        for column in range(len(head))
    ]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
