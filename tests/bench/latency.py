"""The agent's figures against those of a bare loop and of the runtimes' own tools, on the same file."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from edgepipe import bench, board, data, export, model, targets
from edgepipe.agent.preprocess import prepare
from edgepipe.artifact import ExportOptions
from edgepipe.progress import Silent
from edgepipe.schema import Plan, RunOptions
from tests.bench.figure import Figure, at_most, missing, within

# A batch makes a call long enough for a share of it to mean something: a Python binding alone costs some 10 to 30 us.
ROUNDS, SECONDS, BATCH = 9, 1.0, 32
PLAN = Plan("quick", processes=1, min_seconds=SECONDS, min_samples=130)
BARE = """
import sys, time, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = 1, 1
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
    """Median latency of the agent over that of a bare Python loop (ORT) and of benchmark_app (OpenVINO)."""
    source = model.load("fashion-resnet8")
    sample = data.evaluation(source, "shipped")
    assert sample is not None
    made = {
        name: export.make(source, "none", name, ExportOptions(batch=BATCH), Silent()).artifact
        for name in ("onnx", "openvino")
    }
    feed = folder / "feed.npy"
    import numpy as np

    np.save(feed, prepare(sample.inputs[:BATCH], made["onnx"].preprocessing, sample.layout))
    found = []
    with board.connect(targets.load("local"), bench.owner(), Silent()) as client:
        content, inputs = bench.samples_blob(sample)
        overheads: list[float] = []

        def agent(format_name: str) -> float:
            artifact = made[format_name]
            client.push([*bench.files_of(artifact), (content, inputs)])
            raw = client.bench(bench.manifest_of(artifact), PLAN, RunOptions(threads=1, batch=BATCH), inputs)
            if raw.timer_overhead_ns is not None:
                overheads.append(raw.timer_overhead_ns)
            return statistics.median(raw.processes[0].samples_ns)

        def bare() -> float:
            command = [sys.executable, "-c", BARE, made["onnx"].path, str(feed), str(SECONDS)]
            return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

        found.append(_agree("agent / bare Python loop, ONNX Runtime", lambda: agent("onnx"), bare, 0.01))
        found.append(_openvino(made["openvino"].path, lambda: agent("openvino")))
        found.append(at_most("timer overhead, null runtime", statistics.median(overheads) / 1e3, 20, "us"))
    return found


def _openvino(path: str, agent: Callable[[], float]) -> Figure:
    name = "agent / benchmark_app, OpenVINO"
    program = shutil.which("benchmark_app", path=str(Path(sys.executable).parent))
    if not program:
        return missing(name, "the openvino wheel has no benchmark_app here")

    def native() -> float:
        flags = [
            "-d",
            "CPU",
            "-hint",
            "none",
            "-nireq",
            "1",
            "-nstreams",
            "1",
            "-nthreads",
            "1",
            "-t",
            str(int(SECONDS)),
        ]
        done = subprocess.run(
            [program, "-m", path, *flags, "-api", "sync"], capture_output=True, text=True, check=False
        )
        median = re.search(r"Median:\s+([0-9.]+) (us|ms)", done.stdout)
        assert median, done.stdout[-500:] + done.stderr[-500:]
        return float(median[1]) * {"us": 1e3, "ms": 1e6}[median[2]]

    return _agree(name, agent, native, 0.02)


def _agree(name: str, ours: Callable[[], float], theirs: Callable[[], float], share: float) -> Figure:
    """Compare the best medians of interleaved rounds: other work on the machine only ever makes a round slower."""
    pairs = [(ours(), theirs()) for _ in range(ROUNDS)]
    best = min(a for a, _ in pairs), min(b for _, b in pairs)
    return within(name, best[0] / best[1], share, f"({best[0] / 1e6:.3f} / {best[1] / 1e6:.3f} ms)")
