"""Tables for a terminal. Wide terminals get one line a row, narrow ones two; a failed row stays, with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from edgepipe import scenarios
from edgepipe.record import Accuracy, Comparison, OpProfile, Payoff, Report, Rung, Step
from edgepipe.report.rows import (
    DASH,
    ON_BOARD,
    OP_COLUMNS,
    OPS,
    Row,
    boards,
    bound,
    caveat,
    count,
    drop,
    facts,
    final,
    interval,
    measurement_facts,
    millis,
    number,
    op_cells,
    payoff_facts,
    plain,
    provenance,
    rows,
    said,
    scaling,
    score,
    size,
    span,
    zeros,
)
from edgepipe.schema import Artifact, Caution

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

WIDE, NARROW = 120, 72  # one line a row from the one, no table at all below the other
_STYLES = {"ok": "green", "unstable": "yellow", "throttled": "yellow", "not measured": "dim"}


class _Ladder(Protocol):
    @property
    def accuracy(self) -> Accuracy: ...
    @property
    def parity(self) -> list[Rung]: ...


class _Made(Protocol):
    @property
    def steps(self) -> list[Step]: ...


class _Shown(Protocol):
    @property
    def source(self) -> str: ...


class Exported(Protocol):
    """What `show_exports` needs to know of an exported file."""

    @property
    def artifact(self) -> Artifact:
        """The file."""

    @property
    def ladder(self) -> _Ladder | None:
        """Its accuracy and parity; None where there was no data."""

    @property
    def made(self) -> _Made:
        """The steps it was made by."""

    @property
    def parity(self) -> list[Rung]:
        """Each stage against the one before, on data or on made-up inputs."""

    @property
    def shown(self) -> _Shown:
        """What it was shown on where there was no data."""

    @property
    def payoff(self) -> Payoff | None:
        """What changing the network bought, where that was done."""


def show_reports(reports: Sequence[Report], console: Console) -> None:
    """Print one table for each board, and below it why rows failed or what they warn of."""
    if not reports:
        console.print("nothing was measured yet: edgepipe deploy --target loopback", markup=False)
        return
    for board, found in boards(rows(reports)):
        console.print()
        console.print(_text(f"{board.target} ({board.name})" if board.name else board.target, "bold"))
        console.print(_text("  ".join(filter(None, (facts(board), caveat(board) and f"[{caveat(board)}]"))), "dim"))
        if console.width >= NARROW:
            console.print(_summary(found, wide=console.width >= WIDE))
        else:
            for row in found:
                console.print(_text(f"{row.name}: {', '.join(_sentence(row))}"))
        for row in found:
            _tell_failure(row, console)
        _tell_warnings(found, console)
        for row in found:
            if row.run and row.run.scenario:
                one = row.run.scenario
                console.print(_text(f"{row.name}, {one.name}: {scenarios.words(one)}"))
        for row in found:
            if row.report.ops:
                console.print(_text(f"{row.name}: where the time of {row.report.ops.runs} inferences goes", "bold"))
                _ops(row.report.ops, console)
        for group in scaling(found):
            console.print(_scaling(group))


def show_report(report: Report, console: Console) -> None:
    """Print one report whole: steps, accuracy, parity, board, measurement, warnings, provenance."""
    row = rows([report])[0]
    board = report.board
    console.print(_text(f"{row.name} on {board.target}", "bold"))
    console.print(_text(f"{report.id or 'no id'}  {report.created}", "dim"))
    console.print(_text("  ".join(filter(None, (facts(board), caveat(board) and f"[{caveat(board)}]"))), "dim"))
    if report.steps:
        console.print(_steps(report.steps, report.accuracy))
    _ladder(report.accuracy, report.parity, console)
    if report.ops:
        _ops(report.ops, console)
    if report.pruning:
        console.print(_pairs("what changing the network bought", payoff_facts(report.pruning)))
    if report.measurement:
        console.print(_pairs("measurement", measurement_facts(report.measurement)))
    console.print(_pairs("provenance", provenance(report)))
    _tell_failure(row, console)
    _tell_warnings([row], console)


def show_studies(document: dict[str, Any], console: Console) -> None:
    """Print what changed from one study to the next, cell by cell, and which cells came or went."""
    table = _table("cell", "bytes", "metric", "time", "[95 %]", "", numbers=(1, 2, 3, 4))
    for cell in document["cells"]:
        ratio, change = cell["p50_ratio"], cell["accuracy_change"]
        name = " ".join(cell[key] for key in ("model", "recipe", "format", "target"))
        known = ratio["low"] is not None and ratio["high"] is not None
        ends = f"[{ratio['low']:.3f}{DASH}{ratio['high']:.3f}]" if known else ""
        same = cell["status_a"] == cell["status_b"]
        word = cell["verdict"] if same else f"{cell['status_a']}, now {cell['status_b']}"
        size_ratio = DASH if cell["bytes_ratio"] is None else f"{cell['bytes_ratio']:.3f}x"
        time = DASH if ratio["value"] is None else f"{ratio['value']:.3f}x"
        moved = DASH if change is None else f"{change:+.4f}"
        other = "" if cell["same_board"] else " (another board or runtime)"
        table.add_row(*map(_text, (name, size_ratio, moved, time, ends, word + other)))
    console.print(table)
    for key, word in (("only_in_a", "gone"), ("only_in_b", "new")):
        for cell in document[key]:
            console.print(_text(f"{word}: {' '.join(cell.values())}", "dim"))


def show_comparison(found: Comparison, console: Console) -> None:
    """Print the ratios of two runs with their intervals, what was not alike, and the verdict."""
    how = f"in {found.rounds} turns on one board" if found.interleaved else "measured apart"
    console.print(_text(f"B {found.b} over A {found.a}, {how}", "bold"))
    for each in found.differs:
        console.print(_text(f"NOT COMPARABLE, {each.what}: {each.a} / {each.b}", "yellow"))
    table = _table("percentile", "B / A", "[95 %]", "", numbers=(1, 2))
    for name, ratio in found.ratios.items():
        ends = f"[{ratio.low:.3f}{DASH}{ratio.high:.3f}]" if ratio.low is not None and ratio.high is not None else ""
        value = DASH if ratio.value is None else f"{ratio.value:.3f}"
        table.add_row(*map(_text, (name, value, ends, ratio.reason)))
    console.print(table)
    allowed = f"(slower by up to {found.max_slowdown:.0%} is allowed)"
    console.print(_text(f"{found.verdict} {allowed}", "red" if found.verdict == "regression" else "bold"))


def show_exports(exports: Iterable[Exported], console: Console) -> None:
    """Print each exported file: where it is, its size, its steps, accuracy and parity."""
    for item in exports:
        artifact = item.artifact
        console.print()
        console.print(_text(f"{artifact.model} {artifact.recipe} {artifact.format}".strip(), "bold"))
        console.print(_text(f"{artifact.path}  {size(artifact.bytes)}, {size(artifact.bytes_gzip)} gzipped"))
        ladder = item.ladder
        if item.made.steps:
            console.print(_steps(item.made.steps, ladder.accuracy if ladder else None))
        if ladder is None:
            console.print(_text(f"the model has no evaluation data: {item.shown.source}", "yellow"))
            _ladder(None, item.parity, console)
        else:
            _ladder(ladder.accuracy, ladder.parity, console)
        if item.payoff:
            console.print(_pairs("what changing the network bought", payoff_facts(item.payoff)))


def _summary(found: Sequence[Row], *, wide: bool) -> Table:
    if wide:
        table = _table(
            *("model", "recipe", "format", "size", "smaller", "accuracy", "change", "p50 ms", "[95 %]", "p90 ms"),
            *("memory", "status"),
            numbers=(3, 4, 5, 6, 7, 9, 10),
        )
    else:
        table = _table(
            *(
                "model\nrecipe, format",
                "size\nsmaller",
                "accuracy\nchange",
                "p50 ms\n[95 %]",
                "p90 ms\nmemory",
                "status",
            ),
            numbers=(1, 2, 3, 4),
        )
    for row in found:
        cells = _cells(row)
        if not wide:  # two lines a row: each pair of columns shares one
            model, recipe, form, *rest = cells
            pairs = [(model, f"{recipe} {form}"), *zip(rest[::2], rest[1::2], strict=True)]
            cells = [f"{first}\n{second}".rstrip() for first, second in pairs]
        warned = "*" if row.run and row.run.warnings else ""
        table.add_row(*map(_lines, cells), _text(row.status + warned, _STYLES.get(row.status, "red")))
    return table


def _ops(found: OpProfile, console: Console) -> None:
    """Where the time goes, slowest nodes first."""
    if found.ops:
        table = _table(*OP_COLUMNS, numbers=(0, 1, 2, 3))
        for cells in op_cells(found):
            table.add_row(*map(_text, cells))
        console.print(table)
    left = len(found.ops) - OPS
    more = [f"{left} more nodes: --json has all"] * (left > 0) + [found.reason] * bool(found.reason)
    for line in more:
        console.print(_text(line, "dim"))


def _scaling(group: Sequence[Row]) -> Table:
    """What threads and batch bring, against the first of these rows."""
    first, name = group[0].run, f"{group[0].report.model.name} {group[0].report.artifact.format}"
    table = _table(name, "threads", "batch", "p50 ms", "[95 %]", "inferences/s", "times", numbers=(1, 2, 3, 5, 6))
    for row in group:
        run = row.run
        assert run is not None
        gain = (run.throughput_per_s or 0.0) / (first.throughput_per_s or 1.0) if first else 0.0
        cells = (str(run.threads), str(run.batch), millis(row.p50.value), f"[{span(row.p50)}]" if span(row.p50) else "")
        table.add_row(*map(_text, ("", *cells, number(run.throughput_per_s), f"{gain:.3g}x")))
    return table


def _cells(row: Row) -> list[str]:
    """The text of each column but the last."""
    report, run, scored = row.report, row.run, row.report.accuracy
    base = score(scored.baseline, scored) if scored else DASH
    reached = score(row.accuracy, scored) + ("" if final(scored)[1] == ON_BOARD else " (host)") if scored else DASH
    return [
        *(plain(text) for text in (report.model.name, row.recipe, report.artifact.format)),
        size(report.artifact.bytes),
        f"{row.smaller:.3g}x" if row.smaller else "",
        f"{base} → {reached}".replace(" % →", " →") if scored else DASH,
        drop(scored),
        millis(row.p50.value),
        f"[{span(row.p50)}]" if span(row.p50) else "",
        millis(bound(run, "p90").value),
        size(run.memory_peak_bytes) if run else DASH,
    ]


def _sentence(row: Row) -> list[str]:
    """A row in words, for a terminal too narrow for a table."""
    reached = score(row.accuracy, row.report.accuracy)
    return [size(row.report.artifact.bytes), reached, f"p50 {interval(row.run, 'p50')}", row.status]


def _lines(text: str) -> Text:
    """A cell whose second line, where it has one, is dim. Its parts are plain already."""
    from rich.text import Text

    first, _, second = text.partition("\n")
    cell = Text(first)
    return cell.append(f"\n{second}", "dim") if second else cell


def _tell_failure(row: Row, console: Console) -> None:
    """Print why a row has no figures."""
    if row.status not in {"ok", "unstable", "throttled"}:
        console.print(_text(f"{row.name}: {row.status}: {row.reason}", _STYLES.get(row.status, "red")))


def _tell_warnings(found: Sequence[Row], console: Console) -> None:
    """Print the warnings with what helps; one that several runs share is told once, in the words of the first."""
    told: dict[str, list[tuple[Row, Caution]]] = {}
    for row in found:
        for warning in row.run.warnings if row.run else []:
            told.setdefault(warning.code, []).append((row, warning))
    for code, pairs in told.items():
        row, warning = pairs[0]
        several = (
            f"{code}, {len({id(row) for row, _ in pairs})} of {len(found)} runs: " if len(found) > 1 else f"{code}: "
        )
        line = _text(several, "yellow")
        line.append(plain(f"{row.name}: {warning.text}" if len(found) > 1 else warning.text))
        line.append(plain(f"; {warning.hint}") if warning.hint else "", "dim")
        console.print(line)
    if told and len(found) > 1:
        console.print(_text("* all of a run's warnings: edgepipe runs show ID", "dim"))


def _steps(steps: Sequence[Step], accuracy: Accuracy | None) -> Table:
    columns = ("step", "size", "gzip", "params", "MACs", "zeros", "accuracy", "seconds", "note")
    table = _table(*columns, numbers=(1, 2, 3, 4, 5, 6, 7))
    for step in steps:
        scored = score(step.accuracy, accuracy) if accuracy else number(step.accuracy)
        counts = [count(value) for value in (step.parameters, step.macs)]
        cells = (said(step), size(step.bytes), size(step.bytes_gzip), *counts, zeros(step.zeros, step.weights))
        table.add_row(*map(_text, (*cells, scored, number(step.seconds), step.note)))
    return table


def _ladder(accuracy: Accuracy | None, parity: Sequence[Rung], console: Console) -> None:
    if accuracy:
        named = ("baseline", "compressed", "exported", "on_device")
        values = ", ".join(f"{name} {score(getattr(accuracy, name), accuracy)}" for name in named)
        reason = f" ({accuracy.reason})" if accuracy.reason else ""
        told = accuracy.dataset if "samples of" in accuracy.dataset else f"{accuracy.samples:,} samples"
        console.print(_text(f"{accuracy.metric} on {told}: {values}{reason}"))
    if not parity:
        return
    table = _table("against the rung before", "max abs", "mean abs", "cosine", "disagree", "note", numbers=(1, 2, 3, 4))
    for rung in parity:
        share = DASH if rung.disagreement is None else f"{rung.disagreement:.2%}"
        cosine = DASH if rung.cosine is None else f"{rung.cosine:.6f}"
        table.add_row(*map(_text, (rung.rung, number(rung.max_abs), number(rung.mean_abs), cosine, share, rung.note)))
    console.print(table)


def _pairs(title: str, pairs: Iterable[tuple[str, str]]) -> Table:
    table = _table(title, "")
    for name, text in pairs:
        table.add_row(_text(name, "dim"), _text(text))
    return table


def _table(*columns: str, numbers: Sequence[int] = ()) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold dim")
    for at, column in enumerate(columns):
        table.add_column(column, justify="right" if at in numbers else "left", overflow="fold", no_wrap=at in numbers)
    return table


def _text(text: object, style: str = "") -> Text:
    from rich.text import Text

    return Text(plain(text), style)
