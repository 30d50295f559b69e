"""The agent's figures against those of the runtimes' own tools, on the same file, with one thread and with two.

ONNX Runtime's onnxruntime_perf_test is in no wheel: a bare Python loop stands for it.
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from edgepipe import bench, board, data, export, model, targets
from edgepipe.agent.preprocess import prepare
from edgepipe.artifact import ExportOptions
from edgepipe.progress import Silent
from edgepipe.schema import Artifact, Plan, RunOptions
from tests.bench.figure import Figure, at_most, missing, within

# A batch makes a call long enough for a share of it to mean something: a Python binding alone costs some 10 to 30 us.
ROUNDS, SECONDS, BATCH, THREADS = 9, 1.0, 32, (1, 2)
PLAN = Plan("quick", processes=1, min_seconds=SECONDS, min_samples=130)
BARE = """
import sys, time, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = int(sys.argv[4]), 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feed = {session.get_inputs()[0].name: numpy.load(sys.argv[2])}
def loop(seconds):
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter_ns()
        session.run(None, feed)
        times.append(time.perf_counter_ns() - start)
    return sorted(times)
loop(1.0)
times = loop(float(sys.argv[3]))
print(times[len(times) // 2])
"""


def figures(folder: Path) -> list[Figure]:
    """The agent's median latency over that of each runtime's own tool, for each count of threads; the timer's cost."""
    source = model.load("fashion-resnet8")
    sample = data.evaluation(source, "shipped")
    assert sample is not None
    options = ExportOptions(batch=BATCH)
    made = {name: export.make(source, "none", name, options, Silent()).artifact for name in NATIVE}
    feed = folder / "feed.npy"
    import numpy as np

    np.save(feed, prepare(sample.inputs[:BATCH], made["onnx"].preprocessing, sample.layout))
    found: list[Figure] = []
    overheads: list[float] = []
    with board.connect(targets.load("local"), bench.owner(), Silent()) as client:
        content, inputs = bench.samples_blob(sample)

        def agent(artifact: Artifact, threads: int) -> float:
            client.push([*bench.files_of(artifact), (content, inputs)])
            options = RunOptions(threads=threads, batch=BATCH)
            raw = client.bench(bench.manifest_of(artifact), PLAN, options, inputs)
            if raw.timer_overhead_ns is not None:
                overheads.append(raw.timer_overhead_ns)
            return statistics.median(raw.processes[0].samples_ns)

        for name, artifact in made.items():
            tool, share, native = NATIVE[name]
            for threads in THREADS:
                title = f"agent / {tool}, {threads} thread{'s' if threads > 1 else ''}"
                try:
                    ours, theirs = partial(agent, artifact, threads), partial(native, artifact.path, feed, threads)
                    found.append(_agree(title, ours, theirs, share))
                except FileNotFoundError as error:
                    found.append(missing(title, f"there is no {error} here"))
    return [*found, at_most("timer overhead, null runtime", statistics.median(overheads) / 1e3, 20, "us")]


def _bare(path: str, feed: Path, threads: int) -> float:
    """Median ns of a bare loop around ONNX Runtime's Python binding."""
    command = [sys.executable, "-c", BARE, path, str(feed), str(SECONDS), str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _benchmark_app(path: str, _feed: Path, threads: int) -> float:
    """Median ns of OpenVINO's own tool; latency, not throughput, is what it is told to measure."""
    flags = ["-d", "CPU", "-hint", "none", "-nireq", "1", "-nstreams", "1", "-api", "sync"]
    output = _tool("benchmark_app", "-m", path, *flags, "-nthreads", str(threads), "-t", str(int(SECONDS)))
    median = re.search(r"Median:\s+([0-9.]+) (us|ms)", output)
    assert median, output[-500:]
    return float(median[1]) * {"us": 1e3, "ms": 1e6}[median[2]]


def _litert_benchmark(path: str, feed: Path, threads: int) -> float:
    """Median ns of LiteRT's own tool."""
    result = feed.with_name("litert.json")
    runs = ("--num_runs", "150", "--warmup_runs", "50")
    _tool("litert-benchmark", "--model", path, *runs, "--num_threads", str(threads), "--result_json", str(result))
    return float(json.loads(result.read_text())["latency"]["median_ms"]) * 1e6


def _tool(name: str, *flags: str) -> str:
    """What a runtime's own tool prints.

    Raises:
        FileNotFoundError: its wheel has none here.
    """
    program = shutil.which(name, path=str(Path(sys.executable).parent))
    if not program:
        raise FileNotFoundError(name)
    return subprocess.run([program, *flags], check=True, capture_output=True, text=True).stdout


NATIVE: dict[str, tuple[str, float, Callable[[str, Path, int], float]]] = {
    "onnx": ("bare Python loop, ONNX Runtime", 0.01, _bare),
    "tflite": ("litert-benchmark, LiteRT", 0.02, _litert_benchmark),
    "openvino": ("benchmark_app, OpenVINO", 0.02, _benchmark_app),
}


def _agree(name: str, ours: Callable[[], float], theirs: Callable[[], float], share: float) -> Figure:
    """Compare the best medians of interleaved rounds: other work on the machine only ever makes a round slower."""
    pairs = [(ours(), theirs()) for _ in range(ROUNDS)]
    best = min(a for a, _ in pairs), min(b for _, b in pairs)
    return within(name, best[0] / best[1], share, f"({best[0] / 1e6:.3f} / {best[1] / 1e6:.3f} ms)")
