"""Comparisons in turns: the same artifact against itself, and against itself made 5 % slower."""

from __future__ import annotations

import random
from pathlib import Path

from edgepipe import bench, board, data, export, model, ratios, targets, versus
from edgepipe.artifact import ExportOptions
from edgepipe.progress import Silent
from edgepipe.schema import Plan, RunOptions
from tests.bench.figure import Figure

TURNS, DRAWS, PLANTED = 24, 200, 1.05
TURN = Plan("turn", 1, min_seconds=1.0, min_samples=64, warmup_seconds=0.5, warmup_cap_seconds=5.0)


def figures(_folder: Path) -> list[Figure]:
    """The same artifact against itself: turns are recorded once, and their sides are drawn at random.

    Neighbours in time make a turn, as they do in a comparison; which of the two is A is tossed for each turn anew.
    """
    source = model.load("fashion-resnet8")
    artifact = export.make(source, "none", "onnx", ExportOptions(), Silent()).artifact
    sample = data.evaluation(source, "shipped")
    assert sample is not None
    with board.connect(targets.load("local"), bench.owner(), Silent()) as client:
        content, inputs = bench.samples_blob(sample)
        client.push([*bench.files_of(artifact), (content, inputs)])
        manifest = bench.manifest_of(artifact)
        raws = [client.bench(manifest, TURN, RunOptions(), inputs, meter="null") for _ in range(TURNS)]
    recorded = [raw.processes[0].samples_ns for raw in raws]
    rng, wrong, seen = random.Random(54), 0, 0
    for _ in range(DRAWS):
        sides: tuple[list[list[int]], list[list[int]]] = ([], [])
        for at in range(0, TURNS, 2):
            first = rng.randrange(2)
            sides[0].append(recorded[at + first])
            sides[1].append(recorded[at + 1 - first])
        same = ratios.ratio_of_turns(*sides, 0.5)
        slow = ratios.ratio_of_turns(sides[0], [[int(ns * PLANTED) for ns in turn] for turn in sides[1]], 0.5)
        assert same.low is not None
        assert slow.low is not None
        wrong += same.low > 1 + versus.MAX_SLOWDOWN
        seen += slow.low > 1
    note = f"of {DRAWS} draws from {TURNS} real processes"
    return [
        Figure("A/A: false regressions", "<= 5 %", f"{wrong / DRAWS:.1%} {note}", wrong <= 0.05 * DRAWS),
        Figure("a planted 5 % slow-down is found", ">= 95 %", f"{seen / DRAWS:.1%} {note}", seen >= 0.95 * DRAWS),
    ]
