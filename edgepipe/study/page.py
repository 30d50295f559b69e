"""A study as one self-contained page: what was found, tables as a paper prints them, plots, and all about each run."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from edgepipe import plugins, scores
from edgepipe.llm import chain
from edgepipe.report import html, rows
from edgepipe.report.curves import COLOURS, Curve, Spread, curves, spreads
from edgepipe.report.rows import DASH, count, millis, number, payoff_facts, score, size, span, tick
from edgepipe.report.svg import escape
from edgepipe.study import findings, pictures
from edgepipe.study.results import RANKED, Row, baseline, latency_ratio, sort_key

if TYPE_CHECKING:
    from edgepipe.study.plan import Study

COLUMNS = (
    "recipe",
    "size",
    "smaller",
    "accuracy",
    "change",
    "p50",
    "p90",
    "time",
    "memory",
    "energy",
    "ran as",
    "status",
)
# What a language model is asked instead: a call is a token, and the first one takes the prompt in.
_TOKENS = {"change": ("change", "first token"), "p90": ("p90", "tokens/s")}
_NAMES = {"p50": "p50 a token", "p90": "p90 a token"}
_TEXTS = frozenset(("recipe", "ran as", "status"))
_MOST_SPREADS = 24
_WRECK = 0.1


def page(study: Study, found: Sequence[Row]) -> str:
    """Return the page as HTML text. It asks nothing of any network."""
    script = html.resource("page.js")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{allowed}'"
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    measured = sum(row.p50.value is not None for row in found)
    title, options = escape(study.title), study.options
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{title}</title><link rel="icon" href="data:,"><style>{html.resource("page.css")}</style></head>'
        f'<body><header><h1>{title}</h1><p class="soft">{measured} of {len(found)} cells have times, written {now}.'
        f" Profile {escape(study.plan.profile)}, threads {options.threads}, batch {options.batch}."
        f" Brackets hold 95 % confidence intervals. A {DASH} was not measured.</p></header>"
        f"<main>{_findings(study, list(found))}{''.join(_places(study, list(found)))}{_gone(found)}</main>"
        f"<footer>Times of one board compare with each other, never with those of another. Only runs with status ok are"
        f" ranked. What each figure stands on is in the folded runs.</footer><script>{script}</script></body></html>"
    )


def _findings(study: Study, found: list[Row]) -> str:
    said: dict[str, list[str]] = {}
    for each in findings.conclusions(found, study.max_drop):
        said.setdefault(each["family"], []).append(each["text"])
    parts = ""
    for family, texts in said.items():
        listed = "".join(f"<li>{escape(text)}</li>" for text in texts)
        parts += f'<h3>{escape(_family(family))}</h3><ul class="findings">{listed}</ul>'
    return f'<h2>What was found</h2><div class="card">{parts}</div>'


def _family(name: str) -> str:
    return name.replace("-", " ").replace("_", " ")


def _places(study: Study, found: list[Row]) -> list[str]:
    """A section for each board, with a part for each family and model on it."""
    known = [row for row in found if row.report is not None]
    seen = rows.rows([row.report for row in known if row.report])
    by_report = {id(one.report): one for one in seen}
    sections = []
    for target in dict.fromkeys(row.cell.target for row in known):
        own = [row for row in known if row.cell.target == target]
        board = own[0].report.board  # type: ignore[union-attr]  # known rows have one
        warning = rows.caveat(board)
        badge = f'<span class="badge">{escape(warning)}</span>' if warning else ""
        head = f'<h2>{escape(target)}{badge}</h2><p class="soft">{escape(rows.facts(board))}</p>'
        parts = ""
        for family in dict.fromkeys(row.cell.family for row in own):
            parts += _family_part(study, [row for row in own if row.cell.family == family], family)
        runs = "".join(html.run(by_report[id(row.report)], f"cell-{row.cell.key[:12]}", unfold=False) for row in own)
        sections.append(f"<section>{head}{parts}<h3>Every run</h3>{runs}</section>")
    return sections


def _family_part(study: Study, own: list[Row], family: str) -> str:
    tables = ""
    for model, form in dict.fromkeys((row.cell.model, row.cell.format) for row in own):
        part = [row for row in own if (row.cell.model, row.cell.format) == (model, form)]
        part.sort(key=lambda row: sort_key(row.cell.recipe))
        tables += f"<h4>{escape(model)}, {escape(form)}</h4><div class='card scroll'>{_table(part)}</div>"
    tables += _asked(own[0])
    shown = f"{_curves(study, own)}{pictures.section(own, study.evaluation)}{_spreads(own)}{_pruning(own)}"
    return f"<h3>{escape(_family(family))}</h3>{tables}{_plots(own)}{shown}"


def _asked(row: Row) -> str:
    """How the figures of a language model were taken."""
    if not findings.calls(row) or row.report is None or row.report.accuracy is None:
        return ""
    return (
        f'<p class="soft">Perplexity on {escape(row.report.accuracy.dataset)}. A call is one token, the likeliest, '
        f"behind a prompt of {chain.PROMPT} and up to {chain.FOLLOWING} others. The first token is that of a process "
        "just begun: the prompt, and all that the runtime does once.</p>"
    )


def _plots(own: list[Row]) -> str:
    """Size and time against the metric, without the wrecks: they would flatten all that is worth comparing."""
    kept = [row for row in own if row.drop is None or row.drop <= _WRECK]
    left = len(own) - len(kept)
    note = (
        f'<p class="soft">{left} of {len(own)} lost more than {_WRECK:.0%} and are left out here.</p>' if left else ""
    )
    return html.plots(rows.rows([row.report for row in kept if row.report])) + note


def _table(part: list[Row]) -> str:
    """Rows of one model in one format, as a paper would print them."""
    columns, names = list(COLUMNS), dict[str, str]()
    if findings.calls(part[0]):
        columns = [each for name in COLUMNS for each in _TOKENS.get(name, (name,))]
        names = {**_NAMES, "accuracy": str(plugins.task(part[0].cell.family).METRIC)}
    heads = "".join(f"<th scope=col{_kind(name)}>{names.get(name, name)}</th>" for name in columns)
    body = ""
    for row in part:
        cells = _cells(row, part)
        listed = "".join(f'<td{_kind(name)} data-name="{name}">{cells[name]}</td>' for name in columns)
        body += f"<tr>{listed}</tr>"
    return f'<table class="runs"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'


def _kind(column: str) -> str:
    return "" if column in _TEXTS else " class=num"


def _cells(row: Row, part: list[Row]) -> dict[str, str]:
    report, base = row.report, baseline(part, row)
    assert report is not None
    run, accuracy = report.measurement, report.accuracy
    ratio = latency_ratio(row, base)
    smaller = base.report.artifact.bytes / report.artifact.bytes if base and base.report else None
    change, error = _change(row)
    link = f'<a href="#cell-{row.cell.key[:12]}">{escape(row.cell.recipe)}</a>'
    energy = run.energy_mj if run else None
    kind = row.status if row.status in {RANKED, "unstable", "throttled"} else "bad"
    status = f'<span class="status {kind}">{escape(row.status)}</span>'
    rate = findings.per_second(row.p50)
    return {
        "recipe": link,
        "size": escape(size(report.artifact.bytes)),
        "smaller": escape(f"{smaller:.2f}x" if smaller and row is not base else DASH),
        "accuracy": escape(score(row.accuracy, accuracy)),
        "change": _two(change, error),
        "first token": escape(DASH if run is None or run.first_ms is None else f"{millis(run.first_ms)} ms"),
        "p50": _latency(row, "p50"),
        "p90": _latency(row, "p90"),
        "tokens/s": _two(millis(rate.value), f"[{span(rate)}]" if span(rate) else ""),
        "time": _two(
            DASH if ratio.value is None or row is base else f"{millis(ratio.value)}x",
            f"[{span(ratio)}]" if span(ratio) else "",
        ),
        "memory": escape(size(run.memory_peak_bytes if run else None)),
        "energy": f'<span title="{escape(energy.reason if energy else "not measured")}">'
        f"{escape(f'{number(energy.gross)} mJ' if energy and energy.gross is not None else DASH)}</span>",
        "ran as": _ran(run.precision_executed if run else ""),
        "status": status + (f"<small>{escape(row.reason)}</small>" if row.reason and kind == "bad" else ""),
    }


def _ran(told: str) -> str:
    """The precision that most kernels ran in, the count of them on request."""
    return f'<span title="{escape(told)}">{escape(told.partition(" (")[0] or DASH)}</span>'


def _change(row: Row) -> tuple[str, str]:
    """What the metric gained or lost, in points where it is a share, and half the interval of that."""
    if row.drop is None or row.report is None or row.report.accuracy is None:
        return DASH, ""
    if changed := row.change_in_unit():
        return changed
    share = "%" in score(row.accuracy, row.report.accuracy)
    factor, unit = (100.0, " pt") if share else (1.0, "")
    text = "0" if row.drop == 0 else f"{-row.drop * factor:+.2f}"
    error = f"\N{PLUS-MINUS SIGN} {row.drop_error * factor:.2f}{unit}" if share and row.drop_error is not None else ""
    return f"{text}{unit}", error


def _latency(row: Row, name: str) -> str:
    found = rows.bound(row.report.measurement if row.report else None, name)
    if found.value is None:
        return f'<span title="{escape(found.reason)}">{DASH}</span>'
    return _two(f"{millis(found.value)} ms", f"[{span(found)}]" if span(found) else "")


def _two(first: str, second: str) -> str:
    return escape(first) + (f"<small>{escape(second)}</small>" if second else "")


def _curves(study: Study, own: list[Row]) -> str:
    """The metric over the share that was taken out, with the limit of the loss and where each curve last held."""
    lines = findings.thresholds(own, study.max_drop)
    if not lines:
        return ""
    accuracy = next(row.report.accuracy for row in own if row.report and row.report.accuracy)  # of one task, so alike
    cards = ""
    for model in dict.fromkeys(line.model for line in lines):
        mine = [line for line in lines if line.model == model]
        base = next(
            (r.report.accuracy.baseline for r in own if r.cell.model == model and r.report and r.report.accuracy), None
        )
        drawn = [Curve(line.name, line.points, line.holds) for line in mine]
        title = f"{accuracy.metric} of {model} against sparsity"
        limit = None if base is None else scores.limit(base, study.max_drop, accuracy)
        plot = curves(
            drawn, title, ("share taken out", lambda v: f"{v:g}"), (accuracy.metric, lambda v: tick(v, accuracy)), limit
        )
        keys = "".join(f"<span>{_dot(at)}{escape(line.name)}</span>" for at, line in enumerate(mine))
        note = f"<span>dashed: a loss of {study.max_drop:.1%}</span><span>ring: the last amount that held</span>"
        cards += _figure(title, f'{plot}<p class="legend">{keys}{note}</p>')
    return f'<div class="pair">{cards}</div>'


def _dot(series: int) -> str:
    dot = f'<g class="curve s{min(series, COLOURS - 1)}"><circle class="dot" cx="7" cy="7" r="4"/></g>'
    return f'<svg viewBox="0 0 14 14" aria-hidden="true">{dot}</svg>'


def _figure(title: str, inside: str) -> str:
    return f'<figure class="card"><figcaption>{escape(title)}</figcaption>{inside}</figure>'


def _spreads(own: list[Row]) -> str:
    """The distributions of all timed runs under each other, a plot for each model and format."""
    cards = ""
    for model, form in dict.fromkeys((row.cell.model, row.cell.format) for row in own):
        part = [r for r in own if (r.cell.model, r.cell.format) == (model, form) and r.p50.value is not None]
        part.sort(key=lambda row: sort_key(row.cell.recipe))
        if len(part) < 2:  # noqa: PLR2004
            continue
        title = f"Time of a call: {model}, {form}"
        plot = spreads([_spread(row) for row in part[:_MOST_SPREADS]], title, "ms a call")
        note = "From the fastest call to the last percentile known; ticks at p50, p90, p99; block: interval of p50."
        cards += (
            f'<figure class="card"><figcaption>{escape(title)}</figcaption>{plot}<p class="soft">{note}</p></figure>'
        )
    return f'<div class="pair">{cards}</div>' if cards else ""


def _spread(row: Row) -> Spread:
    latency = row.report.measurement.latency_ms  # type: ignore[union-attr]  # it has a p50
    assert latency is not None and latency.p50.value is not None
    marks = tuple(bound.value for bound in (latency.p90, latency.p99) if bound.value is not None)
    ends = (latency.p50.low, latency.p50.high)
    return Spread(
        row.cell.recipe,
        latency.min if latency.min is not None else latency.p50.value,
        max([latency.p50.value, *marks]),
        latency.p50.value,
        marks,
        (ends[0], ends[1]) if ends[0] is not None and ends[1] is not None else None,
        row.status == RANKED,
        f"{row.cell.recipe}: p50 {millis(latency.p50.value)} ms, {row.status}",
    )


def _pruning(own: list[Row]) -> str:
    """What changing the network really bought: asked for, stored, smaller, faster."""
    found = [row for row in own if row.report and row.report.pruning]
    if not found:
        return ""
    heads = ("model", "recipe", "format", "asked for", "zeros stored", "bytes", "zstd", "MACs", "time", "verdict")
    body = ""
    for row in found:
        payoff = row.report.pruning  # type: ignore[union-attr]  # filtered above
        assert payoff is not None
        before, after = payoff.before, payoff.after
        cells = (
            row.cell.model,
            row.cell.recipe,
            row.cell.format,
            DASH if payoff.sparsity is None else f"{payoff.sparsity:.1%}",
            rows.zeros(payoff.zeros, payoff.weights),
            f"{size(before.bytes)} \N{RIGHTWARDS ARROW} {size(after.bytes)}",
            f"{size(before.bytes_zstd)} \N{RIGHTWARDS ARROW} {size(after.bytes_zstd)}",
            f"{count(before.macs)} \N{RIGHTWARDS ARROW} {count(after.macs)}",
            f"{millis(payoff.latency_ratio.value)}x [{span(payoff.latency_ratio)}]",
            dict(payoff_facts(payoff))["verdict"],
        )
        body += f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in cells)}</tr>"
    head = "".join(f"<th scope=col>{name}</th>" for name in heads)
    return (
        "<h3>What pruning bought</h3><p class='soft'>Each against the same recipe without it, timed in turns there."
        f"</p><div class='card scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _gone(found: Sequence[Row]) -> str:
    """The cells without times, each with its reason."""
    gone = [row for row in found if row.p50.value is None]
    if not gone:
        return ""
    body = "".join(
        f"<tr><td>{escape(row.cell.model)}</td><td>{escape(row.cell.recipe)}</td><td>{escape(row.cell.format)}</td>"
        f"<td>{escape(row.cell.target)}</td><td class=bad>{escape(row.status)}</td><td>{escape(row.reason)}</td></tr>"
        for row in gone
    )
    heads = "".join(
        f"<th scope=col>{name}</th>" for name in ("model", "recipe", "format", "target", "status", "reason")
    )
    return (
        f"<h2>Cells without times</h2><div class='card scroll'><table><thead><tr>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def standalone(plot: str) -> str:
    """A plot as a file of its own: with its name space and the styles it needs, for light pages."""
    style = f"<style>{html.resource('page.css')} svg {{ font-family: sans-serif; background: #fff; }}</style>"
    return plot.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace("<title>", f"{style}<title>", 1)
