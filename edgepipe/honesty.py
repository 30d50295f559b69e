"""What changing the network bought: sizes, zeros, multiply-accumulates and measured time against the file without it.

Pruned and sparse models are often neither smaller nor faster on the runtime at hand. So each is held against the same
recipe without its network steps, timed in turns on the same board, and the verdict says plainly what was gained.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import TYPE_CHECKING

from edgepipe import bench, board, stats, targets
from edgepipe.errors import EdgepipeError
from edgepipe.record import Bound, Payoff, Sizes, Step
from edgepipe.schema import Plan, RunOptions

if TYPE_CHECKING:
    from edgepipe.board import BoardClient
    from edgepipe.convert import Export
    from edgepipe.export import Made
    from edgepipe.progress import Progress
    from edgepipe.schema import Artifact

ROUNDS = 6
PLAN = Plan(
    "turns", processes=1, min_seconds=0.5, min_samples=64, warmup_seconds=0.3, warmup_runs=10, warmup_cap_seconds=5.0
)
NO_GAIN = "no speed-up on this runtime"
_SAME = 0.02  # a ratio closer to 1 than this is called the same: what an idle machine repeats to


def payoff(made: Made, plain: Made, runtime: str, ratio: Bound) -> Payoff:
    """The verdict on ``made`` against ``plain``, the same recipe without its network steps."""
    before, after = _sizes(plain.steps[-1]), _sizes(made.steps[-1])
    last = made.steps[-1]
    return Payoff(
        against=plain.artifact.recipe,
        runtime=runtime,
        sparsity=last.sparsity,
        weights=last.weights,
        zeros=last.zeros,
        before=before,
        after=after,
        latency_ratio=ratio,
        verdict="; ".join([_speed(ratio), *_size(before, after)]),
    )


def in_turns(
    client: BoardClient, plain: Artifact, changed: Artifact, options: RunOptions, inputs: str | None, progress: Progress
) -> Bound:
    """The time of ``changed`` over that of ``plain``, medians of short runs in turns (A B A B ...) on one board.

    ``inputs`` is the blob of samples on the board, or None. The interval is at 95 %.
    """
    pair = (plain, changed)
    manifests = [bench.manifest_of(artifact) for artifact in pair]
    client.push([file for artifact in pair for file in bench.files_of(artifact)])
    ratios = []
    with progress.task(f"{manifests[0].name} with and without, in turns", "rounds") as task:
        for done in range(ROUNDS):
            runs = [client.bench(manifest, PLAN, options, inputs) for manifest in manifests]
            first, second = (statistics.median(ns for p in run.processes for ns in p.samples_ns) for run in runs)
            ratios.append(second / first)
            task.update(done + 1, ROUNDS)
    return stats.ratio(ratios)


def weigh(exports: list[Export], target: str, progress: Progress) -> list[Export]:
    """The exports, each of a changed network with its payoff as measured on ``target``.

    A board that can't be asked leaves the ratio null, with the reason.
    """
    asked = [item for item in exports if item.plain]
    if not asked:
        return exports
    try:
        with board.connect(targets.load(target), bench.owner(), progress) as client:
            return [_weighed(item, client, target, progress) for item in exports]
    except EdgepipeError as error:
        return [_with(item, Bound(None, reason=error.what)) for item in exports]


def _weighed(item: Export, client: BoardClient, target: str, progress: Progress) -> Export:
    if item.plain is None:
        return item
    try:
        bench.check_runtimes(client.hello().board, [item.artifact.format], target)
    except EdgepipeError as error:
        return _with(item, Bound(None, reason=error.what))
    return weighed(item, client, RunOptions(), None, progress)


def weighed(item: Export, client: BoardClient, options: RunOptions, inputs: str | None, progress: Progress) -> Export:
    """The export with its payoff, as `in_turns` finds it; unchanged where there is no plain twin.

    What goes wrong leaves the ratio null, with the reason: it says nothing on what was measured before.
    """
    if item.plain is None:
        return item
    try:
        ratio = in_turns(client, item.plain.artifact, item.artifact, options, inputs, progress)
    except EdgepipeError as error:
        ratio = Bound(None, reason=error.what)
    return _with(item, ratio)


def _with(item: Export, ratio: Bound) -> Export:
    if item.plain is None:
        return item
    runtime = bench.manifest_of(item.artifact).runtime
    return replace(item, payoff=payoff(item.made, item.plain, runtime, ratio))


def _sizes(step: Step) -> Sizes:
    return Sizes(step.bytes, step.bytes_gzip, step.bytes_zstd, step.parameters, step.macs)


def _speed(ratio: Bound) -> str:
    if ratio.value is None or ratio.low is None or ratio.high is None:
        return f"speed not measured: {ratio.reason}"
    interval = f"{ratio.value:.2f} of the time [{ratio.low:.2f}, {ratio.high:.2f}]"
    if ratio.high < 1 - _SAME:
        return f"{1 / ratio.value:.2f}x faster on this runtime, {interval}"
    if ratio.low > 1 + _SAME:
        return f"{NO_GAIN}: slower, {interval}"
    return f"{NO_GAIN}: {interval}"


def _size(before: Sizes, after: Sizes) -> list[str]:
    found = []
    for name, one, other in (
        ("file", before.bytes, after.bytes),
        ("gzip", before.bytes_gzip, after.bytes_gzip),
        ("zstd", before.bytes_zstd, after.bytes_zstd),
        ("MACs", before.macs, after.macs),
    ):
        if one and other:
            found.append(f"{name} {other / one:.2f}x")
    return found
