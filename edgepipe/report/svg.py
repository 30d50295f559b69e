"""Plots as SVG text, drawn by a few small functions. Colours come from the page's style sheet by class name.

Every text is escaped here. Each plot has a title and a description for those who can't see it.
"""

from __future__ import annotations

import bisect
import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgepipe.report.rows import plain

WIDTH, HEIGHT = 520, 340
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 16, 46
SHAPES = 4
BINS = 64
ROW = 13  # px of a percentile's row
_LOG_FROM = 4.0  # values this many times apart are drawn on a logarithmic axis
_LETTER = 6.3  # px of an average letter at the size of labels
_TICKS = 5

Text = Callable[[float], str]


@dataclass(frozen=True)
class Point:
    """A run in a scatter plot. ``low`` and ``high`` bound x; a hollow point is no verdict (unstable, throttled)."""

    x: float
    y: float
    label: str
    title: str
    series: int = 0
    shape: int = 0
    low: float | None = None
    high: float | None = None
    solid: bool = True


@dataclass(frozen=True)
class Mark:
    """A percentile to mark in a distribution, with its interval."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high`` laid out between two pixel positions."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / ((high - low) or 1.0) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values within the axis: 1, 2 and 5 times powers of ten."""
        if not self.log:
            return _linear_ticks(self.low, self.high)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found = [m * 10.0**d for d in decades for m in (1, 2, 5) if self.low <= m * 10.0**d <= self.high]
        return found if len(found) > 1 else _linear_ticks(self.low, self.high)


@dataclass
class Canvas:
    """What a plot is drawn on: lines, texts and boxes, in pixels."""

    parts: list[str] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A straight line of the style ``kind``."""
        self.parts.append(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def text(self, x: float, y: float, text: str, kind: str = "tick", anchor: str = "middle") -> None:
        """A text, escaped."""
        self.parts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A line through points."""
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline class="{kind}" points="{joined}"/>')

    def box(self, x: float, y: float, width: float, height: float, kind: str, title: str = "") -> None:
        """A rectangle, with a tooltip where it has a title."""
        inner = f"<title>{escape(title)}</title>" if title else ""
        place = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
        self.parts.append(f'<rect class="{kind}" {place}>{inner}</rect>')

    def done(self, title: str, description: str, height: float = HEIGHT) -> str:
        """The plot as SVG text."""
        head = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
        label = escape(f"{title}. {description}")
        start = f'<svg role="img" aria-label="{label}" viewBox="0 0 {WIDTH} {height:g}">'
        return f"{start}{head}{''.join(self.parts)}</svg>"


def escape(text: object) -> str:
    """Text made safe for HTML and SVG, inside elements and quoted attributes, without control characters."""
    return html.escape(plain(text), quote=True)


def scatter(points: Sequence[Point], title: str, x: tuple[str, Text], y: tuple[str, Text]) -> str:
    """Draw runs as points: whiskers for the interval of x, and a dashed line along those no other run beats.

    A run is beaten where another is at least as small in x and as high in y; only solid points take part. ``x`` and
    ``y`` are the axis' name and how its values read.
    """
    canvas = Canvas()
    across = axis_of([v for p in points for v in (p.x, p.low, p.high) if v], LEFT, WIDTH - RIGHT, pad=0.12)
    up = axis_of([p.y for p in points], HEIGHT - BOTTOM, TOP, pad=0.12, log=False)
    frame(canvas, across, up, x, y)
    front = pareto(points)
    if len(front) > 1:
        canvas.path([(across.at(p.x), up.at(p.y)) for p in front], "front")
    for point in points:
        if point.low and point.high:
            canvas.line(
                across.at(point.low), up.at(point.y), across.at(point.high), up.at(point.y), f"whisker s{point.series}"
            )
    places = [(across.at(point.x), up.at(point.y)) for point in points]
    canvas.parts += [
        marker(px, py, point, front=point in front) for point, (px, py) in zip(points, places, strict=True)
    ]
    _labels(canvas, points, places)
    listed = "; ".join(point.title for point in points)
    return canvas.done(title, f"{y[0]} over {x[0]}. {listed}")


