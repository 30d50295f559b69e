"""One self-contained page: no request leaves it, every text of a board or a model file is escaped.

The page's own content security policy forbids any script but its own (by hash) and any request, so that even a text
that slipped through could neither run nor call home.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import resources

from edgepipe import measurement
from edgepipe.errors import EdgepipeError
from edgepipe.record import Accuracy, OpProfile, Report
from edgepipe.report import svg
from edgepipe.report.rows import (
    DASH,
    ON_BOARD,
    OP_COLUMNS,
    Row,
    boards,
    bound,
    caveat,
    drop,
    facts,
    final,
    measurement_facts,
    millis,
    number,
    op_cells,
    payoff_facts,
    provenance,
    rows,
    scaling,
    score,
    size,
    span,
    tick,
)
from edgepipe.report.svg import escape

OPEN = 2  # a page of so few runs shows them unfolded
GREY = 4  # the colour of what is beyond the palette
_BROKEN = ("failed", "timeout", "unreachable")
_PERCENTILES = ("p50", "p90", "p95", "p99")


def page(reports: Sequence[Report], first: str = "") -> str:
    """Return the page for these reports, as HTML text; ``first`` are sections that come before theirs."""
    found = rows(reports)
    script = resource("page.js")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{allowed}'"
    keys = {id(row): f"run-{at}" for at, row in enumerate(found)}
    sections = "".join(_board(group, keys) for _, group in boards(found))
    empty = "<p>Nothing was measured yet: <code>edgepipe deploy --target loopback</code></p>"
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    count = f"{len(found)} run{'' if len(found) == 1 else 's'}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>edgepipe report</title><link rel="icon" href="data:,"><style>{resource("page.css")}</style></head>'
        f'<body><header><h1>edgepipe report</h1><p class="soft">{count}, written {now}. Brackets hold 95 % confidence'
        f" intervals of the time of one call. A {DASH} was not measured; the reason is with the run.</p></header>"
        f"<main>{first}{sections or empty}</main>"
        f"<footer>Latencies of one board compare with each other, never with those of another. Only runs with status ok"
        f" are ranked.</footer><script>{script}</script></body></html>"
    )


def resource(name: str) -> str:
    """A file that pages are made with, e.g. their style sheet, as text."""
    return resources.files("edgepipe.report").joinpath(name).read_text(encoding="utf-8")


def _board(found: list[Row], keys: dict[int, str]) -> str:
    board = found[0].report.board
    warning = caveat(board)
    badge = f'<span class="badge">{escape(warning)}</span>' if warning else ""
    name = f"{board.target} ({board.name})" if board.name not in ("", board.target) else board.target
    about = facts(board) if board.cores else "it has not answered, so nothing is known of it"
    runs = "".join(run(row, keys[id(row)], unfold=len(keys) <= OPEN) for row in found)
    return (
        f'<section><h2>{escape(name)}{badge}</h2><p class="soft">{escape(about)}</p>'
        f'<div class="card scroll">{_summary(found, keys)}</div>{plots(found)}{_scaling(found)}{runs}</section>'
    )


# The table of runs


def _summary(found: Iterable[Row], keys: dict[int, str]) -> str:
    columns = ("model", "format", "size", "accuracy", "p50", "p90", "memory", "status")
    numbers = {"size", "accuracy", "p50", "p90", "memory"}
    heads = "".join(
        f'<th scope="col"{" class=num" if name in numbers else ""}><button type="button">{name}</button></th>'
        for name in columns
    )
    body = "".join(f"<tr>{''.join(_cells(row, keys[id(row)]))}</tr>" for row in found)
    return f'<table class="runs"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'


def _cells(row: Row, key: str) -> list[str]:
    report, run, accuracy = row.report, row.run, row.report.accuracy
    reached, where = final(accuracy)
    base = f"from {score(accuracy.baseline, accuracy)}, {drop(accuracy)}" if drop(accuracy) and accuracy else ""
    base += "" if where in ("", ON_BOARD) else f", {where}"
    memory = run.memory_peak_bytes if run else None
    count = len(run.warnings) if run else 0
    kind = _kind(row)
    said = row.reason if kind == "bad" else f"{count} warning{'' if count == 1 else 's'}" if count else ""
    first = f'<a href="#{key}">{escape(report.model.name)}</a><small>{escape(row.recipe)}</small>'
    status = f'<span class="status {kind}">{escape(row.status)}</span><small>{escape(said)}</small>'
    smaller = f"{number(row.smaller)}x smaller" if row.smaller and report.recipe != "none" else ""
    return [
        f'<td data-value="{escape(report.model.name)} {escape(row.recipe)}">{first}</td>',
        _cell("format", report.artifact.format, escape(report.artifact.format)),
        _cell("size", report.artifact.bytes, _two(size(report.artifact.bytes), smaller), "num"),
        _cell("accuracy", reached, _two(score(reached, accuracy), base), "num"),
        *(_cell(name, bound(run, name).value, _latency(row, name), "num") for name in ("p50", "p90")),
        _cell("memory", memory, escape(size(memory)), "num"),
        _cell("status", row.status, status),
    ]


def _kind(row: Row) -> str:
    """The style of a status."""
    return row.status if row.status in {"ok", "unstable", "throttled"} else "bad"


def _cell(name: str, value: object, content: str, kind: str = "") -> str:
    key = "" if value is None else escape(value)
    return f'<td{f" class={kind}" if kind else ""} data-name="{name}" data-value="{key}">{content}</td>'


def _two(first: str, second: str) -> str:
    return escape(first) + (f"<small>{escape(second)}</small>" if second else "")


def _latency(row: Row, percentile: str) -> str:
    found = bound(row.run, percentile)
    if found.value is None:
        return f'<span title="{escape(found.reason)}">{DASH}</span>'
    return _two(f"{millis(found.value)} ms", f"[{span(found)}]" if span(found) else "")


# Plots of a board's runs


def plots(found: list[Row]) -> str:
    """Size and latency against accuracy, a pair for each metric and data set that were used."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in found:
        accuracy = row.report.accuracy
        if accuracy and row.accuracy is not None:
            groups.setdefault((accuracy.metric, accuracy.dataset, accuracy.samples), []).append(row)
    return "".join(_pair(group) for group in groups.values() if len(group) > 1)


