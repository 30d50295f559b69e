"""The cells of a study as rows of figures: from the journal, and as the plain values of documents and tables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe import codec, plugins, recipe, scores
from edgepipe.errors import EdgepipeError
from edgepipe.record import Bound, Report
from edgepipe.report.rows import DASH, bound, final

if TYPE_CHECKING:
    from edgepipe.journal import Journal
    from edgepipe.study.plan import Cell, Study

KIND = "study-cell"
TO_DO, UNFIT, UNREACHABLE, BUSY = "to do", "unfit", "unreachable", "busy"
RANKED = "ok"
PERCENTILES = ("p50", "p90", "p95", "p99")
AMOUNTS = ("sparse", "prune")  # steps whose first parameter says how much of the network goes


@dataclass(frozen=True)
class Row:
    """What became of a cell: ``status`` is a measurement's, or "to do", "unfit", "busy"; it took ``seconds``."""

    cell: Cell
    status: str
    reason: str = ""
    report: Report | None = None
    seconds: float | None = None

    def told(self) -> str:
        """The outcome in one line."""
        p50, accuracy = self.p50, self.accuracy
        figures = [f"p50 {p50.value:.4g} ms" if p50.value is not None else ""]
        if accuracy is not None and self.report and self.report.accuracy:
            figures.append(f"{self.report.accuracy.metric} {accuracy:.4g}")
        return ": ".join(filter(None, (self.status, ", ".join(filter(None, figures)), self.reason)))

    def change_in_unit(self) -> tuple[str, str] | None:
        """What a metric with a unit gained or lost in it, and the share that is; None for others, or if not known."""
        known = self.report.accuracy if self.report else None
        unit = scores.unit(known) if known else ""
        if not unit or known is None or self.drop is None or self.accuracy is None or known.baseline is None:
            return None
        within = f" [{DASH.join(f'{end:.2%}' for end in self.drop_range)}]" if self.drop_range else ""
        return f"{self.accuracy - known.baseline:+.4g} {unit}", f"{self.drop:.2%} lost{within}"

    @property
    def drop_range(self) -> tuple[float, float] | None:
        """The 95 % interval of the drop, where the task itself gives one: ``LOST`` names it in its agreement."""
        known = self.report.accuracy if self.report else None
        if known is None or self.drop is None:
            return None
        place = "exported" if known.on_device is None else "on_device"
        names = getattr(plugins.task(self.cell.family), "LOST", ())
        ends = [known.further.get(place, {}).get(name) for name in names[1:]]
        low, high = ends or (None, None)
        return None if low is None or high is None else (low, high)

    @property
    def p50(self) -> Bound:
        """The median time of a call in ms."""
        return bound(self.report.measurement if self.report else None, "p50")

    @property
    def accuracy(self) -> float | None:
        """The metric furthest down the chain that is known."""
        return final(self.report.accuracy)[0] if self.report else None

    @property
    def drop(self) -> float | None:
        """What the metric lost against the float model, as a share of 1 (`scores.lost`): positive is worse."""
        accuracy = self.report.accuracy if self.report else None
        last = self.accuracy
        if accuracy is None or accuracy.baseline is None or last is None:
            return None
        return scores.lost(accuracy.baseline, last, accuracy)

    @property
    def drop_error(self) -> float | None:
        """Half the 95 % interval of the drop: the task's own, or that of a metric that is a share of right answers.

        For the latter both answers are to the same samples, so only those that changed can differ: the variance of the
        difference of two such shares is at most d / n (McNemar 1947), with d the share of changed answers. The rungs'
        shares are summed, which can only be too many.
        """
        report = self.report
        if report is None or report.accuracy is None or not report.accuracy.samples or self.drop is None:
            return None
        if report.accuracy.unit:
            return (self.drop_range[1] - self.drop_range[0]) / 2 if self.drop_range else None
        changed = [rung.disagreement for rung in report.parity if rung.disagreement is not None]
        return 1.96 * math.sqrt(min(sum(changed), 1.0) / report.accuracy.samples)


def row(journal: Journal, cell: Cell) -> Row:
    """The cell as the journal knows it."""
    if cell.problem:
        return Row(cell, UNFIT, cell.problem)
    record = journal.get(_id(cell))
    if record is None or record.kind != KIND:
        return Row(cell, TO_DO)
    value = record.value
    report = None
    if value.get("report"):
        kept = journal.get(str(value["report"]))
        try:
            report = codec.from_dict(Report, kept.value) if kept else None
        except EdgepipeError:
            return Row(cell, TO_DO)  # written by another version
    return Row(cell, str(value["status"]), str(value["reason"]), report, value.get("seconds"))


def keep(journal: Journal, study: Study, found: Row) -> Row:
    """Put a cell's outcome into the journal; it is on the disk when this returns.

    Raises:
        EdgepipeError: the disk is full or can't be written.
    """
    report = found.report
    if report is not None and not report.id:
        report = journal.append_report(report)
    elif report is not None and report.measurement is None:
        journal.append_report(report)
    value = {
        "study": study.name,
        "cell": codec.to_dict(found.cell),
        "status": found.status,
        "reason": found.reason,
        "report": report.id if report else "",
        "seconds": found.seconds,
    }
    journal.append(KIND, value, _id(found.cell))
    return Row(found.cell, found.status, found.reason, report, found.seconds)


