"""What compression costs, against limits of our own: int8 of a depthwise network, and pruning half of one."""

from __future__ import annotations

from pathlib import Path

from edgepipe import bench, board, data, export, honesty, model, targets, verify
from edgepipe.artifact import ExportOptions
from edgepipe.progress import Silent
from edgepipe.schema import RunOptions
from tests.bench.figure import Figure, at_most


def figures(_folder: Path) -> list[Figure]:
    """int8 of the depthwise model in each format, then pruning's figures."""
    return [*_depthwise(), *_pruned()]


def _depthwise() -> list[Figure]:
    source = model.load("fashion-mbv2")
    score = verify.scorer(source, data.evaluation(source))
    found = []
    for name in ("onnx", "tflite", "openvino"):
        steps = export.make(source, "int8", name, ExportOptions(), Silent(), score).steps
        first, last = steps[0].accuracy, steps[-1].accuracy
        assert first is not None
        assert last is not None
        found.append(at_most(f"drop of int8, fashion-mbv2, {name}", 100 * (first - last), 1.0, "points"))
    return found


def _pruned() -> list[Figure]:
    source = model.load("fashion-resnet8")
    score = verify.scorer(source, data.evaluation(source))
    made = export.make(source, "prune:0.5", "onnx", ExportOptions(), Silent(), score)
    plain = export.make(source, "none", "onnx", ExportOptions(), Silent())
    first, last = made.steps
    assert first.macs
    assert last.macs
    assert first.accuracy is not None
    assert last.accuracy is not None
    with board.connect(targets.load("local"), bench.owner(), Silent()) as client:
        ratio = honesty.in_turns(client, plain.artifact, made.artifact, RunOptions(), None, Silent())
    assert ratio.value is not None
    name = "prune:0.5 of fashion-resnet8"
    return [
        at_most(f"{name}: MACs", last.macs / first.macs, 0.55),
        at_most(f"{name}: time in ONNX Runtime", ratio.value, 0.7, "x", f"[{ratio.low:.2f}, {ratio.high:.2f}]"),
        at_most(f"{name}: drop", 100 * (first.accuracy - last.accuracy), 1.5, "points", f"({last.note})"),
    ]
