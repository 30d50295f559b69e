"""Measure one artifact on one board: push what is missing, let the agent time it, conclude."""

from __future__ import annotations

import datetime
import hashlib
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe import cache, journal, measurement, metering, paths, plugins, scenarios
from edgepipe.agent.power import ON_HOST
from edgepipe.agent.runtimes import runtime_for
from edgepipe.artifact import portable
from edgepipe.errors import BoardError, DeadlineError, EdgepipeError, GateError, LinkError, UsageError
from edgepipe.record import Measurement, ModelFacts, OpProfile, OpRow, Report
from edgepipe.schema import Artifact, Board, Manifest, Plan, RawRun, RunOptions, SelfTest

if TYPE_CHECKING:
    from edgepipe.board import BoardClient
    from edgepipe.data import Dataset
    from edgepipe.link._protocol import OnProgress
    from edgepipe.link._push import Source
    from edgepipe.progress import Progress

# Lengths follow the least sample counts of MLPerf's early stopping (confidence 0.99): 130 for p95, 662 for p99.
PROFILES = {
    "quick": Plan("quick", min_seconds=10.0, min_samples=130, deadline_seconds=600.0, idle_seconds=5.0),
    "standard": Plan(
        "standard", processes=5, min_seconds=60.0, min_samples=662, deadline_seconds=1800.0, idle_seconds=10.0
    ),
    "mlperf": Plan(
        "mlperf", processes=1, min_seconds=600.0, min_samples=1024, deadline_seconds=3600.0, idle_seconds=10.0
    ),
}


LEAST_SUSTAINED = 6.0
PROFILED = 30  # inferences over which nodes are timed


def plan(profile: str) -> Plan:
    """The plan of a profile.

    Raises:
        UsageError: no such profile.
    """
    if profile not in PROFILES:
        raise plugins.unknown("profile", profile, list(PROFILES))
    return PROFILES[profile]


def sustained(plan: Plan, seconds: float) -> Plan:
    """The plan as one process that runs ``seconds`` without a pause; 0 leaves it as it is.

    Its warm-up is short, since it would take from the burst.

    Raises:
        UsageError: too short for a burst and a settled level.
    """
    if not seconds:
        return plan
    if seconds < LEAST_SUSTAINED:
        fix = f"at least {LEAST_SUSTAINED:g} s; a board takes some 10 min to get as hot as it will"
        raise UsageError(f"{seconds:g} s are too short to see what a board keeps up", "--sustain", fix)
    return replace(
        plan,
        profile="sustain",
        processes=1,
        min_seconds=seconds,
        warmup_cap_seconds=max(plan.warmup_seconds, 2.0),
        deadline_seconds=1.3 * seconds + 300.0,
        sustain_seconds=seconds,
    )


def manifest_of(artifact: Artifact, selftest: SelfTest | None = None) -> Manifest:
    """The release a board gets for this artifact. It names the files, never a path of the host."""
    name = f"{artifact.model or 'model'}-{artifact.format}"[:64]
    return Manifest(name=name, artifact=portable(artifact), runtime=runtime_for(artifact.format), selftest=selftest)


def files_of(artifact: Artifact) -> list[Source]:
    """The artifact's files on the host, with their hashes."""
    folder = Path(artifact.path).parent
    return [(folder / file.name, file) for file in artifact.files]


def samples_blob(dataset: Dataset) -> tuple[bytes, str]:
    """The raw inputs of a data set as one npz blob, and its sha256: equal data gives equal bytes."""
    return blob({"inputs": dataset.inputs})


def blob(arrays: dict[str, Any]) -> tuple[bytes, str]:
    """Arrays by name as one npz blob, and its sha256."""
    import numpy as np

    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    return packed.getvalue(), hashlib.sha256(packed.getvalue()).hexdigest()


def measure(
    client: BoardClient,
    manifest: Manifest,
    how: Plan,
    options: RunOptions,
    inputs: str | None,
    progress: Progress,
    run: str = "",
) -> Measurement:
    """Time a pushed release on the board, active or not.

    A fault of the runtime is a result: it comes back as a failed measurement with its reason. A ``run`` with a name
    waits on the board, too, until it is told to forget it.

    Raises:
        LinkError, BusyError: nothing was measured, and the board may be asked again.
    """
    title = f"measure {manifest.name} ({how.profile}, {options.threads} threads)".replace("1 threads", "1 thread")
    try:
        with progress.task(title, "s") as task:
            raw = _timed(client, manifest, how, options, inputs, task.update, run)
    except LinkError:
        raise
    except DeadlineError as error:
        return measurement.failed("timeout", error.what, how, options)
    except BoardError as error:
        return measurement.failed("failed", f"{error.what} ({error.where})", how, options)
    return concluded(raw, how, options)


def concluded(raw: RawRun, how: Plan, options: RunOptions) -> Measurement:
    """What a run means, with its samples kept in a file."""
    found = scenarios.stated(measurement.conclude(raw, how, options), raw, how)
    return replace(found, raw=measurement.keep_raw(paths.data_home() / "raw", raw))


def _timed(
    client: BoardClient,
    manifest: Manifest,
    how: Plan,
    options: RunOptions,
    inputs: str | None,
    update: OnProgress,
    run: str = "",
) -> RawRun:
    """Time a release while its power is read, by the board itself or by this host."""
    meter = client.target.meter
    if not meter.on_host:
        return client.bench(manifest, how, options, inputs, update, meter.name, meter.rail, run)
    with metering.Watch(meter) as watch:
        before = metering.offset(client.clock)
        plan = how if watch.reads else replace(how, idle_seconds=0.0)
        raw = client.bench(manifest, plan, options, inputs, update, ON_HOST, "", run)
        try:
            after = metering.offset(client.clock)
        except LinkError:  # what was measured is whole; the clocks were held against each other once
            after = before
    return watch.into(raw, before, after)