def _id(cell: Cell) -> str:
    return f"study-{cell.key}"


def sort_key(text: str) -> tuple[str, float]:
    """What a recipe does to the network first, and how much of it: so that tables read in order."""
    parts = recipe.parse(text).parts
    if not parts or parts[0].name not in AMOUNTS:
        return ("", 0.0)
    return (parts[0].name, amount(text) or 0.0)


def amount(text: str) -> float | None:
    """The share that the recipe's first step takes out of the network; None where it takes none."""
    name, _, rest = text.partition("+")[0].partition(":")
    try:
        return float(rest.partition(",")[0]) if name in AMOUNTS else None
    except ValueError:
        return None


def baseline(found: list[Row], of: Row) -> Row | None:
    """The row of the same model, format and target that nothing was done to."""
    cell = of.cell
    same = (each for each in found if each.cell.recipe == recipe.BASELINE and each.report)
    return next((e for e in same if (e.cell.model, e.cell.format, e.cell.target) == _place(cell)), None)


def _place(cell: Cell) -> tuple[str, str, str]:
    return cell.model, cell.format, cell.target


def latency_ratio(found: Row, base: Row | None) -> Bound:
    """Median time over that of ``base``, with an interval that holds at 95 % or more; null with its reason.

    Measured in turns where the report has that; else from two runs, end against end, which is wider than needed.
    """
    payoff = found.report.pruning if found.report else None
    if payoff and base and payoff.against == base.cell.recipe and payoff.latency_ratio.value is not None:
        return payoff.latency_ratio
    if base is None or base is found:
        return Bound(None, reason="there is no run of the unchanged model to hold it against")
    one, other = found.p50, base.p50
    if not one.value or not other.value:
        return Bound(None, reason=one.reason or other.reason or found.status)
    if not (one.low and one.high and other.low and other.high):
        return Bound(one.value / other.value, reason="a run has no interval")
    return Bound(one.value / other.value, one.low / other.high, one.high / other.low)


def figures(found: list[Row], of: Row) -> dict[str, Any]:
    """A row as plain values: what documents, CSV and Parquet hold. What is not known is null."""
    report, cell = of.report, of.cell
    base = baseline(found, of)
    run = report.measurement if report else None
    accuracy = report.accuracy if report else None
    last = report.steps[-1] if report and report.steps else None
    ratio = latency_ratio(of, base)
    reached, where = final(accuracy)
    row: dict[str, Any] = {
        "model": cell.model, "family": cell.family, "recipe": cell.recipe, "format": cell.format,
        "target": cell.target, "status": of.status, "reason": of.reason,
        "board": (report.board.model or report.board.cpu) if report else None,
        "emulated": report.board.emulated if report else None,
        "runtime": f"{report.board.runtime} {report.board.runtime_version}".strip() if report else None,
        "bytes": report.artifact.bytes if report else None,
        "bytes_gzip": report.artifact.bytes_gzip if report else None,
        "smaller": base.report.artifact.bytes / report.artifact.bytes if report and base and base.report else None,
        "parameters": last.parameters if last else None,
        "macs": last.macs if last else None,
        "sparsity": last.sparsity if last else None,
        "zeros": last.zeros / last.weights if last and last.zeros is not None and last.weights else None,
        "metric": accuracy.metric if accuracy else None,
        "samples": accuracy.samples if accuracy else None,
        "baseline": accuracy.baseline if accuracy else None,
        "accuracy": reached, "accuracy_where": where or None,
        "drop": of.drop, "drop_error": of.drop_error,
    }  # fmt: skip
    for name in PERCENTILES:
        value = bound(run, name)
        row |= {f"{name}_ms": value.value, f"{name}_low_ms": value.low, f"{name}_high_ms": value.high}
    row |= {"latency_ratio": ratio.value, "latency_ratio_low": ratio.low, "latency_ratio_high": ratio.high}
    row |= {
        "load_ms": run.load_ms if run else None,
        "first_ms": run.first_ms if run else None,
        "throughput_per_s": run.throughput_per_s if run else None,
        "memory_peak_bytes": run.memory_peak_bytes if run else None,
        "precision_executed": run.precision_executed if run else None,
        "calls": run.samples if run else None,
        "energy_mj": run.energy_mj.gross if run else None,
        "energy_net_mj": run.energy_mj.net if run else None,
        "energy_reason": run.energy_mj.reason if run else "not measured",
        "max_c": run.thermal.max_c if run else None,
        "pruning_verdict": report.pruning.verdict if report and report.pruning else None,
        "seconds": of.seconds,
        "report": report.id if report else None,
        "weights_sha256": report.model.sha256 if report else None,
        "file_sha256": report.artifact.sha256 if report else None,
    }
    return row
