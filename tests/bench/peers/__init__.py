"""int8 by edgepipe against other tools' defaults: same model, same 128 calibration images, same run.

Each tool works in a virtual environment of its own (see environments.py); all files are then scored and timed by the
runtimes of this environment. A file is held against those for the same runtime: a board has one.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from edgepipe import codec, export, verify
from edgepipe.errors import EdgepipeError
from edgepipe.schema import Artifact
from tests.bench.figure import Figure, at_most, missing
from tests.bench.peers import environments, subjects
from tests.bench.peers.environments import Environment, MissingError
from tests.bench.peers.subjects import Subject
from tests.bench.peers.table import Row, dominated_by, fastest, text

ROUNDS = 3  # of making each file; the tools take turns
DEADLINE, THREADS = 1800, 1
MODELS = (*subjects.SHIPPED, "efficientnet-lite0")
_WORKERS = Path(__file__).parent / "workers"


@dataclass(frozen=True)
class Tool:
    """A tool that quantises one format; ``environment`` is None for edgepipe itself, ``source`` the format it reads."""

    name: str
    script: str
    format: str
    source: str
    environment: Environment | None


TOOLS = (
    Tool("edgepipe", "run_edgepipe.py", "onnx", "onnx", None),
    Tool("olive 0.13", "run_olive.py", "onnx", "onnx", environments.OLIVE),
    Tool("nncf 3.4", "run_nncf_onnx.py", "onnx", "onnx", environments.NNCF),
    Tool("neural-compressor 2.6", "run_neural_compressor2.py", "onnx", "onnx", environments.INC2),
    Tool("neural-compressor 3.10", "run_neural_compressor3.py", "torch", "onnx", environments.INC),
    Tool("edgepipe", "run_edgepipe.py", "openvino", "openvino", None),
    Tool("nncf 3.4", "run_nncf_openvino.py", "openvino", "openvino", environments.NNCF),
    Tool("edgepipe", "run_edgepipe.py", "tflite", "tflite", None),
    Tool("onnx2tf 2", "run_onnx2tf.py", "tflite", "onnx", environments.ONNX2TF),
)


def figures(folder: Path) -> list[Figure]:
    """Print the table of all models and tools; the figures say who is dominated, and compare time and memory."""
    models = os.environ.get("EDGEPIPE_PEERS_MODELS", ",".join(MODELS)).split(",")
    rows: list[Row] = []
    found: list[Figure] = []
    for name in models:
        try:
            subject = subjects.subject(name, folder)
        except MissingError as error:
            found.append(missing(f"int8 of {name} against peers", str(error)))
            continue
        made = list(_rows(subject, folder / name))
        print(text(made), flush=True)
        rows += made
        found += [figure for kind in ("onnx", "openvino", "tflite") for figure in _judged(name, kind, made)]
    return found


def _judged(name: str, kind: str, rows: list[Row]) -> Iterator[Figure]:
    """Whether a peer dominates edgepipe's file of one format, and the time and memory of making it."""
    same = [row for row in rows if row.format == kind]
    ours = next(row for row in same if row.ours)
    title = f"int8 {name} {kind}"
    if ours.why:
        yield Figure(title, "", ours.why, ok=False)
        return
    by = dominated_by(ours, same)
    rivals = [row.tool for row in same if not row.ours and not row.why]
    if rivals:
        yield Figure(f"{title}: dominated", "by none", f"by {', '.join(by) or 'none'} of {', '.join(rivals)}", not by)
    quickest = fastest([row for row in same if not row.why])
    if not quickest:
        yield missing(f"{title}: time of PTQ", "no peer made a file")
        return
    assert ours.seconds and quickest.seconds and ours.peak_bytes and quickest.peak_bytes
    times = f"({ours.seconds:.2f} / {quickest.seconds:.2f} s, {quickest.tool})"
    yield at_most(f"{title}: time of PTQ", ours.seconds / quickest.seconds, 1.0, "x", times)
    sizes = f"({ours.peak_bytes / 1e6:.0f} / {quickest.peak_bytes / 1e6:.0f} MB)"
    yield at_most(f"{title}: peak memory", ours.peak_bytes / quickest.peak_bytes, 1.2, "x", sizes)


