"""What the agent has a child process do: run samples, check a self-test, measure."""

from __future__ import annotations

import dataclasses
import os
import shutil
import statistics
import tempfile
import time
from typing import Any, Callable, Dict, List, Optional

from edgepipe.agent import cooling, power, sites, state, tuning, worker
from edgepipe.agent.releases import Releases
from edgepipe.agent.text import clean
from edgepipe.codec import from_dict, to_dict
from edgepipe.errors import BoardError, DeadlineError, IntegrityError
from edgepipe.schema import Artifact, Caution, Executed, Manifest, Plan, ProcessSamples, RawRun, RunOptions, Window

# Samples kept of one run: 16 MB on the board, and the answer stays well below the channel's 64 MiB.
MOST_SAMPLES = 2_000_000
MOST_OPS = 4000
# Part of the deadline a child may sample for; the rest is for loading, describing and leaving.
_SAMPLING_SHARE = 0.9
_CUT_SHORT = Caution("BoardError", "the run ended early: the board, its agent or the link to the host failed")


class Jobs:
    """Runs children for releases of a store; ``cancelled`` and ``on_progress`` are passed to each of them."""

    def __init__(
        self, releases: Releases, cancelled: Callable[[], bool], on_progress: worker.Progress, sysfs_root: str = "/"
    ) -> None:
        self._releases, self._store = releases, releases.store
        self._cancelled, self._on_progress = cancelled, on_progress
        self._root = sysfs_root

    def infer(self, manifest: Manifest, inputs: str, options: RunOptions, deadline: float) -> Dict[str, Any]:
        """Run the samples of the blob ``inputs``; the outputs go to the spool, their sha256 is in the result."""
        with _Scratch(self._store.path("tmp")) as scratch:
            outputs = os.path.join(scratch, "outputs.npz")
            job = self._job("infer", manifest, options, scratch, inputs=self._store.verified(inputs), outputs=outputs)
            done = self._run(job, deadline)
            return {
                "outputs": self._store.spool(outputs),
                "samples": done["samples"],
                "seconds": done["seconds"],
                "precision_executed": done["precision"],
                "provider": done["provider"],
                "runtime_version": done["runtime_version"],
                "executed": done["counted"],
            }

    def profile(
        self, manifest: Manifest, runs: int, options: RunOptions, inputs: Optional[str], deadline: float
    ) -> List[Dict[str, Any]]:
        """Time each node of a staged release, in a child that measures nothing else: rows of `OpTime`."""
        with _Scratch(self._store.path("tmp")) as scratch:
            given = self._store.verified(inputs) if inputs else None
            ops = self._run(self._job("profile", manifest, options, scratch, inputs=given, runs=runs), deadline)["ops"]
        named = [dict(row, name=clean(row["name"], 200), op=clean(row["op"], 100)) for row in ops]
        return sorted(named, key=lambda row: -(row["total_us"] or 0.0))[:MOST_OPS]

    def try_import(self, runtime: str, deadline: float) -> str:
        """Import a runtime in a child, and return the version it says it has.

        Raises:
            KilledError: that killed the child. BoardError: it can't be imported. DeadlineError: it takes too long.
        """
        with _Scratch(self._store.path("tmp")) as scratch:
            return str(self._run({"kind": "import", "runtime": runtime, "scratch": scratch}, deadline)["version"])

    def selftest(self, manifest: Manifest, deadline: float) -> None:
        """Run the golden inputs of a staged release.

        Raises:
            IntegrityError: an output differs by more than the tolerance, or has another shape, or is not finite.
        """
        test = manifest.selftest
        assert test is not None
        with _Scratch(self._store.path("tmp")) as scratch:
            paths = {"inputs": self._store.blob(test.inputs), "golden": self._store.blob(test.outputs)}
            worst = self._run(self._job("check", manifest, RunOptions(), scratch, **paths), deadline)["max_abs"]
        if worst is None or worst > test.atol:
            gap = (
                f"the outputs differ by {worst:g}"
                if worst is not None
                else "the outputs differ in shape or are not finite"
            )
            raise IntegrityError(
                f"self-test failed on the board: {gap}, allowed is {test.atol:g}",
                f"release {manifest.name}",
                "the old release stays active; run verify, or try another format or recipe",
            )

    def bench(
        self,
        manifest: Manifest,
        plan: Plan,
        options: RunOptions,
        inputs: Optional[str],
        watch: power.Watch,
        keep: Callable[[RawRun], None] = lambda _: None,
    ) -> RawRun:
        """Measure a staged release in several processes, one after the other, while ``watch`` reads a meter.

        A process that fails ends the run; what was measured before is kept and the failure stands in ``failures``.
        ``keep`` is called with the run so far after each process, and with the whole.

        Raises:
            EdgepipeError: the very first process failed, so there is nothing to keep.
        """
        cooled = None
        if plan.cool_to_c is not None:
            cooled = cooling.cool(plan.cool_to_c, plan.cool_seconds, self._root, self._cancelled, self._on_progress)
        with tuning.Tuned(self._store.root, self._root, plan.governor) as tuned:
            raw = self._measured(manifest, plan, options, inputs, watch, keep)
        raw = dataclasses.replace(raw, cooling=cooled, cautions=tuned.cautions)
        keep(raw)
        return raw

    def _measured(
        self,
        manifest: Manifest,
        plan: Plan,
        options: RunOptions,
        inputs: Optional[str],
        watch: power.Watch,
        keep: Callable[[RawRun], None],
    ) -> RawRun:
        share = _share(plan)
        done: List[Dict[str, Any]] = []
        failures: List[Caution] = []
        sampler = state.Sampler(self._root)
        with watch, sampler as states:
            idle = watch.rest(plan.idle_seconds, sampler.began, self._cancelled, self._on_progress)
            end = time.monotonic() + plan.deadline_seconds
            for number in range(max(1, plan.processes)):
                left = (end - time.monotonic()) / (max(1, plan.processes) - number)
                try:
                    done.append(self._bench_once(manifest, share, options, inputs, left, number))
                    keep(self._raw(manifest, done, list(states), [*failures, _CUT_SHORT], sampler.began))
                except (BoardError, DeadlineError) as error:
                    if not done:
                        raise
                    failures.append(Caution(code=type(error).__name__, text=error.what, hint=error.fix))
                    break
        failures += [_late(number, plan) for number, each in enumerate(done, 1) if each["late"]]
        raw = self._raw(manifest, done, states, failures, sampler.began)
        return dataclasses.replace(raw, power=watch.power, power_samples=watch.samples(sampler.began), idle=idle)

    def _bench_once(
        self, manifest: Manifest, plan: Plan, options: RunOptions, inputs: Optional[str], seconds: float, number: int
    ) -> Dict[str, Any]:
        if seconds <= 0:
            raise DeadlineError(
                "no time was left for another process", "bench", "allow more time, or a shorter profile"
            )
        with _Scratch(self._store.path("tmp")) as scratch:
            job = self._job(
                "bench",
                manifest,
                options,
                scratch,
                inputs=self._store.verified(inputs) if inputs else None,
                plan=to_dict(plan),
                stop_at=time.perf_counter_ns() + int(seconds * _SAMPLING_SHARE * 1e9),
                most=MOST_SAMPLES // max(1, plan.processes),
                describe=number == 0,
            )
            return self._run(job, seconds)

    def _raw(
        self, manifest: Manifest, done: List[Dict[str, Any]], states: List[Any], failures: List[Caution], began: float
    ) -> RawRun:
        executed = done[0]["executed"]
        return RawRun(
            runtime=manifest.runtime,
            runtime_version=executed["runtime_version"],
            precision_executed=executed["precision"],
            provider=executed["provider"],
            processes=[_process(each, began) for each in done],
            states=states,
            timer_overhead_ns=statistics.median(each["timer_overhead_ns"] for each in done),
            failures=failures,
            began=began,
            executed=from_dict(Executed, executed["counted"]),
        )

    def _job(self, kind: str, manifest: Manifest, options: RunOptions, scratch: str, **more: Any) -> Dict[str, Any]:
        job = make(kind, manifest.artifact, manifest.runtime, self._releases.model(manifest), options, scratch)
        job.update(more)
        return job

    def _run(self, job: Dict[str, Any], deadline: float) -> Dict[str, Any]:
        return worker.run(
            dict(job, sysfs_root=self._root),
            site=sites.path(self._store, job["runtime"]),
            deadline=deadline,
            cancelled=self._cancelled,
            on_progress=self._on_progress,
        )


