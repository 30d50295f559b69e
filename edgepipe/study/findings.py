"""What a study shows, in sentences made of its numbers: how far pruning holds, what recipes cost and gain, how sure.

No sentence is there before its numbers are: a family of which too little was measured gets the sentence that says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgepipe import plugins, stats
from edgepipe.record import Bound
from edgepipe.report.rows import DASH, millis, number, size, span
from edgepipe.study.results import AMOUNTS, RANKED, Row, amount, baseline, latency_ratio

_WORDS = {"sparse": "unstructured sparsity", "prune": "structured pruning"}
_SAME = 0.02  # two times closer than this are called the same: what an idle machine repeats to


@dataclass(frozen=True)
class Threshold:
    """How much one step can take out of one network before the loss is more than ``max_drop``.

    ``holds`` is the largest amount tried up to which every smaller one held, null where none did; ``breaks`` the
    smallest one that did not, null where all held. ``points`` are (amount, metric), by amount.
    """

    model: str
    format: str
    target: str
    step: str
    rest: str
    holds: float | None
    breaks: float | None
    points: tuple[tuple[float, float], ...]

    @property
    def name(self) -> str:
        """Which curve it is, in words."""
        rest = f" + {self.rest}" if self.rest else ""
        return f"{self.model} {self.step}{rest} {self.format}"


def thresholds(rows: list[Row], max_drop: float) -> list[Threshold]:
    """One for each model, format, target and step that was tried with at least two amounts."""
    groups: dict[tuple[str, ...], list[tuple[float, Row]]] = {}
    for row in rows:
        much = amount(row.cell.recipe)
        if much is None or row.drop is None:
            continue
        first, _, rest = row.cell.recipe.partition("+")
        cell, step = row.cell, first.partition(":")[0]
        groups.setdefault((cell.model, cell.format, cell.target, step, rest), []).append((much, row))
    found = []
    for key, pairs in groups.items():
        pairs.sort(key=lambda pair: pair[0])
        if len({much for much, _ in pairs}) > 1:
            found.append(_threshold(key, pairs, max_drop))
    return found


def _threshold(key: tuple[str, ...], pairs: list[tuple[float, Row]], max_drop: float) -> Threshold:
    holds = breaks = None
    for much, row in pairs:
        if row.drop is not None and not stats.within(row.drop, max_drop):
            breaks = much
            break
        holds = much
    points = tuple((much, float(row.accuracy)) for much, row in pairs if row.accuracy is not None)
    model, form, target, step, rest = key
    return Threshold(model, form, target, step, rest, holds, breaks, points)


def conclusions(rows: list[Row], max_drop: float) -> list[dict[str, str]]:
    """For each family of models a list of sentences: ``{"family", "text"}``."""
    found = []
    for family in dict.fromkeys(row.cell.family for row in rows):
        own = [row for row in rows if row.cell.family == family]
        said = [*_quantisation(own, max_drop), *_pruning(own, max_drop), *_decoding(own), *_gone(own)]
        found += [{"family": family, "text": text} for text in said or ["nothing was measured yet"]]
    return found


def _quantisation(rows: list[Row], max_drop: float) -> Iterable[str]:
    """For each format, the smallest and the fastest recipe whose loss is within the limit, and the costliest one."""
    for place in _places(rows):
        here = [row for row in rows if (row.cell.model, row.cell.format, row.cell.target) == place]
        base = baseline(here, here[0])
        if base is None or base.report is None:
            continue
        model, form, target = place
        kept = [row for row in here if row is not base and row.report and _holds(row, max_drop)]
        start = f"{model}, {form} on {target}"
        if not kept:
            tried = [row for row in here if row is not base and row.drop is not None]
            if tried:
                least = min(tried, key=lambda row: row.drop or 0.0)
                yield f"{start}: no recipe tried lost less than {max_drop:.1%}; the gentlest, {_costs(here, least)}"
            continue
        smallest = min(kept, key=lambda row: row.report.artifact.bytes if row.report else 0)
        yield f"{start}: smallest within {max_drop:.1%}: {_costs(here, smallest)}"
        timed = [row for row in kept if row.status == RANKED and latency_ratio(row, base).value is not None]
        if timed:
            fastest = min(timed, key=lambda row: latency_ratio(row, base).value or 0.0)
            if fastest is not smallest:
                yield f"{start}: fastest within {max_drop:.1%}: {_costs(here, fastest)}"


def _places(rows: list[Row]) -> list[tuple[str, str, str]]:
    return list(dict.fromkeys((row.cell.model, row.cell.format, row.cell.target) for row in rows))


def _holds(row: Row, max_drop: float) -> bool:
    return row.drop is not None and stats.within(row.drop, max_drop)


def _costs(rows: list[Row], row: Row) -> str:
    """What a recipe did to size, metric and time, each with how sure that is."""
    base = baseline(rows, row)
    parts = []
    if base and base.report and row.report:
        parts.append(f"{number(base.report.artifact.bytes / row.report.artifact.bytes)}x smaller")
    accuracy = row.report.accuracy if row.report else None
    if row.drop is not None and accuracy:
        error = f" \N{PLUS-MINUS SIGN} {row.drop_error:.4f}" if row.drop_error is not None else ""
        lost = "no loss" if row.drop == 0 else f"{-row.drop:+.4f}"
        if changed := row.change_in_unit():
            lost, error = "{} ({})".format(*changed), ""
        parts.append(f"{accuracy.metric} {lost}{error} on {accuracy.samples:,} samples")
    parts.append(speed(latency_ratio(row, base)))
    return f"{row.cell.recipe}: {', '.join(parts)}"


def speed(ratio: Bound) -> str:
    """A ratio of times in words, as far as its interval allows."""
    if ratio.value is None:
        return f"time not compared ({ratio.reason})"
    told = f"{millis(ratio.value)}x the time{f' [{span(ratio)}]' if span(ratio) else ''}"
    if ratio.low is None or ratio.high is None:
        return told
    if ratio.high < 1 - _SAME:
        return f"faster, {told}"
    if ratio.low > 1 + _SAME:
        return f"slower, {told}"
    return f"no difference in time shown, {told}"


def _pruning(rows: list[Row], max_drop: float) -> Iterable[str]:
    """Up to where each way of pruning held, and whether any of it was faster on the runtime."""
    for line in thresholds(rows, max_drop):
        word = _WORDS.get(line.step, line.step) + (f" with {line.rest}" if line.rest else "")
        start = f"{line.model}, {line.format} on {line.target}: {word}"
        tried = f"{line.points[0][0]:g} to {line.points[-1][0]:g}"
        if line.holds is None:
            yield f"{start} lost more than {max_drop:.1%} at every amount tried ({tried})"
        elif line.breaks is None:
            yield f"{start} held within {max_drop:.1%} at every amount tried ({tried})"
        else:
            yield f"{start} held up to {line.holds:g} and lost more than {max_drop:.1%} at {line.breaks:g}"
    for step in AMOUNTS:
        for place in _places(rows):
            yield from _pace(rows, place, step)


def _pace(rows: list[Row], place: tuple[str, str, str], step: str) -> Iterable[str]:
    """Whether taking weights out made the file faster on this runtime, over all amounts tried."""
    own = [r for r in rows if (r.cell.model, r.cell.format, r.cell.target) == place and r.cell.recipe.startswith(step)]
    ratios = [
        (row, ratio)
        for row in own
        if row.report and row.report.pruning and (ratio := row.report.pruning.latency_ratio).value is not None
    ]
    if not ratios:
        return
    faster = [row.cell.recipe for row, ratio in ratios if ratio.high is not None and ratio.high < 1 - _SAME]
    middle = f"{millis(statistics.median(ratio.value or 0.0 for _, ratio in ratios))}x the time"
    start = f"{place[0]}, {place[1]} on {place[2]}: {_WORDS[step]}"
    if faster:
        how = f"faster, beyond doubt, in {len(faster)} of {len(ratios)} recipes ({', '.join(faster)}), median {middle}"
        yield f"{start} was {how}"
    else:
        yield f"{start} was faster in none of {len(ratios)} recipes, median {middle}: no speed-up on this runtime"


def _decoding(rows: list[Row]) -> Iterable[str]:
    """What each file of a language model writes in a second, how long one waits for it, and what it holds."""
    for row in rows:
        run = row.report.measurement if row.report else None
        if row.report is None or run is None or calls(row) != "token" or not row.p50.value:
            continue
        cell, rate = row.cell, per_second(row.p50)
        inside = f" [{span(rate)}]" if span(rate) else ""
        first = f", the first {millis(run.first_ms)} ms after a prompt" if run.first_ms else ""
        peak = run.memory_peak_bytes
        held = f", {size(peak)} held at most, {number(peak / row.report.artifact.bytes)}x the file" if peak else ""
        start = f"{cell.model} {cell.recipe}, {cell.format} on {cell.target}"
        yield f"{start}: {millis(rate.value)}{inside} tokens a second{first}{held}"
    notes = {step.note for row in rows if row.report and calls(row) == "token" for step in row.report.steps}
    yield from sorted(notes - {""})


def calls(row: Row) -> str:
    """What a timed call of the row's task makes, e.g. a token; empty where it is an answer to a sample."""
    return str(getattr(plugins.task(row.cell.family), "CALL", "")) if row.report else ""


