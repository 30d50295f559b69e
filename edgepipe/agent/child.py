"""The process a runtime lives in: one job in, one result out, then it ends.

The job is a JSON object on stdin: ``kind`` (bench, infer, check or import), ``runtime``, ``site``, ``model`` (path of
the main file), ``artifact``, ``options``, ``inputs`` (path of an .npz or null), ``scratch``, ``parent`` (pid), and what
the kind needs. Phases and the result go as JSON lines to the file descriptor named on the command line. Whatever the
runtime prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from typing import Any, Callable, Dict, List, Sequence

from edgepipe.agent import measure, runtimes, scenarios
from edgepipe.agent.text import clean, error_text
from edgepipe.codec import from_dict, to_dict
from edgepipe.errors import BoardError, EdgepipeError, UsageError
from edgepipe.schema import Artifact, Plan, ProcessSamples, RunOptions

Phase = Callable[[str], None]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_OOM_SCORE = "500"  # of 1000: the kernel prefers this process to the agent


def main(channel: int) -> None:
    """Read the job from stdin, do it, write the result to ``channel``, and end the process."""
    os.set_inheritable(channel, False)
    job = json.loads(sys.stdin.buffer.read().decode())

    def send(message: Dict[str, Any]) -> None:
        data = json.dumps(message, allow_nan=False).encode() + b"\n"
        while data:
            data = data[os.write(channel, data) :]

    try:
        confine(int(job["parent"]))
        if job.get("site"):
            sys.path.insert(0, job["site"])
        result = _KINDS[job["kind"]](job, lambda name: send({"phase": name}))
        send({"ok": True, "result": result})
    except EdgepipeError as error:
        send({"ok": False, "error": error.to_wire()})
    except BaseException as error:
        what = f"{job.get('runtime')} failed: {type(error).__name__}: {error_text(error)}"
        send({"ok": False, "error": BoardError(clean(what), fix=_advice(error)).to_wire()})
    # No tear-down: a runtime that crashes while it is unloaded has done its work.
    os._exit(0)


def _advice(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return "install the runtime on the board: edgepipe provision --target T"
    if isinstance(error, MemoryError):
        return "use a smaller batch or model"
    return "try another format or recipe, or run it with its optimiser off"


def confine(parent: int) -> None:
    """Leave no core file, die with the parent, and be the first to go when memory runs out."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (ImportError, OSError, AttributeError):
        pass
    if os.getppid() != parent:
        os._exit(1)
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(_OOM_SCORE)
    except OSError:
        pass


def _confined(cpus: List[int]) -> List[int]:
    """Keep this process, and all threads that a runtime starts in it, to these cores; returns those it may use.

    Raises:
        UsageError: the board has no such core, or does not let this process have it.
    """
    allowed = sorted(os.sched_getaffinity(0))
    missing = sorted(set(cpus) - set(allowed))
    if missing:
        listed = ", ".join(map(str, allowed))
        raise UsageError(f"no core {missing[0]} for this process", "--cpus", f"it may use: {listed}")
    if cpus:
        os.sched_setaffinity(0, cpus)
    return sorted(os.sched_getaffinity(0))


class _Opened:
    """A model opened by its runtime, and how long that took."""

    def __init__(self, job: Dict[str, Any], phase: Phase) -> None:
        self.artifact = from_dict(Artifact, job["artifact"])
        self.options = from_dict(RunOptions, job["options"])
        self.module = runtimes.find(job["runtime"])
        if self.artifact.format not in self.module.FORMATS:
            raise UsageError(
                f"{job['runtime']} does not run {self.artifact.format} files",
                fix=f"it runs {', '.join(self.module.FORMATS)}",
            )
        self.cpus = _confined(self.options.cpus)
        phase("import")
        self.version = self.module.version()
        phase("load")
        began = time.perf_counter_ns()
        try:
            self.session = self.module.load(job["model"], self.options, self.artifact)
        except (EdgepipeError, ImportError, MemoryError):
            raise
        except Exception as error:
            name = os.path.basename(job["model"])
            raise BoardError(
                f"{job['runtime']} {self.version} can't load {name}: {error_text(error)}",
                fix="the file may be damaged, or made for a newer runtime: deploy it again, or update the runtime",
            ) from None
        self.load_ns = time.perf_counter_ns() - began

    def executed(self) -> Dict[str, Any]:
        return dict(self.session.executed(), runtime_version=self.version)


