"""The agent's figures against those of a bare loop and of the runtimes' own tools, on the same file."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from edgepipe import bench, board, data, export, model, targets
from edgepipe.agent.preprocess import prepare
from edgepipe.artifact import ExportOptions
from edgepipe.progress import Silent
from edgepipe.schema import Plan, RunOptions
from tests.bench.figure import Figure, at_most, interleaved, missing, within

ROUNDS, SECONDS = 7, 2.0
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
        name: export.make(source, "none", name, ExportOptions(), Silent()).artifact for name in ("onnx", "openvino")
    }
    feed = folder / "feed.npy"
    import numpy as np

    np.save(feed, prepare(sample.inputs[:1], made["onnx"].preprocessing, sample.layout))
    found = []
    with board.connect(targets.load("local"), bench.owner(), Silent()) as client:
        content, inputs = bench.samples_blob(sample)
        overheads: list[float] = []

        def agent(format_name: str) -> float:
            artifact = made[format_name]
            client.push([*bench.files_of(artifact), (content, inputs)])
            raw = client.bench(bench.manifest_of(artifact), PLAN, RunOptions(threads=1), inputs)
            if raw.timer_overhead_ns is not None:
                overheads.append(raw.timer_overhead_ns)
            return statistics.median(raw.processes[0].samples_ns)

        def bare() -> float:
            command = [sys.executable, "-c", BARE, made["onnx"].path, str(feed), str(SECONDS)]
            return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

        ours, theirs, ratio = interleaved(lambda: agent("onnx"), bare, ROUNDS)
        detail = f"({ours / 1e6:.4f} / {theirs / 1e6:.4f} ms)"
        found.append(within("agent / bare Python loop, ONNX Runtime", ratio, 0.01, detail))
        found.append(_openvino(made["openvino"].path, lambda: agent("openvino")))
        found.append(at_most("timer overhead, null runtime", statistics.median(overheads) / 1e3, 20, "us"))
    return found


def _openvino(path: str, agent: object) -> Figure:
    name = "agent / benchmark_app, OpenVINO"
    program = shutil.which("benchmark_app", path=str(Path(sys.executable).parent))
    if not program:
        return missing(name, "the openvino wheel has no benchmark_app here")

    def native() -> float:
        flags = ["-d", "CPU", "-hint", "latency", "-nireq", "1", "-nthreads", "1", "-t", str(int(SECONDS))]
        done = subprocess.run(
            [program, "-m", path, *flags, "-api", "sync"], capture_output=True, text=True, check=False
        )
        median = re.search(r"Median:\s+([0-9.]+) ms", done.stdout)
        assert median, done.stdout[-500:] + done.stderr[-500:]
        return float(median[1]) * 1e6

    ours, theirs, ratio = interleaved(agent, native, ROUNDS)  # type: ignore[arg-type]
    return within(name, ratio, 0.02, f"({ours / 1e6:.4f} / {theirs / 1e6:.2f} ms)")