def make(kind: str, artifact: Artifact, runtime: str, model: str, options: RunOptions, scratch: str) -> Dict[str, Any]:
    """The part that all jobs for child.py have in common."""
    return {
        "kind": kind,
        "runtime": runtime,
        "model": model,
        "artifact": to_dict(artifact),
        "options": to_dict(options),
        "scratch": scratch,
    }


def _process(done: Dict[str, Any], began: float) -> ProcessSamples:
    """What one child measured; perf_counter and the monotonic clock are one and the same on Linux, in all processes."""
    start, end = (round(ns / 1e9 - began, 6) for ns in done["timed_ns"])
    return dataclasses.replace(from_dict(ProcessSamples, done["process"]), timed=Window(start, end))


def _share(plan: Plan) -> Plan:
    """One process's share of the run."""
    count = max(1, plan.processes)
    return dataclasses.replace(plan, min_seconds=plan.min_seconds / count, min_samples=-(-plan.min_samples // count))


def _late(number: int, plan: Plan) -> Caution:
    return Caution(
        code="DeadlineError",
        text=f"process {number} was stopped early: the deadline of {plan.deadline_seconds:g} s left it no more time",
        hint="allow more time, or a shorter profile",
    )


class _Scratch:
    """A folder for one child, gone afterwards."""

    def __init__(self, parent: str) -> None:
        self._path = tempfile.mkdtemp(dir=parent)

    def __enter__(self) -> str:
        return self._path

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