def pareto(points: Sequence[Point]) -> list[Point]:
    """The solid points that no other one beats, by growing x."""
    front: list[Point] = []
    for point in sorted((p for p in points if p.solid), key=lambda p: (p.x, -p.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def marker(x: float, y: float, point: Point, *, front: bool = False, size: float = 5.0) -> str:
    """One point: circle, square, triangle or diamond by ``shape``, coloured by ``series``."""
    s = size
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{s:g}"/>',
        f'<rect x="{x - s:.1f}" y="{y - s:.1f}" width="{2 * s:g}" height="{2 * s:g}"/>',
        f'<path d="M{x:.1f},{y - 1.2 * s:.1f}l{1.2 * s:.1f},{2.1 * s:.1f}h{-2.4 * s:.1f}z"/>',
        f'<path d="M{x:.1f},{y - 1.35 * s:.1f}l{1.35 * s:.1f},{1.35 * s:.1f}l{-1.35 * s:.1f},{1.35 * s:.1f}'
        f'l{-1.35 * s:.1f},{-1.35 * s:.1f}z"/>',
    )
    kind = f"point s{point.series}{'' if point.solid else ' hollow'}{' best' if front else ''}"
    return f'<g class="{kind}">{shapes[point.shape % SHAPES]}<title>{escape(point.title)}</title></g>'


def distribution(groups: Sequence[Sequence[float]], marks: Sequence[Mark], title: str) -> str:
    """Draw latencies in ms: a histogram of all, below it the share reached by each process, percentiles marked."""
    values = sorted(value for group in groups for value in group)
    axis = axis_of([values[0], values[-1]], LEFT, WIDTH - RIGHT, pad=0.03)
    middle, floor = 168.0, float(HEIGHT - BOTTOM)
    canvas = Canvas()
    _histogram(canvas, values, axis, middle)
    up = Axis(0, 1, floor, middle + 14)
    for tick in (0, 0.5, 1):
        canvas.line(LEFT, up.at(tick), WIDTH - RIGHT, up.at(tick), "grid")
        canvas.text(LEFT - 8, up.at(tick) + 4, f"{tick:.0%}", anchor="end")
    for group in groups:
        canvas.path(_steps(sorted(group), axis, up), "share")
    for row, mark in enumerate(marks):
        _percentile(canvas, mark, axis, TOP + row * ROW, floor)
    for tick in axis.ticks():
        canvas.line(axis.at(tick), floor, axis.at(tick), floor + 4, "axis")
        canvas.text(axis.at(tick), floor + 17, f"{tick:.4g}")
    canvas.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, f"ms a call{' (log)' if axis.log else ''}", "name")
    canvas.text(LEFT - 8, middle - 4, "calls", anchor="end")
    said = ", ".join(f"{mark.name} {mark.value:.4g} ms" for mark in marks) or "no percentile could be measured"
    return canvas.done(title, f"{len(values):,} calls from {len(groups)} processes; {said}")


def bars(items: Sequence[tuple[str, float, str]], title: str) -> str:
    """Draw one bar for each (name, value, text), all from zero."""
    canvas, row, left = Canvas(), 34, 132
    most = max((value for _, value, _ in items), default=0) or 1
    for at, (name, value, text) in enumerate(items):
        y, width = at * row + 6, (WIDTH - left - 170) * value / most
        canvas.text(left - 10, y + 15, cut(name, 19), "label", "end")
        canvas.box(left, y, max(width, 2), 20, "bar s0" if at == len(items) - 1 else "bar", f"{name}: {text}")
        canvas.text(left + max(width, 2) + 8, y + 15, text, "tick", "start")
    return canvas.done(title, "; ".join(f"{name}: {text}" for name, _, text in items), len(items) * row + 6)


def axis_of(values: Sequence[float], start: float, end: float, *, pad: float, log: bool | None = None) -> Axis:
    """An axis with room for all values; logarithmic where they lie far apart, unless ``log`` says so."""
    low, high = min(values), max(values)
    log = low > 0 and high / low >= _LOG_FROM if log is None else log
    if log:
        factor = (high / low) ** pad
        return Axis(low / factor, high * factor, start, end, log=True)
    room = (high - low) * pad or abs(high) * 0.05 or 1.0
    return Axis(max(low - room, 0.0) if low >= 0 else low - room, high + room, start, end)