def per_second(time: Bound) -> Bound:
    """Calls a second of a time in ms: the slow end of one is the low end of the other."""
    value, low, high = (1e3 / each if each else None for each in (time.value, time.high, time.low))
    return Bound(value, low, high, time.reason)


def _gone(rows: list[Row]) -> Iterable[str]:
    """How many cells have no figures."""
    count: dict[str, int] = {}
    for row in rows:
        if row.p50.value is None:
            count[row.status] = count.get(row.status, 0) + 1
    if count:
        listed = ", ".join(f"{many} {status}" for status, many in sorted(count.items()))
        yield f"{sum(count.values())} of {len(rows)} cells have no times: {listed}"
    restless = sum(row.status in {"unstable", "throttled"} for row in rows)
    if restless:
        yield f"{restless} of {len(rows)} cells were unstable or throttled: their times are shown and not ranked"


def compared(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> dict[str, Any]:
    """Study ``b`` over the earlier study ``a``, cell by cell, from the figures of their documents.

    Ratios of times hold their intervals end against end, so that they hold at 95 % or more. A change counts where the
    interval leaves 2 % around 1. With many cells some do by chance.
    """
    place = ("model", "recipe", "format", "target")
    before = {tuple(row[key] for key in place): row for row in a}
    after = {tuple(row[key] for key in place): row for row in b}
    cells = [
        {**dict(zip(place, key, strict=True)), **_pair(before[key], row)} for key, row in after.items() if key in before
    ]
    return {
        "schema": "edgepipe.study-comparison/1",
        "cells": cells,
        "only_in_a": [dict(zip(place, key, strict=True)) for key in before if key not in after],
        "only_in_b": [dict(zip(place, key, strict=True)) for key in after if key not in before],
    }


def _pair(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    ratio = Bound(None, reason="not measured in both")
    if a["p50_ms"] and b["p50_ms"]:
        low = b["p50_low_ms"] / a["p50_high_ms"] if b["p50_low_ms"] and a["p50_high_ms"] else None
        high = b["p50_high_ms"] / a["p50_low_ms"] if b["p50_high_ms"] and a["p50_low_ms"] else None
        ratio = Bound(b["p50_ms"] / a["p50_ms"], low, high)
    known = a["accuracy"] is not None and b["accuracy"] is not None
    return {
        "status_a": a["status"],
        "status_b": b["status"],
        "p50_ratio": {"value": ratio.value, "low": ratio.low, "high": ratio.high, "reason": ratio.reason},
        "bytes_ratio": b["bytes"] / a["bytes"] if a["bytes"] and b["bytes"] else None,
        "accuracy_change": b["accuracy"] - a["accuracy"] if known else None,
        "same_board": a["board"] == b["board"] and a["runtime"] == b["runtime"],
        "verdict": speed(ratio).split(",")[0] if ratio.value is not None else DASH,
    }