def _scaling(found: list[Row]) -> str:
    """Throughput by threads and batch, for each file that was measured with several of them."""
    cards = ""
    for group in scaling(found):
        items = []
        for row in group:
            assert row.run is not None
            name = f"{row.run.threads} threads, batch {row.run.batch}".replace("1 threads", "1 thread")
            told = f"{number(row.run.throughput_per_s)}/s · p50 {millis(row.p50.value)} ms"
            items.append((name, float(row.run.throughput_per_s or 0.0), told))
        title = f"Inferences per second of {group[0].report.model.name} {group[0].report.artifact.format}"
        cards += f'<figure class="card"><figcaption>{escape(title)}</figcaption>{svg.bars(items, title)}</figure>'
    return f'<div class="pair">{cards}</div>' if cards else ""


def _pair(found: list[Row]) -> str:
    formats = sorted({row.report.artifact.format for row in found})
    models = sorted({row.report.model.name for row in found})
    accuracy = found[0].report.accuracy
    assert accuracy is not None
    where = f"{accuracy.metric} on {accuracy.samples:,} samples"

    sizes, times = [], []
    for row in found:
        report, reached = row.report, row.accuracy
        assert reached is not None
        series, shape = min(formats.index(report.artifact.format), GREY), models.index(report.model.name)
        said = f"{row.name}: {score(reached, accuracy)}"
        text = f"{said}, {size(report.artifact.bytes)}, {row.status}"
        runs = row.status not in _BROKEN
        sizes.append(svg.Point(report.artifact.bytes, reached, row.recipe, text, series, shape, solid=runs))
        if row.p50.value is not None:
            text = f"{said}, p50 {millis(row.p50.value)} ms [{span(row.p50)}], {row.status}"
            ends = (row.p50.low, row.p50.high)
            ranked = row.status == "ok"
            times.append(svg.Point(row.p50.value, reached, row.recipe, text, series, shape, *ends, solid=ranked))
    up = (accuracy.metric, lambda value: tick(value, accuracy))
    plots: list[tuple[str, list[svg.Point], tuple[str, svg.Text]]] = [
        (f"Size against {where}", sizes, ("file size", size))
    ]
    if len(times) > 1:
        plots.append((f"Latency against {where}", times, ("p50, ms a call", lambda value: f"{value:.4g}")))
    cards = ""
    for title, points, across in plots:
        plot = svg.scatter(points, title, across, up)
        cards += f'<figure class="card"><figcaption>{escape(title)}</figcaption>{plot}</figure>'
    return f'<div class="pair">{cards}</div>{_legend(formats, models, [*sizes, *times])}'


def _legend(formats: list[str], models: list[str], points: list[svg.Point]) -> str:
    def key(text: str, point: svg.Point) -> str:
        icon = f'<svg viewBox="0 0 14 14" aria-hidden="true">{svg.marker(7, 7, point)}</svg>'
        return f"<span>{icon}{escape(text)}</span>"

    parts = [key(name, svg.Point(0, 0, "", name, min(at, GREY))) for at, name in enumerate(formats)]
    if len(models) > 1:
        parts += [key(name, svg.Point(0, 0, "", name, GREY, at)) for at, name in enumerate(models)]
    if not all(point.solid for point in points):
        parts.append(key("hollow: status is not ok, not ranked", svg.Point(0, 0, "", "hollow", GREY, 0, solid=False)))
    return f'<p class="legend">{"".join(parts)}<span>dashed: no other run is better in both</span></p>'


# One run


