"""What each worker does around its tool; standard library and numpy only, as it runs in the tools' environments.

A worker is called with the path of a job: {"model", "calibration" (.npz of one array), "input" (its name), "target"
(an empty folder), "result" (where the answer goes)}.
"""

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

_CALLS, _ENOUGH = 5, 2.0  # of the timed call: at most so many, none after so many seconds in all
_WARM = 2  # samples of the call before the one that is timed


def samples(job):
    """The calibration samples, each with its batch of one."""
    import numpy as np

    with np.load(job["calibration"], allow_pickle=False) as arrays:
        data = arrays[job["input"]]
    return [sample[None] for sample in data[: job.get("samples")]]


def main(quantize):
    """Call ``quantize(job) -> file`` on two samples so that all is imported, then timed on all of them.

    A short call is timed several times, and the median counts: 0.2 s are easily disturbed.
    """
    job = json.loads(Path(sys.argv[1]).read_text())
    with tempfile.TemporaryDirectory() as folder:
        quantize({**job, "target": folder, "samples": _WARM})
    times = []
    while not times or (len(times) < _CALLS and sum(times) < _ENOUGH):
        shutil.rmtree(job["target"], ignore_errors=True)
        Path(job["target"]).mkdir(parents=True)
        start = time.perf_counter()
        file = quantize(job)
        times.append(time.perf_counter() - start)
    # Not getrusage: its maximum is that of the parent before this program began, if that was larger.
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    peak = int(line.split()[1]) * 1024
    answer = {"file": str(file) if file else None, "seconds": statistics.median(times), "peak_bytes": peak}
    Path(job["result"]).write_text(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # some tools crash while they are torn down
