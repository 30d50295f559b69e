"""A run as a table: one row for each trial, with plain values, as CSV and as Parquet."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.errors import UsageError
from edgepipe.fleet import plan
from edgepipe.report.rows import bound, final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepipe.fleet.plan import Request
    from edgepipe.record import Report

PERCENTILES = ("p50", "p90", "p95", "p99")
_WHOLE = ("round", "rounds", "boards", "bytes", "samples", "memory_peak_bytes")
_TRUTHS = ("throttled", "odd")
_TEXT = (
    "run", "trial", "board", "kind", "site", "model", "recipe", "format", "status", "reason", "created", "runtime",
    "runtime_version", "cpu", "emulated", "weights_sha256", "file_sha256", "power_reason", "candidate", "causes",
)  # fmt: skip


def rows(name: str, request: Request, found: Sequence[Report]) -> list[dict[str, Any]]:
    """One row for each report of a run, in the order of the plan; what was not measured is null."""
    trials = {trial.id: trial for own in plan.trials(name, request).values() for trial in own}
    members = {member.name: member for member in request.members}
    made = []
    for report in found:
        trial = trials[report.id]
        member = members[trial.board]
        made.append(
            {
                "run": name,
                "trial": report.id,
                "board": trial.board,
                "kind": member.target.like,
                "site": member.site,
                "model": trial.cell.model,
                "recipe": trial.cell.recipe,
                "format": trial.cell.format,
                "round": trial.round,
                **_measured(report),
                **_surroundings(report),
            }
        )
    return made


def _measured(report: Report) -> dict[str, Any]:
    run = report.measurement
    found: dict[str, Any] = {
        "status": run.status if run else "not measured",
        "reason": run.reason if run else "",
        "created": report.created,
        "samples": run.samples if run else 0,
    }
    for name in PERCENTILES:
        each = bound(run, name)
        found |= {f"{name}_ms": each.value, f"{name}_low_ms": each.low, f"{name}_high_ms": each.high}
    clocks = run.clocks.get("fastest_core_khz") if run else None
    return {
        **found,
        "mean_ms": run.latency_ms.mean if run and run.latency_ms else None,
        "load_ms": run.load_ms if run else None,
        "first_ms": run.first_ms if run else None,
        "throughput_per_s": run.throughput_per_s if run else None,
        "memory_peak_bytes": run.memory_peak_bytes if run else None,
        "throttled": run.thermal.throttled if run else None,
        "max_c": run.thermal.max_c if run else None,
        "clock_khz": clocks.get("median") if isinstance(clocks, dict) else None,
        "power_w": run.power.mean_w if run else None,
        "power_reason": run.power.reason if run else "",
        "energy_mj": run.energy_mj.gross if run else None,
    }


def _surroundings(report: Report) -> dict[str, Any]:
    accuracy, board = report.accuracy, report.board
    return {
        "baseline": accuracy.baseline if accuracy else None,
        "accuracy": final(accuracy)[0],
        "bytes": report.artifact.bytes,
        "file_sha256": report.artifact.sha256,
        "weights_sha256": report.model.sha256,
        "runtime": board.runtime,
        "runtime_version": board.runtime_version,
        "cpu": board.cpu,
        "emulated": board.emulated,
    }


def write(found: Sequence[dict[str, Any]], folder: Path, name: str) -> list[Path]:
    """Write ``name``.csv and, where pyarrow is installed, ``name``.parquet; returns what was written.

    Raises:
        UsageError: the folder can't be written.
    """
    paths = [folder / f"{name}.csv"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with paths[0].open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(found[0]) if found else [])
            writer.writeheader()
            writer.writerows(found)
        return paths + _parquet(found, folder / f"{name}.parquet")
    except OSError as error:
        fix = "choose another -o DIR"
        raise UsageError(f"the tables can't be written: {error.strerror}", str(folder), fix) from error


def _parquet(found: Sequence[dict[str, Any]], path: Path) -> list[Path]:
    """A column has the same type whatever is null in it, so that files of several runs can be read as one."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        return []
    kinds = {name: _kind(pa, name) for name in (found[0] if found else {})}
    schema = pa.schema([pa.field(name, kind) for name, kind in kinds.items()])
    parquet.write_table(pa.Table.from_pylist(list(found), schema=schema), path)
    return [path]


def _kind(pa: Any, name: str) -> Any:
    if name in _TEXT:
        return pa.string()
    return pa.int64() if name in _WHOLE else pa.bool_() if name in _TRUTHS else pa.float64()