def run(row: Row, key: str, *, unfold: bool) -> str:
    """All that is known of one run, folded: warnings, distribution, steps, accuracy, parity, figures, provenance."""
    report, run = row.report, row.run
    parts = []
    spoken = [warning.text for warning in run.warnings] if run else []
    if row.status != "ok" and row.reason and row.reason not in spoken:
        parts.append(f'<p class="bad">{escape(row.status)}: {escape(row.reason)}</p>')
    if run and run.warnings:
        said = (
            f"<li><code>{escape(w.code)}</code> {escape(w.text)}"
            + (f' <span class="soft">{escape(w.hint)}</span>' if w.hint else "")
            + "</li>"
            for w in run.warnings
        )
        parts.append(f'<ul class="warnings">{"".join(said)}</ul>')
    left = f"<section><h4>Latency of every call</h4>{_distribution(row)}</section>"
    parts.append(f'<div class="pair">{left}<section>{_steps(report)}{_accuracy(report.accuracy)}</section></div>')
    parts.append(_parity(report))
    if report.ops:
        parts.append(_ops(report.ops))
    if report.pruning:
        told = _pairs(payoff_facts(report.pruning))
        parts.append(f"<section><h4>What changing the network bought</h4>{told}</section>")
    left = f"<section><h4>Measurement</h4>{_pairs(measurement_facts(run))}</section>" if run else ""
    parts.append(f'<div class="pair">{left}<section><h4>Provenance</h4>{_pairs(provenance(report))}</section></div>')
    p50 = f"p50 {millis(row.p50.value)} ms" if row.p50.value is not None else row.status
    kind = "soft" if row.status == "ok" else _kind(row)
    told = f"{p50}, {size(report.artifact.bytes)}" + (f", {row.status}" if row.p50.value and row.status != "ok" else "")
    head = f'{escape(row.name)} <span class="{kind}">{escape(told)}</span>'
    opened = " open" if unfold else ""
    return f'<details id="{key}"{opened}><summary>{head}</summary><div class="inside">{"".join(parts)}</div></details>'


def _distribution(row: Row) -> str:
    run = row.run
    if run is None or run.latency_ms is None:
        return f'<p class="soft">not measured: {escape(row.reason)}</p>'
    try:
        raw = measurement.read_raw(run.raw)
    except EdgepipeError as error:
        return f'<p class="soft">{escape(error.what)}</p>'
    groups = [[ns / 1e6 for ns in process.samples_ns] for process in raw.processes if process.samples_ns]
    marks = [
        svg.Mark(name, found.value, found.low, found.high)
        for name in _PERCENTILES
        if (found := bound(run, name)).value is not None
    ]
    note = "Above: how often each time came. Below: the share of calls done by then, a line for each process."
    return f'{svg.distribution(groups, marks, f"Latency of {row.name}")}<p class="soft">{note}</p>'


def _steps(report: Report) -> str:
    items = [
        (
            step.name,
            float(step.bytes),
            " · ".join(filter(None, (size(step.bytes), _scored(step.accuracy, report.accuracy)))),
        )
        for step in report.steps
        if step.bytes is not None
    ]
    return f"<h4>File size after each step</h4>{svg.bars(items, f'Steps of {report.recipe}')}" if items else ""


def _scored(value: float | None, accuracy: Accuracy | None) -> str:
    return "" if value is None else score(value, accuracy) if accuracy else number(value)


def _accuracy(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return '<p class="soft">Accuracy was not measured.</p>'
    named = (("baseline", "baseline"), ("compressed", "compressed"), ("exported", "exported"), ("on_device", ON_BOARD))
    pairs = [(text, score(getattr(accuracy, name), accuracy)) for name, text in named]
    samples = f"{accuracy.metric} on {accuracy.samples:,} samples"
    reason = f'<p class="soft">{escape(accuracy.reason)}</p>' if accuracy.reason else ""
    return f"<section><h4>{escape(samples)}</h4>{_pairs(pairs)}{reason}</section>"


def _parity(report: Report) -> str:
    if not report.parity:
        return ""
    heads = "".join(f"<th scope=col>{name}</th>" for name in ("rung", "max abs", "mean abs", "cosine", "disagreement"))
    body = ""
    for rung in report.parity:
        share = DASH if rung.disagreement is None else f"{rung.disagreement:.2%}"
        cosine = DASH if rung.cosine is None else f"{rung.cosine:.6f}"
        cells = (number(rung.max_abs), number(rung.mean_abs), cosine, share)
        body += f"<tr><td>{_two(rung.rung, rung.note)}</td>{''.join(f'<td>{escape(text)}</td>' for text in cells)}</tr>"
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return f'<section><h4>Each rung against the one before</h4><div class="scroll">{table}</div></section>'


def _ops(found: OpProfile) -> str:
    """The slowest nodes in a table."""
    heads = "".join(f"<th scope=col>{escape(name)}</th>" for name in OP_COLUMNS)
    lines = ("".join(f"<td>{escape(text)}</td>" for text in cells) for cells in op_cells(found))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>" if body else ""
    reason = f'<p class="soft">{escape(found.reason)}</p>' if found.reason else ""
    title = f"Where the time of {found.runs} inferences goes"
    return f'<section><h4>{escape(title)}</h4><div class="scroll">{table}</div>{reason}</section>'


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in pairs)}</dl>"