def _bench(job: Dict[str, Any], phase: Phase) -> Dict[str, Any]:
    """Measure: cold load, first run, warm-up until steady, then the timed loop."""
    plan = from_dict(Plan, job["plan"])
    opened = _Opened(job, phase)
    feeds = _feeds(job, opened)
    once = opened.session.prepare(feeds)
    phase("first run")
    began = time.perf_counter_ns()
    once()
    first_ns = time.perf_counter_ns() - began
    phase("warm-up")
    warm = measure.warm_up(once, plan)
    phase("measure")
    bounds = {"stop_at": job["stop_at"], "most": job["most"]}
    kept: List[int] = []
    of_query, waiting = opened.options.batch, 0
    if plan.sustain_seconds:
        samples, timed_ns, kept = measure.sustained(once, plan.sustain_seconds, **bounds)
    elif plan.scenario:
        samples, timed_ns, of_query, waiting = scenarios.run(once, plan, of_query, **bounds)
    else:
        samples, timed_ns = measure.timed_window(once, plan.min_seconds, plan.min_samples, **bounds)
    _forwards(samples)
    # Stopped before its share was done, other than by the bound on samples: that is the deadline.
    late = time.perf_counter_ns() >= job["stop_at"] and len(samples) < job["most"]
    peak = measure.memory_peak_bytes()
    phase("timer")
    process = ProcessSamples(
        load_ns=opened.load_ns,
        first_ns=first_ns,
        warmup_runs=warm.runs,
        steady=warm.steady,
        memory_peak_bytes=peak,
        samples_ns=list(samples),
        batch=of_query,
        cpus=opened.cpus,
        kept=kept,
        waiting=waiting,
    )
    overhead = measure.timer_overhead_ns(runtimes.find("null").prepare_empty())
    phase("describe")
    executed = opened.executed() if job["describe"] else None
    return {
        "process": to_dict(process),
        "timed_ns": timed_ns,
        "timer_overhead_ns": overhead,
        "executed": executed,
        "late": late,
    }


def _forwards(samples: Sequence[int]) -> None:
    """Refuse times from a clock that jumps back.

    Raises:
        BoardError: a call took less than no time.
    """
    if min(samples, default=0) < 0:
        fix = "its clock source is broken (see /sys/devices/system/clocksource): no time from it means anything"
        raise BoardError("the board's clock went backwards while a call was timed", fix=fix)


def _feeds(job: Dict[str, Any], opened: _Opened) -> List[Any]:
    """One batch for each input, from the given samples or made up."""
    if not getattr(opened.module, "NEEDS_NUMPY", True):
        return []
    from edgepipe.agent import feeds

    return feeds.one_batch(opened.artifact, job.get("inputs"), opened.options.batch)


def _infer(job: Dict[str, Any], phase: Phase) -> Dict[str, Any]:
    """Run all samples of an .npz and write the outputs to ``job["outputs"]`` (.npz, keys "0", "1" ...)."""
    from edgepipe.agent import feeds

    opened = _Opened(job, phase)
    phase("run")
    began = time.perf_counter()
    outputs, samples = feeds.run_all(opened.session, opened.artifact, job["inputs"], opened.options.batch)
    seconds = time.perf_counter() - began
    feeds.save(job["outputs"], outputs)
    phase("describe")
    return dict(opened.executed(), samples=samples, seconds=seconds)


def _check(job: Dict[str, Any], phase: Phase) -> Dict[str, Any]:
    """Run the samples of a self-test and compare with the golden outputs: {"max_abs": float or null if not finite}."""
    from edgepipe.agent import feeds

    opened = _Opened(job, phase)
    phase("self-test")
    outputs, samples = feeds.run_all(opened.session, opened.artifact, job["inputs"], opened.options.batch)
    return {"max_abs": feeds.max_abs(outputs, job["golden"]), "samples": samples, "runtime_version": opened.version}


def _profile(job: Dict[str, Any], phase: Phase) -> Dict[str, Any]:
    """Time each node over ``job["runs"]`` inferences, warmed up before: {"ops": rows of OpTime}."""
    opened = _Opened(job, phase)
    once = opened.session.prepare(_feeds(job, opened))
    phase("warm-up")
    once()
    phase("profile")
    return {"ops": [to_dict(row) for row in opened.session.profile(job["runs"])]}


def _import(job: Dict[str, Any], phase: Phase) -> Dict[str, Any]:
    """Import the runtime, no more."""
    phase("import")
    return {"version": runtimes.find(job["runtime"]).version()}


_KINDS: Dict[str, Callable[[Dict[str, Any], Phase], Dict[str, Any]]] = {
    "bench": _bench,
    "infer": _infer,
    "check": _check,
    "import": _import,
    "profile": _profile,
}