def _linear_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / _TICKS or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def frame(canvas: Canvas, across: Axis, up: Axis, x: tuple[str, Text], y: tuple[str, Text]) -> None:
    """The grid, the ticks and the names of both axes."""
    for tick in up.ticks():
        canvas.line(LEFT, up.at(tick), WIDTH - RIGHT, up.at(tick), "grid")
        canvas.text(LEFT - 8, up.at(tick) + 4, y[1](tick), anchor="end")
    for tick in across.ticks():
        canvas.line(across.at(tick), TOP, across.at(tick), HEIGHT - BOTTOM, "grid")
        canvas.text(across.at(tick), HEIGHT - BOTTOM + 17, x[1](tick))
    canvas.line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "axis")
    canvas.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, f"{x[0]}{' (log)' if across.log else ''}", "name")
    canvas.text(LEFT - 8, TOP - 4, y[0], "name", "end")


def _labels(canvas: Canvas, points: Sequence[Point], places: Sequence[tuple[float, float]]) -> None:
    """Name each point where there is room: right, left, above, below. One without room keeps its tooltip alone."""
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in places]
    for point, (x, y) in zip(points, places, strict=True):
        text = cut(point.label, 22)
        width = len(text) * _LETTER
        choices = (
            (x + 10, y + 4, "start", x + 10),
            (x - 10, y + 4, "end", x - 10 - width),
            (x, y - 11, "middle", x - width / 2),
            (x, y + 19, "middle", x - width / 2),
        )
        for at, base, anchor, left in choices:
            box = (left, base - 10, left + width, base + 3)
            inside = box[0] >= LEFT and box[2] <= WIDTH - 2 and box[1] >= 0 and box[3] <= HEIGHT - BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                canvas.text(at, base, text, "label", anchor)
                taken.append(box)
                break


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _histogram(canvas: Canvas, values: Sequence[float], axis: Axis, floor: float) -> None:
    step = (axis.end - axis.start) / BINS
    counts = [0] * BINS
    for value in values:
        counts[min(int((axis.at(value) - axis.start) / step), BINS - 1)] += 1
    most = max(counts)
    for at, count in enumerate(counts):
        if count:
            height = max((floor - TOP - 4 * ROW) * count / most, 1.5)  # a single slow call stays in sight
            canvas.box(axis.start + at * step + 0.5, floor - height, step - 1, height, "bin", f"{count:,} calls")
    canvas.line(LEFT, floor, WIDTH - RIGHT, floor, "axis")


def _steps(ordered: Sequence[float], axis: Axis, up: Axis) -> list[tuple[float, float]]:
    """The share of calls done by each time, at no more than one point a pixel."""
    found = [(LEFT * 1.0, up.at(0))]
    for pixel in range(LEFT, WIDTH - RIGHT + 1, 2):
        part = (pixel - axis.start) / (axis.end - axis.start)
        value = axis.low * (axis.high / axis.low) ** part if axis.log else axis.low + part * (axis.high - axis.low)
        found.append((float(pixel), up.at(bisect.bisect_right(ordered, value) / len(ordered))))
    return found


def _percentile(canvas: Canvas, mark: Mark, axis: Axis, y: float, floor: float) -> None:
    """A line at the percentile, from a row of its own with its name and its interval."""
    x, ends = axis.at(mark.value), [axis.at(end) for end in (mark.low, mark.high) if end is not None]
    canvas.line(x, y, x, floor, "mark")
    if ends:
        canvas.line(ends[0], y, ends[-1], y, "interval")
    right = max([x, *ends])
    if right + 40 < WIDTH - RIGHT:
        canvas.text(right + 7, y + 4, mark.name, "label", "start")
    else:
        canvas.text(min([x, *ends]) - 7, y + 4, mark.name, "label", "end")


def cut(text: str, length: int) -> str:
    """The text, or as much of it as has room, with an ellipsis."""
    text = plain(text)
    return text if len(text) <= length else f"{text[: length - 1]}\N{HORIZONTAL ELLIPSIS}"
