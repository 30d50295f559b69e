"""Latency of several files of one format, in turns in one process: ``python -m tests.bench.peers.timing JOB``."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

ROUNDS, SECONDS, WARM = 15, 0.15, 0.3


def main() -> None:
    """Time each artifact of the job: {"artifacts": [...], "result": path, "threads": n}."""
    import numpy as np

    from edgepipe.agent import runtimes
    from edgepipe.codec import from_dict
    from edgepipe.schema import Artifact, RunOptions

    job = json.loads(Path(sys.argv[1]).read_text())
    artifacts = [from_dict(Artifact, item, "artifact") for item in job["artifacts"]]
    runtime = runtimes.find(runtimes.runtime_for(artifacts[0].format))
    options = RunOptions(threads=job["threads"], batch=1)
    random = np.random.default_rng(0)
    calls = []
    for artifact in artifacts:
        session = runtime.load(artifact.path, options, artifact)
        feeds = [
            random.normal(size=[max(size, 1) for size in spec.shape]).astype(spec.dtype) for spec in artifact.inputs
        ]
        calls.append(session.prepare(feeds))
    for call in calls:
        _median(call, WARM)
    rounds = [[_median(call, SECONDS) for call in calls] for _ in range(ROUNDS)]
    Path(job["result"]).write_text(json.dumps([statistics.median(column) for column in zip(*rounds, strict=True)]))


def _median(call, seconds: float) -> float:
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
