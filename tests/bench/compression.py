"""What compression gains and costs: against limits of our own, and against the quantisers of the runtimes themselves.

The peers are those of the environment at hand (ONNX Runtime's quantize_static and NNCF with two backends, each as its
guide says to call it); same model, same 128 calibration images, same machine, in turns, imports not counted.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgepipe import bench, board, data, export, honesty, model, targets, verify
from edgepipe.agent.preprocess import prepare
from edgepipe.artifact import ExportOptions
from edgepipe.progress import Silent
from edgepipe.schema import RunOptions
from tests.bench.figure import Figure, at_most

ROUNDS, SAMPLES = 5, 128
_HEAD = """
import json, resource, sys, time
source, calibration, target = sys.argv[1:]
def done(start):
    print(json.dumps({"seconds": time.perf_counter() - start,
                      "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""
OURS = """
from edgepipe.formats.onnx import static
import numpy, onnx, onnxruntime, onnxruntime.quantization, edgepipe.calibrate
start = time.perf_counter()
static.int8(source, target, calibration)
done(start)
"""
ORT = """
import numpy, onnx
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
class Reader:
    def __init__(self):
        arrays = numpy.load(calibration)
        self.feeds = iter([{name: arrays[name][i:i + 1] for name in arrays.files} for i in range(128)])
    def get_next(self): return next(self.feeds, None)
start = time.perf_counter()
quant_pre_process(source, target + ".prepared")
quantize_static(target + ".prepared", target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
done(start)
"""
NNCF = """
import nncf, numpy, onnx
start = time.perf_counter()
arrays = numpy.load(calibration)
name = arrays.files[0]
feeds = nncf.Dataset([arrays[name][i:i + 1] for i in range(128)], lambda sample: {name: sample})
onnx.save(nncf.quantize(onnx.load(source), feeds, subset_size=128), target)
done(start)
"""
TOOLS = {"edgepipe": OURS, "onnxruntime quantize_static": ORT, "NNCF, onnx": NNCF}


def figures(folder: Path) -> list[Figure]:
    """Post-training quantisation against its peers, int8 of the depthwise model in each format, pruning's figures."""
    return [*_peers(folder), *_depthwise(), *_pruned()]


def _peers(folder: Path) -> list[Figure]:
    found = []
    for name in ("fashion-resnet8", "fashion-mbv2"):
        source = model.load(name)
        samples, dataset = data.calibration(source), data.evaluation(source)
        assert dataset is not None
        plain = export.make(source, "none", "onnx", ExportOptions(), Silent()).artifact
        calibration = folder / f"{name}.npz"
        inputs = prepare(samples.inputs[:SAMPLES], plain.preprocessing, samples.layout)
        np.savez(calibration, **{plain.inputs[0].name: inputs})
        runs: dict[str, list[dict[str, float]]] = {tool: [] for tool in TOOLS}
        for _ in range(ROUNDS):
            for tool, code in TOOLS.items():
                target = folder / f"{name}-{tool.split()[0].strip(',')}.onnx"
                command = [sys.executable, "-c", _HEAD + code, plain.path, str(calibration), str(target)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                runs[tool].append(json.loads(done.stdout.splitlines()[-1]))
        for tool in TOOLS:
            target = folder / f"{name}-{tool.split()[0].strip(',')}.onnx"
            made = replace(plain, path=str(target), sha256=f"{tool}-{target.stat().st_mtime_ns}")
            score = verify.scorer(source, dataset)
            assert score is not None
            seconds = statistics.median(run["seconds"] for run in runs[tool])
            memory = statistics.median(run["memory"] for run in runs[tool])
            text = f"{score(made):.2%}, {target.stat().st_size / 1e3:.0f} kB, {seconds:.2f} s, {memory / 1e6:.0f} MB"
            found.append(Figure(f"int8 of {name}: {tool}", "", text, None))
        ratios = [
            ours["seconds"] / min(runs[tool][at]["seconds"] for tool in TOOLS if tool != "edgepipe")
            for at, ours in enumerate(runs["edgepipe"])
        ]
        found.append(at_most(f"static PTQ / fastest peer, {name}", statistics.median(ratios), 1.0))
        least = min(statistics.median(run["memory"] for run in runs[tool]) for tool in TOOLS if tool != "edgepipe")
        ours_memory = statistics.median(run["memory"] for run in runs["edgepipe"])
        found.append(at_most(f"static PTQ memory / leanest peer, {name}", ours_memory / least, 1.2))
    return found


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
