"""MLPerf's scenarios on the agent against the real LoadGen (mlcommons-loadgen), which asks the same session.

LoadGen has wheels for x86-64 alone, so it can't run on Arm boards: the agent asks by the same rules, and this says
whether it comes to the same figures. A call is of many samples, so that it is long beside LoadGen's own cost.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from edgepipe import bench, board, export, model, scenarios, targets
from edgepipe.agent.scenarios import MULTI, MULTI_STREAM, OFFLINE, SERVER, SINGLE
from edgepipe.artifact import ExportOptions
from edgepipe.codec import to_dict
from edgepipe.progress import Silent
from edgepipe.schema import Plan, RunOptions
from tests.bench.figure import Figure, missing, within

ROUNDS, SECONDS = 4, 3.0
BATCHES = {SINGLE: 24, MULTI: MULTI_STREAM, OFFLINE: 24, SERVER: 24}  # samples of a call
LONG = 8.0  # s of a server: its figure hangs on when queries happen to come
LOAD = 0.4  # of a server, as a share of what it can do
NAMES = {SINGLE: "SingleStream", MULTI: "MultiStream", OFFLINE: "Offline", SERVER: "Server"}
# What LoadGen's summary calls the figure, which percentile that is (0: a throughput), and how near it must be. What
# waits for others amplifies any difference of the calls: a server may be further off.
ASKED = {
    SINGLE: (r"^90\.0th percentile latency \(ns\)\s*: (\d+)", 0.90, 0.05),
    MULTI: (r"^50\.00 percentile latency \(ns\)\s*: (\d+)", 0.50, 0.05),
    OFFLINE: (r"^Samples per second: ([\d.]+)", 0.0, 0.05),
    SERVER: (r"^50\.00 percentile latency \(ns\)\s*: (\d+)", 0.50, 0.10),
}
LOADGEN = """
import json, sys
import mlperf_loadgen as lg
from edgepipe.agent import feeds, runtimes
from edgepipe.codec import from_dict
from edgepipe.schema import Artifact, RunOptions
name, at, out, seconds, rate, query = sys.argv[1:]
told = json.load(open(at))
artifact, options = from_dict(Artifact, told["artifact"]), from_dict(RunOptions, told["options"])
session = runtimes.find(told["runtime"]).load(artifact.path, options, artifact)
once = session.prepare(feeds.one_batch(artifact, None, options.batch))
for _ in range(200):
    once()
def issue(samples):
    for at in range(0, len(samples), int(query)):
        once()
        lg.QuerySamplesComplete([lg.QuerySampleResponse(one.id, 0, 0) for one in samples[at : at + int(query)]])
settings = lg.TestSettings()
settings.scenario, settings.mode = getattr(lg.TestScenario, name), lg.TestMode.PerformanceOnly
settings.min_duration_ms, settings.min_query_count = int(float(seconds) * 1000), 1
settings.multi_stream_samples_per_query = 8
settings.offline_expected_qps = settings.server_target_qps = float(rate)
settings.server_target_latency_ns = 10**10
output, log = lg.LogOutputSettings(), lg.LogSettings()
output.outdir, output.copy_summary_to_stdout, log.enable_trace = out, False, False
log.log_output = output
tested, library = lg.ConstructSUT(issue, lambda: None), lg.ConstructQSL(8, 8, lambda _: None, lambda _: None)
lg.StartTestWithLogSettings(tested, library, settings, log)
"""


def figures(folder: Path) -> list[Figure]:
    """The agent's figure over LoadGen's, for each scenario."""
    titles = {name: f"agent / LoadGen, {name}" for name in NAMES}
    if not find_spec("mlperf_loadgen"):
        return [missing(title, "mlcommons-loadgen is not installed, or has no wheel here") for title in titles.values()]
    source = model.load("fashion-resnet8")
    artifact = export.make(source, "none", "onnx", ExportOptions(dynamic={"": [0]}), Silent()).artifact
    manifest = bench.manifest_of(artifact)
    told = folder / "told.json"
    found = []
    with board.connect(targets.load("local"), bench.owner(), Silent()) as client:
        client.push(bench.files_of(artifact))

        def agent(name: str, rate: float) -> float:
            seconds = LONG if name == SERVER else SECONDS
            base = Plan("quick", processes=1, min_seconds=seconds, min_samples=64, warmup_cap_seconds=2.0)
            options = RunOptions(batch=BATCHES[name])
            plan = scenarios.plan(base, name, rate if name == SERVER else 0.0, options)
            raw = client.bench(manifest, plan, options, None, meter="null")
            asked = ASKED[name][1]
            if asked:
                return sorted(raw.processes[0].samples_ns)[int(asked * len(raw.processes[0].samples_ns))]
            result = bench.concluded(raw, plan, options)
            return result.scenario.value if result.scenario and result.scenario.value else 0.0

        pace = 1e9 / agent(SINGLE, 0.0)
        for name, title in titles.items():
            share = ASKED[name][2]
            rate = pace * LOAD if name == SERVER else pace * BATCHES[name]
            to_ask = {"artifact": to_dict(artifact), "options": to_dict(RunOptions(batch=BATCHES[name]))}
            told.write_text(json.dumps({**to_ask, "runtime": manifest.runtime}))
            pairs = [(agent(name, rate), _loadgen(name, told, folder, rate)) for _ in range(ROUNDS)]
            best = max if name == OFFLINE else min  # other work on the machine only ever makes a round slower
            ours, theirs = best(a for a, _ in pairs), best(b for _, b in pairs)
            each = statistics.median(a / b for a, b in pairs)
            found.append(within(title, ours / theirs, share, f"({ours:.4g} / {theirs:.4g}, rounds {each - 1:+.1%})"))
    return found


def _loadgen(name: str, told: Path, folder: Path, rate: float) -> float:
    """What LoadGen's own summary says, in ns or samples a second."""
    query = BATCHES[name] if name in (MULTI, OFFLINE) else 1
    seconds = LONG if name == SERVER else SECONDS
    argv = [sys.executable, "-c", LOADGEN, NAMES[name], str(told), str(folder), str(seconds), str(rate), str(query)]
    subprocess.run(argv, check=True, capture_output=True)
    found = re.search(ASKED[name][0], (folder / "mlperf_log_summary.txt").read_text(), re.MULTILINE)
    assert found, name
    return float(found[1])
