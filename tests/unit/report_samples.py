"""Made-up runs and reports for the tests of what comes after a measurement. No figure here was measured."""

from __future__ import annotations

import random
from dataclasses import replace

from edgepipe import measurement
from edgepipe.record import Accuracy, Measurement, ModelFacts, Report, Rung, Step
from edgepipe.schema import (
    Artifact,
    Board,
    Caution,
    FileRef,
    Plan,
    Preprocessing,
    ProcessSamples,
    RawRun,
    Release,
    RunOptions,
    StateSample,
    TensorSpec,
)

PLAN = Plan()
OPTIONS = RunOptions(threads=1)


def process(samples: list[int], *, steady: bool = True, batch: int = 1) -> ProcessSamples:
    return ProcessSamples(50_000_000, 9_000_000, 20, steady, 41_000_000, samples, batch)


def states(
    temperature: float | None = 50.0, clocks: list[int] | None = None, bits: list[int] | None = None
) -> list[StateSample]:
    count = len(clocks or bits or [0] * 24)
    return [
        StateSample(
            at=i / 2,
            temperature_c={} if temperature is None else {"cpu": temperature + i / 10},
            clock_khz=[clocks[i], 600_000] if clocks else [],
            governor="ondemand" if clocks else None,
            throttle_bits=bits[i] if bits else None,
        )
        for i in range(count)
    ]


def raw(groups: list[list[int]], **changes) -> RawRun:
    base = RawRun(
        runtime="onnxruntime",
        runtime_version="1.31.1",
        precision_executed="float32",
        provider="CPUExecutionProvider",
        processes=[process(group) for group in groups],
        states=states(),
        timer_overhead_ns=900.0,
    )
    return replace(base, **changes)


def steady(rng: random.Random, median_ms: float = 1.0, calls: int = 400, processes: int = 3) -> list[list[int]]:
    """Skewed, with a little mode of its own above: as inference times look."""

    def one() -> int:
        slow = 1.08 if rng.random() < 0.15 else 1.0
        return int(median_ms * 1e6 * slow * (1 + abs(rng.gauss(0, 0.02))))

    return [[one() for _ in range(calls)] for _ in range(processes)]


def report(
    model: str = "fashion-resnet8",
    recipe: str = "none",
    form: str = "onnx",
    target: str = "pi4",
    run: Measurement | None = None,
    size: int = 1_240_000,
    accuracy: float = 0.9231,
    number: int = 1,
) -> Report:
    artifact = Artifact(
        format=form,
        path=f"out/{model}.{form}",
        bytes=size,
        bytes_gzip=int(size * 0.9),
        sha256="ab" * 32,
        files=[FileRef(f"{model}.{form}", "ab" * 32, size)],
        inputs=[TensorSpec("image", [-1, 1, 28, 28])],
        outputs=[TensorSpec("logits", [-1, 10])],
        preprocessing=Preprocessing(layout="NCHW"),
        model=model,
        recipe=recipe,
        parent_sha256="cd" * 32,
    )
    board = Board(
        arch="aarch64",
        cpu="Cortex-A72",
        isa=["asimd"],
        cores=4,
        ram_bytes=4_000_000_000,
        os="Debian GNU/Linux 12",
        kernel="6.6.31",
        python="3.11.2",
        model="Raspberry Pi 4 Model B Rev 1.4",
        name="pi4-lab" if target == "pi4" else "here",
        target=target,
        runtime="onnxruntime",
        runtime_version="1.31.1",
    )
    steps = [Step("none", {}, 1_240_000, 0.9231, 4.1)]
    steps += [Step(name.partition(":")[0], {}, size, accuracy, 7.5) for name in recipe.split("+") if name != "none"]
    return Report(
        model=ModelFacts(model, "image-classification", model.encode().hex().ljust(64, "0")[:64], 308_074, 12_500_000),
        recipe=recipe,
        steps=steps,
        artifact=artifact,
        accuracy=Accuracy("top1", 1000, 0.9231, 0.9231, accuracy, accuracy, "evaluation"),
        parity=[
            Rung("exported", 4e-6, 3e-7, 1.0, 0.0),
            Rung("quantized:int8", 0.41, 0.05, 0.9991, 0.006),
            Rung("on_device", 2e-6, 1e-7, 1.0, 0.0),
        ],
        board=board,
        release=Release("0123456789abcdef" * 2, None, 1_793_000_000.0, size, seconds=1.25),
        measurement=run,
        versions={"edgepipe": "0.1.0", "torch": "2.13.0", "openvino": None},
        id=f"20261122-16{number:02d}05-ab12cd34",
        created=f"2026-11-22T16:{number:02d}:05+00:00",
    )


def gallery(folder=None) -> list[Report]:
    """A board and this machine, three formats, two models, one row of each fate."""
    rng = random.Random(7)
    found = []
    table = [
        ("fashion-resnet8", "none", "onnx", 3.1, 1_240_000, 0.9231),
        ("fashion-resnet8", "int8", "onnx", 1.4, 331_000, 0.9218),
        ("fashion-resnet8", "fp16", "onnx", 3.6, 624_000, 0.9230),
        ("fashion-resnet8", "prune:0.5+int8", "onnx", 0.82, 121_000, 0.9102),
        ("fashion-resnet8", "none", "tflite", 3.4, 1_238_000, 0.9231),
        ("fashion-resnet8", "int8", "tflite", 1.2, 342_000, 0.9209),
        ("fashion-mbv2", "none", "onnx", 1.9, 418_000, 0.9177),
        ("fashion-mbv2", "int8", "onnx", 1.1, 149_000, 0.9121),
        ("fashion-mbv2", "none", "openvino", 1.7, 430_000, 0.9177),
        ("fashion-mbv2", "int8", "openvino", 0.95, 152_000, 0.9130),
    ]
    for number, (model, recipe, form, ms, size, accuracy) in enumerate(table, 1):
        for target in ("pi4", "loopback"):
            data = raw(steady(rng, ms if target == "pi4" else ms / 5), timer_overhead_ns=900.0)
            run = measurement.conclude(data, PLAN, OPTIONS)
            if folder:
                run = replace(run, raw=measurement.keep_raw(folder, data))
            found.append(report(model, recipe, form, target, run, size, accuracy, number))
    slow = raw([[int(v * (1.3 if i > 200 else 1)) for i, v in enumerate(g)] for g in steady(rng, 2.2)])
    hot = raw(steady(rng, 4.0), states=states(70.0, [1_500_000] * 10 + [1_000_000] * 14))
    found.append(
        report("fashion-mbv2", "fp16", "onnx", "pi4", measurement.conclude(slow, PLAN, OPTIONS), 214_000, 0.9177, 20)
    )
    found.append(
        report("fashion-mbv2", "none", "tflite", "pi4", measurement.conclude(hot, PLAN, OPTIONS), 421_000, 0.9177, 21)
    )
    crash = Caution("crashed", "onnxruntime 1.31.1 died of SIGILL on Cortex-A72", "use the wheel 1.23.2")
    dead = measurement.failed("failed", crash.text, PLAN, OPTIONS, cautions=[crash])
    found.append(report("fashion-mbv2", "int4", "onnx", "pi4", dead, 98_000, 0.9000, 22))
    bare = replace(
        report("fashion-mbv2", "dynamic", "onnx", "pi4", None, 160_000, 0.91, 23),
        accuracy=None,
        release=None,
        parity=[],
        steps=[],
    )
    found.append(bare)
    return found