def _rows(subject: Subject, folder: Path) -> Iterator[Row]:
    """Let all tools work in turns, then score and time their files."""
    answers: dict[Tool, list[dict[str, object]]] = {}
    failed: dict[Tool, str] = {}
    for number in range(ROUNDS):
        for tool in TOOLS:
            if tool in failed:
                continue
            try:
                answers.setdefault(tool, []).append(_work(tool, subject, folder / f"{number}-{TOOLS.index(tool)}"))
            except MissingError as error:
                failed[tool] = str(error)
    for kind in dict.fromkeys(tool.format for tool in TOOLS):
        tools = [tool for tool in TOOLS if tool.format == kind]
        rows = {tool: _row(tool, subject, answers.get(tool, []), failed.get(tool, "")) for tool in tools}
        files = {tool: _artifact(subject, answers[tool][-1]) for tool, row in rows.items() if not row.why}
        timed = _latencies(list(files.values()), folder / f"{kind}-timing")
        for tool, row in rows.items():
            at = list(files).index(tool) if tool in files else None
            yield row if at is None else replace(row, latency_ms=timed[at])


def _work(tool: Tool, subject: Subject, folder: Path) -> dict[str, object]:
    """One run of a tool's worker.

    Raises:
        MissingError: its environment can't be had, or it failed.
    """
    python = tool.environment.make() if tool.environment else Path(sys.executable)
    folder.mkdir(parents=True)
    job = {
        "model": subject.floats[tool.source].path,
        "network": str(subject.network),
        "calibration": str(subject.calibration),
        "input": subject.floats["onnx"].inputs[0].name,
        "target": str(folder / "out"),
        "result": str(folder / "result.json"),
    }
    (folder / "job.json").write_text(json.dumps(job))
    command = [str(python), str(_WORKERS / tool.script), str(folder / "job.json")]
    keep = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON") or not tool.environment}
    quiet = {
        "NNCF_CI": "1",
        "CI": "true",
        "OLIVE_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
    }
    root = {} if tool.environment else {"PYTHONPATH": str(Path(__file__).parents[3])}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE,
            cwd=folder,
            env={**keep, **quiet, **root},
        )
    except subprocess.TimeoutExpired:
        raise MissingError(f"gave no file in {DEADLINE} s") from None
    (folder / "log").write_text(done.stdout + done.stderr)
    if not (folder / "result.json").is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise MissingError(f"failed: {lines[-1].strip()[:160] if lines else f'code {done.returncode}'}")
    answer: dict[str, object] = json.loads((folder / "result.json").read_text())
    return answer


def _row(tool: Tool, subject: Subject, answers: list[dict[str, object]], why: str) -> Row:
    row = Row(subject.name, tool.format, tool.name, why=why)
    if why:
        return row
    seconds = statistics.median(float(str(answer["seconds"])) for answer in answers)
    row = replace(row, seconds=seconds, peak_bytes=max(int(str(answer["peak_bytes"])) for answer in answers))
    if not answers[-1]["file"]:
        return replace(row, why="gives no file that a runtime loads")
    try:
        made = _artifact(subject, answers[-1])
        outputs = verify.outputs_of(made, subject.evaluation)
    except EdgepipeError as error:
        return replace(row, why=f"its file does not run: {error.what[:120]}")
    assert subject.evaluation.labels is not None
    score = float(
        (outputs[0].reshape(len(subject.evaluation.labels), -1).argmax(1) == subject.evaluation.labels).mean()
    )
    return replace(row, score=score, bytes=made.bytes)


def _artifact(subject: Subject, answer: dict[str, object]) -> Artifact:
    return export.artifact_of_file(Path(str(answer["file"])), subject.model)


def _latencies(files: list[Artifact], folder: Path) -> list[float]:
    """The median latency of each file in ms, all of one format, measured in turns."""
    if not files:
        return []
    folder.mkdir(parents=True)
    job = {
        "artifacts": [codec.to_dict(file) for file in files],
        "threads": THREADS,
        "result": str(folder / "result.json"),
    }
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "tests.bench.peers.timing", str(folder / "job.json")]
    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE, cwd=Path(__file__).parents[3])
    return [value / 1e6 for value in json.loads((folder / "result.json").read_text())]


__all__ = ["MODELS", "TOOLS", "figures"]
