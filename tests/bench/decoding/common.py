"""What each worker shares; the standard library alone, as it runs in the tools' own environments.

A worker is called with a job, one JSON object: {"model", "threads", "prompt" (tokens), "new", "repeats"}. Its last line
is {"rate": tokens a second of each answer after its first token, "first_ms", "bare_bytes", "peak_bytes", "memory"}; the
last has private and mapped bytes before the model, with it loaded, and after the answers.
"""

import json
import os
import sys
from pathlib import Path


def _status(name):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) * 1024


def held():
    """The most memory this process held so far, in bytes."""
    return _status("VmHWM")


def now():
    """What it holds now: pages of its own, and pages of files, which the system takes back where it must."""
    return [_status("RssAnon"), _status("RssFile")]


def main(load, answer):
    """``load(job)`` makes what ``answer(loaded, job) -> (first ms, tokens a second)`` needs; the first one warms up."""
    job, bare, memory = json.loads(sys.argv[1]), held(), [now()]
    loaded = load(job)
    memory.append(now())
    spans = [answer(loaded, job) for _ in range(job["repeats"] + 1)][1:]
    found = {"rate": [rate for _, rate in spans], "first_ms": [first for first, _ in spans]}
    memory.append(now())
    print(json.dumps({**found, "bare_bytes": bare, "peak_bytes": held(), "memory": memory}), flush=True)
    os._exit(0)  # some runtimes crash while they are torn down