def profile_ops(
    client: BoardClient, manifest: Manifest, options: RunOptions, inputs: str | None, progress: Progress
) -> OpProfile:
    """Where the time goes, node by node, in a run of its own. What goes wrong is its reason, and no error."""
    try:
        with progress.task(f"profile {manifest.name}", "s"):
            found = client.profile(manifest, PROFILED, options, inputs).ops
    except LinkError:
        raise
    except EdgepipeError as error:
        return OpProfile(PROFILED, [], error.what)
    total = sum(row.total_us or 0.0 for row in found)
    rows = [
        OpRow(
            row.name,
            row.op,
            row.calls,
            row.total_us,
            None if row.total_us is None else row.total_us / max(row.calls, 1),
            None if row.total_us is None or not total else row.total_us / total,
            row.precision,
            row.provider,
        )
        for row in found
    ]
    timed = any(row.total_us is not None for row in found)
    return OpProfile(PROFILED, rows, "" if timed else f"{manifest.runtime} hands no times of single nodes out")


def check_runtimes(board: Board, formats: list[str], target: str) -> None:
    """Make sure the board can run every format before any work is done.

    Raises:
        BoardError: a runtime is missing; says how to install it.
    """
    have = {runtime.name: runtime for runtime in board.runtimes}
    for format_name in formats:
        name = runtime_for(format_name)
        runtime = have.get(name)
        if runtime is None or runtime.version is None:
            reason = f" ({runtime.reason})" if runtime and runtime.reason else ""
            raise BoardError(
                f"the board has no {name} to run {format_name} with{reason}",
                f"target {target}",
                f"edgepipe provision --target {target} --runtime {name}",
            )


def describe(board: Board, target: str, runtime: str) -> Board:
    """The board's facts as one report shows them: with the runtime used and the target's name."""
    version = next((r.version for r in board.runtimes if r.name == runtime), None) or ""
    return replace(board, name=board.hostname or target, target=target, runtime=runtime, runtime_version=version)


@dataclass(frozen=True)
class LatencyGate:
    """A limit such as ``p90=30ms``."""

    percentile: str
    limit_ms: float

    def check(self, result: Measurement, where: str) -> None:
        """Hold a measurement against the limit: the upper bound of the interval must lie below it.

        Raises:
            GateError: it is slower, or it could not be measured.
        """
        bound = getattr(result.latency_ms, self.percentile, None)
        if bound is None or bound.value is None:
            reason = (bound.reason if bound else "") or result.reason or "it was not measured"
            raise GateError(f"{self.percentile} is not known: {reason}", where, "measure longer: --profile standard")
        worst = bound.high if bound.high is not None else bound.value
        if worst > self.limit_ms:
            what = (
                f"{self.percentile} is {bound.value:.3g} ms (up to {worst:.3g}), over the {self.limit_ms:g} ms allowed"
            )
            raise GateError(what, where, "a faster recipe or format, more --threads, or a larger --max-latency")


def latency_gate(text: str) -> LatencyGate | None:
    """Read ``p90=30ms``; an empty text is no gate.

    Raises:
        UsageError: not of that form.
    """
    if not text:
        return None
    percentile, _, limit = text.partition("=")
    number = limit.removesuffix("ms").strip()
    if percentile not in {"p50", "p90", "p95", "p99"} or not number.replace(".", "", 1).isdigit():
        raise UsageError(f"not a latency limit: {text}", "--max-latency", "write it as --max-latency p90=30ms")
    return LatencyGate(percentile, float(number))


def versions() -> dict[str, str | None]:
    """Versions of edgepipe, Python and the libraries a figure depends on; null where one is not installed."""
    import platform

    from edgepipe import __version__

    names = {
        "torch": "torch", "onnx": "onnx", "onnxruntime": "onnxruntime", "tflite": "ai-edge-litert",
        "openvino": "openvino", "nncf": "nncf", "litert_torch": "litert-torch",
        "ai_edge_quantizer": "ai-edge-quantizer", "tensorflow": "tensorflow", "numpy": "numpy", "paramiko": "paramiko",
    }  # fmt: skip
    found = cache.versions(tuple(names.values()))
    own = {"edgepipe": __version__, "python": platform.python_version()}
    return {**own, **{key: found[package] for key, package in names.items()}}


def blank_report(facts: ModelFacts, artifact: Artifact, seen: Board, target: str, manifest: Manifest) -> Report:
    """The report of a run that is still to come, with the id it will have."""
    return Report(
        id=journal.new_id(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        model=facts,
        recipe=artifact.recipe,
        steps=[],
        artifact=artifact,
        accuracy=None,
        parity=[],
        board=describe(seen, target, manifest.runtime),
        release=None,
        measurement=None,
        versions=versions(),
    )


def facts_of(artifact: Artifact) -> ModelFacts:
    """What can be said of the model where only its file is known."""
    reason = "only the file is known, not the model it came from"
    return ModelFacts(artifact.model or Path(artifact.path).stem, "", artifact.parent_sha256, None, None, reason)


def owner() -> str:
    """Who asks, as the board's lock shows it: user@host."""
    import getpass
    import socket

    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError) as error:  # no passwd entry for this uid
        raise EdgepipeError(f"who are you? {error}", "this user", "set USER") from None
