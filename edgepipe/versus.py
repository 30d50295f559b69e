"""Two measured runs against each other: are they comparable, by how much do they differ, and is that a regression."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgepipe import codec, ratios
from edgepipe.errors import GateError, UsageError
from edgepipe.journal import Journal
from edgepipe.record import Bound, Comparison, Difference, Measurement, Report
from edgepipe.schema import RawRun

PERCENTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
MAX_SLOWDOWN = 0.02  # the 2 % within which two tools that measure the same file are said to agree
CLOCKS = 0.05  # median clocks further apart than this are other clocks
REGRESSION, SLOWER, FASTER, SAME, UNKNOWN = "regression", "slower", "faster", "no difference shown", "not known"


def load(name: str) -> list[Report]:
    """The reports of a JSON file as `deploy`, `bench` or `runs show` print it, or the kept run whose id begins so.

    Raises:
        UsageError: neither, or the file is something else.
    """
    path = Path(name)
    if not path.is_file():
        return [Journal().find(name)]
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"can't be read as JSON: {str(error)[:100]}", name, "give what --json printed") from None
    reports = data.get("reports") if isinstance(data, dict) and "reports" in data else [data]
    if not isinstance(reports, list) or not reports:
        raise UsageError("no report in it", name, "give what deploy --json or bench --json printed")
    return [codec.from_dict(Report, report) for report in reports]


def pairs(one: Sequence[Report], other: Sequence[Report], force: bool, limit: float) -> list[Comparison]:
    """Compare reports one by one, in the order of their files.

    Raises:
        UsageError: not as many on both sides, or some are not comparable and ``force`` is false.
    """
    if len(one) != len(other):
        text = f"{len(one)} reports against {len(other)}"
        raise UsageError(text, "edgepipe compare", "measure the same formats and options on both sides")
    return [_compared(a, b, force, limit) for a, b in zip(one, other, strict=True)]


def _compared(a: Report, b: Report, force: bool, limit: float) -> Comparison:
    if bool(a.board.emulated) != bool(b.board.emulated):
        text = "one board is real and the other emulated, whose times are nobody's"
        raise UsageError(text, f"{a.id} and {b.id}", "measure both on the same board")
    differs = differences(a, b)
    if differs and not force:
        listed = "; ".join(f"{each.what}: {each.a} / {each.b}" for each in differs)
        raise UsageError(f"not comparable: {listed}", f"{a.id} and {b.id}", "measure both alike, or look with --force")
    found_ratios = {
        name: ratios.quotient(_percentile(b.measurement, name), _percentile(a.measurement, name))
        for name in PERCENTILES
    }
    return Comparison(a.id, b.id, found_ratios, verdict(found_ratios["p50"], limit), limit, False, differs)


def _percentile(run: Measurement | None, name: str) -> Bound:
    if run is None or run.latency_ms is None:
        return Bound(None, reason=(run.reason if run else "") or "not measured")
    found: Bound = getattr(run.latency_ms, name)
    return found


def differences(a: Report, b: Report) -> list[Difference]:
    """All that keeps two reports from being compared: the board and its state, the runtime, how it was measured."""
    sides = _facts(a), _facts(b)
    found = [Difference(name, str(sides[0][name]), str(sides[1][name])) for name in sides[0]]
    found = [each for each in found if each.a != each.b]
    clocks = [_clock(each.measurement) for each in (a, b)]
    if clocks[0] and clocks[1] and abs(clocks[1] / clocks[0] - 1) > CLOCKS:
        found.append(Difference("median clock, kHz", str(clocks[0]), str(clocks[1])))
    statuses = [each.measurement.status if each.measurement else "not measured" for each in (a, b)]
    if any(status != "ok" for status in statuses):
        found.append(Difference("status", *statuses))
    return found


def _facts(report: Report) -> dict[str, Any]:
    """What must be the same on both sides."""
    board, run = report.board, report.measurement
    clocks = run.clocks if run else {}
    return {
        "board": f"{board.target} ({board.name})" if board.name else board.target,
        "machine": f"{board.model or board.cpu}, {board.arch}, {board.cores} cores",
        "kernel": board.kernel,
        "governor": ", ".join(clocks.get("governors") or []) or board.governor or "not known",
        "highest clock, kHz": max(board.clocks.get("max_khz") or [0]) or "not known",
        "runtime": f"{board.runtime} {board.runtime_version}",
        "threads": run.threads if run else None,
        "batch": run.batch if run else None,
        "cores": run.cpus if run else None,
        "input shapes": [spec.shape for spec in report.artifact.inputs],
        "profile": run.profile if run else None,
        "scenario": _scenario(run),
    }


def _scenario(run: Measurement | None) -> str | None:
    """The scenario a run was made in, with the rate of a server; null where it was in none."""
    found = run.scenario if run else None
    return f"{found.name}{f' at {found.rate_per_s:g} queries/s' if found.rate_per_s else ''}" if found else None


def _clock(run: Measurement | None) -> float | None:
    fastest = run.clocks.get("fastest_core_khz") if run else None
    return float(fastest["median"]) if isinstance(fastest, dict) and fastest.get("median") else None


def interleaved(a: Report, b: Report, turns: Sequence[tuple[RawRun, RawRun]], limit: float) -> Comparison:
    """Compare two artifacts that ran in turns on one board: B over A, with a bootstrap interval over the turns."""
    sides = [[[ns for p in turn[side].processes for ns in p.samples_ns] for turn in turns] for side in (0, 1)]
    found_ratios = {name: ratios.ratio_of_turns(sides[0], sides[1], quantile) for name, quantile in PERCENTILES.items()}
    return Comparison(a.id, b.id, found_ratios, verdict(found_ratios["p50"], limit), limit, True, [], len(turns))


def verdict(ratio: Bound, limit: float) -> str:
    """What the interval of a ratio of times, B over A, lets one say."""
    if ratio.low is None or ratio.high is None:
        return UNKNOWN
    if ratio.low > 1 + limit:
        return REGRESSION
    if ratio.low > 1:
        return SLOWER
    return FASTER if ratio.high < 1 else SAME


def gate(found: Sequence[Comparison]) -> GateError | None:
    """The error of a comparison that shows a regression, if one does."""
    bad = next((each for each in found if each.verdict == REGRESSION), None)
    if bad is None:
        return None
    ratio = bad.ratios["p50"]
    what = f"{bad.b} takes {ratio.value:.3f} of the time of {bad.a} [{ratio.low:.3f}, {ratio.high:.3f}]"
    return GateError(f"{what}, over the {1 + bad.max_slowdown:g} allowed", "p50", "or allow it: --max-slowdown 10%")
