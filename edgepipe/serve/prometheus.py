"""The state in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgepipe.serve.state import State


def text(state: State) -> str:
    """Records read, the trials and boards of the latest run, and the last p50 of each candidate on each board."""
    runs, boards = state.runs()[:1], state.boards()
    lines = _metric("edgepipe_records_total", "counter", "Records read from the journal.", [({}, state.records)])
    lines += _metric(
        "edgepipe_run_trials", "gauge", "Trials of the latest run by how they ended.",
        [({"run": run["name"], "status": status}, count) for run in runs for status, count in run["statuses"].items()],
    )  # fmt: skip
    lines += _metric(
        "edgepipe_run_trials_planned", "gauge", "Trials the latest run has in all.",
        [({"run": run["name"]}, run["trials"]) for run in runs],
    )  # fmt: skip
    lines += _metric(
        "edgepipe_boards", "gauge", "Boards of the latest run by site and state.",
        [({"site": site, "state": how}, count)
         for (site, how), count in Counter((each["site"], each["state"]) for each in boards).items()],
    )  # fmt: skip
    names = ("board", "model", "recipe", "format")
    lines += _metric(
        "edgepipe_latency_p50_seconds", "gauge", "The last median time of one inference.",
        [(dict(zip(names, key, strict=True)), point.p50 / 1000) for key, point in state.latest() if point.p50],
    )  # fmt: skip
    return "\n".join(lines) + "\n"


def _metric(name: str, kind: str, told: str, samples: Iterable[tuple[dict[str, str], float]]) -> list[str]:
    lines = [f"# HELP {name} {told}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        inner = ",".join(f'{key}="{_escaped(each)}"' for key, each in labels.items())
        lines.append(f"{name}{{{inner}}} {value}" if inner else f"{name} {value}")
    return lines


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
