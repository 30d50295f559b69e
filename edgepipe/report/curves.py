"""Two more plots: curves of a metric over an amount, with the point up to which it holds, and spreads of latencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgepipe.report.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Canvas, Text, axis_of, cut, frame

_ROW, _NAMES, _HEAD = 30, 170, 22
COLOURS = 5


@dataclass(frozen=True)
class Curve:
    """A named line through (x, y) points by growing x; ``holds`` is the last x that is still good, null for none."""

    name: str
    points: tuple[tuple[float, float], ...]
    holds: float | None


@dataclass(frozen=True)
class Spread:
    """A distribution as a row: from ``low`` over the marks to ``high``, with the interval of its middle."""

    name: str
    low: float
    high: float
    middle: float
    marks: tuple[float, ...]
    interval: tuple[float, float] | None
    solid: bool
    title: str


def curves(found: Sequence[Curve], title: str, x: tuple[str, Text], y: tuple[str, Text], limit: float | None) -> str:
    """Draw each curve, a ring where it holds last, and a dashed line at the ``limit`` of y."""
    canvas = Canvas()
    values = [value for curve in found for _, value in curve.points]
    across = axis_of([at for curve in found for at, _ in curve.points], LEFT, WIDTH - RIGHT, pad=0.06, log=False)
    up = axis_of([*values, *([] if limit is None else [limit])], HEIGHT - BOTTOM, TOP, pad=0.1, log=False)
    frame(canvas, across, up, x, y)
    if limit is not None:
        canvas.path([(LEFT, up.at(limit)), (WIDTH - RIGHT, up.at(limit))], "front")
    for at, curve in enumerate(found):
        colour = f"s{min(at, COLOURS - 1)}"
        canvas.parts.append(f'<g class="curve {colour}">')
        canvas.path([(across.at(a), up.at(b)) for a, b in curve.points], "line")
        for a, b in curve.points:
            last = a == curve.holds
            _dot(canvas, across.at(a), up.at(b), 7 if last else 3.5, "ring" if last else "dot")
        canvas.parts.append("</g>")
    told = "; ".join(f"{curve.name} holds up to {curve.holds}" for curve in found)
    return canvas.done(title, told)


def _dot(canvas: Canvas, x: float, y: float, radius: float, kind: str) -> None:
    canvas.parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>')


def spreads(found: Sequence[Spread], title: str, unit: str) -> str:
    """Draw one row for each distribution: a thin line from the least to the greatest, ticks, and a thick interval."""
    canvas, height = Canvas(), _HEAD + _ROW * len(found) + BOTTOM
    axis = axis_of([v for s in found for v in (s.low, s.high)], _NAMES, WIDTH - RIGHT, pad=0.04)
    for tick in axis.ticks():
        canvas.line(axis.at(tick), _HEAD - 8, axis.at(tick), height - BOTTOM, "grid")
        canvas.text(axis.at(tick), height - BOTTOM + 17, f"{tick:.4g}")
    canvas.text((_NAMES + WIDTH - RIGHT) / 2, height - 8, f"{unit}{' (log)' if axis.log else ''}", "name")
    for at, spread in enumerate(found):
        _spread(canvas, spread, axis, _HEAD + _ROW * at + _ROW / 2 - 6)
    return canvas.done(title, "; ".join(spread.title for spread in found), height)


def _spread(canvas: Canvas, spread: Spread, axis: Axis, y: float) -> None:
    canvas.text(_NAMES - 10, y + 4, cut(spread.name, 26), "label", "end")
    canvas.parts.append(f'<g class="{"s0" if spread.solid else "s4"}">')
    canvas.line(axis.at(spread.low), y, axis.at(spread.high), y, "thin")
    if spread.interval:
        low, high = (axis.at(end) for end in spread.interval)
        canvas.box(low, y - 4, max(high - low, 2), 8, "middle", spread.title)
    for value in (spread.middle, *spread.marks):
        canvas.line(axis.at(value), y - 7, axis.at(value), y + 7, "thin")
    canvas.parts.append("</g>")
