"""Making files by recipe: steps, stages, caching, refusals. Quick formats where the format does not matter."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgepipe import artifact, export, isolate, model, stages
from edgepipe.artifact import ExportOptions
from edgepipe.cache import Cache
from edgepipe.data import DataPaths
from edgepipe.errors import BoardError, IntegrityError, UsageError

from . import formats_kit as kit


@pytest.fixture(autouse=True)
def home(monkeypatch):
    kit.home()
    monkeypatch.setenv("EDGEPIPE_HOME", str(kit.home()))


@pytest.fixture
def shared():
    return Cache(kit.home() / "work")


def test_steps_and_stages(shared):
    made = export.make(kit.tiny(), "null+int8", "null", cache=shared)
    assert [step.name for step in made.steps] == ["export", "null", "int8"]
    assert [stage.recipe for stage in made.stages] == ["null", "null+int8"]
    assert made.artifact == made.stages[-1]
    assert made.artifact.model == "tiny"
    assert made.artifact.parent_sha256 == kit.tiny().facts.sha256
    assert made.artifact.raw_layout == "NHWC"
    assert all(step.bytes and step.seconds is not None and step.accuracy is None for step in made.steps)
    assert made.model is not kit.tiny()
    assert made.model.identity != kit.tiny().identity


def test_without_a_network_step_the_model_is_the_model(shared):
    made = export.make(kit.tiny(), "int8", "null", cache=shared)
    assert made.model is kit.tiny()
    assert [stage.recipe for stage in made.stages] == ["none", "int8"]


def test_accuracy_after_each_step(shared):
    seen = []

    def evaluate(found):
        seen.append(found.recipe)
        return len(seen) / 10

    made = export.make(kit.tiny(), "null+int8", "null", evaluate=evaluate, cache=shared)
    assert seen == ["none", "null", "null+int8"]
    assert [step.accuracy for step in made.steps] == [0.1, 0.2, 0.3]


def test_the_second_time_no_work_is_done(tmp_path, monkeypatch):
    store = Cache(tmp_path)
    first = export.make(kit.tiny(), "int8", "null", cache=store)
    assert not first.cached
    monkeypatch.setattr(artifact, "build", lambda *a, **k: pytest.fail("work was done again"))
    again = export.make(kit.tiny(), "int8", "null", cache=store)
    assert again.cached
    assert again == dataclasses.replace(first, cached=True)


def test_a_shared_prefix_is_reused(shared, monkeypatch):
    kit.made("onnx")
    calls = []
    real = isolate.call
    monkeypatch.setattr(
        isolate, "call", lambda target, kwargs, **k: (calls.append(target), real(target, kwargs, **k))[1]
    )
    store = Cache(kit.home() / "work")
    made = export.make(kit.tiny(), "fp16", "onnx", ExportOptions(threads=3), cache=store)
    assert calls in (["edgepipe.formats.onnx.quantize:fp16", "edgepipe.formats.onnx.inspect:weights"], [])
    assert made.stages[0] == kit.made("onnx").artifact


@pytest.mark.parametrize(
    "change",
    [
        lambda m: dataclasses.replace(m, identity="other"),
        lambda m: dataclasses.replace(m, name="other"),
    ],
)
def test_another_model_is_another_file(tmp_path, change):
    store = Cache(tmp_path)
    export.make(kit.tiny(), "none", "null", cache=store)
    assert not export.make(change(kit.tiny()), "none", "null", cache=store).cached


def test_changed_versions_and_code_make_it_anew(tmp_path, monkeypatch):
    store = Cache(tmp_path)
    export.make(kit.tiny(), "none", "null", cache=store)
    assert export.make(kit.tiny(), "none", "null", cache=store).cached
    with monkeypatch.context() as patch:
        patch.setattr(stages, "versions", lambda names: {"torch": "99"})
        assert not export.make(kit.tiny(), "none", "null", cache=store).cached
    monkeypatch.setattr(stages, "code", lambda *files: "changed")
    assert not export.make(kit.tiny(), "none", "null", cache=store).cached


def test_other_calibration_data_makes_int8_anew(tmp_path):
    store = Cache(tmp_path / "work")
    random = np.random.default_rng(7)
    images = random.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "c.npz", inputs=images)
    other = dataclasses.replace(kit.tiny(), data=DataPaths("NHWC", tmp_path / "c.npz"))
    export.make(kit.tiny(), "int8", "null", cache=store)
    assert not export.make(other, "int8", "null", cache=store).cached
    assert export.make(other, "none", "null", cache=store).cached


def test_calibration_of_a_wrong_shape(tmp_path, shared):
    np.savez(tmp_path / "c.npz", inputs=np.zeros((8, 9, 9, 3), np.uint8))
    wrong = dataclasses.replace(kit.tiny(), data=DataPaths("NHWC", tmp_path / "c.npz"))
    with pytest.raises(IntegrityError, match="per sample"):
        export.make(wrong, "int8", "null", cache=shared)


def test_calibration_gets_prepared_inputs(shared, tmp_path, monkeypatch):
    """The converter's process sees what the file wants: normalised, in the file's layout, as many as asked for."""
    seen = {}

    def peek(target, kwargs, **options):
        with np.load(kwargs["calibration"]) as arrays:
            seen.update({name: arrays[name] for name in arrays.files})
        raise BoardError("stop here")

    kit.made("tflite")
    monkeypatch.setattr(isolate, "call", peek)
    with pytest.raises(BoardError):
        export.make(kit.tiny(), "int8:samples=5", "tflite", cache=shared)
    raw = np.load(kit.tiny().folder / "calibration.npz")["inputs"][:5].astype(np.float32) / 255
    expected = (raw - np.array([0.5, 0.4, 0.3], np.float32)) / np.array([0.2, 0.3, 0.4], np.float32)
    assert seen["image"].shape == (5, 8, 8, 3)
    assert np.abs(seen["image"] - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("recipe", "format_name", "what"),
    [
        ("int8", "onxx", "no such format: onxx"),
        ("int9", "onnx", "no such recipe step: int9"),
        ("int8", "torch", "torch can't int8"),
        ("int8+fp16", "onnx", "fp16 can't follow int8"),
    ],
)
def test_refused_before_any_work(tmp_path, recipe, format_name, what):
    with pytest.raises(UsageError, match=what):
        export.make(kit.tiny(), recipe, format_name, cache=Cache(tmp_path / "c"))
    assert not (tmp_path / "c").exists()


def test_no_data_lists_recipes_that_work_without(tmp_path):
    bare = dataclasses.replace(kit.tiny(), data=None)
    with pytest.raises(UsageError, match="needs calibration data") as caught:
        export.check(bare, "int8", ["onnx"])
    assert "none, fp16, dynamic" in caught.value.fix
    export.check(bare, "fp16", ["onnx"])


def test_formats_of_files():
    found = model.load(kit.made("onnx").artifact.path)
    export.check(found, "fp16", ["onnx", "openvino", "tflite", "null"])
    with pytest.raises(UsageError, match="onnx can't be made from tflite"):
        export.check(model.load(kit.made("tflite").artifact.path), "none", ["onnx"])
    with pytest.raises(UsageError, match="null changes the network"):
        export.check(found, "null", ["onnx"])


@pytest.mark.slow
def test_an_older_opset(shared):
    import onnx

    made = export.make(kit.tiny(), "none", "onnx", ExportOptions(opset=17, ir_version=8), cache=shared)
    loaded = onnx.load(made.artifact.path)
    assert loaded.opset_import[0].version == made.artifact.opset == 17
    assert loaded.ir_version == made.artifact.ir_version == 8
    assert np.abs(kit.run(made.artifact, kit.prepared("NCHW")) - kit.torch_outputs()).max() < 1e-5


def lowered(tmp_path, opset, ir_version):
    from edgepipe.formats.onnx.export import convert

    found = kit.made("onnx").artifact
    specs = [dataclasses.asdict(spec) for spec in found.inputs], [dataclasses.asdict(spec) for spec in found.outputs]
    target = tmp_path / "lower.onnx"
    return target, convert(found.path, str(target), *specs, batch=1, opset=opset, ir_version=ir_version)


@pytest.mark.parametrize(("opset", "ir_version"), [(19, 9), (18, 8), (14, 7)])
def test_files_brought_down(tmp_path, opset, ir_version):
    import onnx

    target, facts = lowered(tmp_path, opset, ir_version)
    loaded = onnx.load(target)
    assert (loaded.opset_import[0].version, loaded.ir_version) == (opset, ir_version)
    assert (facts["opset"], facts["ir_version"]) == (opset, ir_version)
    found = dataclasses.replace(kit.made("onnx").artifact, path=str(target))
    assert np.abs(kit.run(found, kit.prepared("NCHW")) - kit.torch_outputs()).max() < 1e-5


def test_impossible_versions_are_refused(shared, tmp_path):
    with pytest.raises(UsageError, match="can't be brought down to opset 9"):
        lowered(tmp_path, 9, None)
    with pytest.raises(UsageError, match="IR version 3"):
        export.make(kit.tiny(), "none", "onnx", ExportOptions(ir_version=3), cache=shared)


def test_a_conversion_that_changes_the_outputs_is_refused(tmp_path, monkeypatch):
    import onnx
    from onnx import numpy_helper

    real = onnx.version_converter.convert_version

    def wrong(loaded, opset):
        lower = real(loaded, opset)
        tensor = next(item for item in lower.graph.initializer if len(item.dims) == 4)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.01, tensor.name))
        return lower

    monkeypatch.setattr(onnx.version_converter, "convert_version", wrong)
    with pytest.raises(IntegrityError, match="changes its outputs"):
        lowered(tmp_path, 17, None)


@pytest.mark.slow
@pytest.mark.parametrize("format_name", ["onnx", "openvino"])
def test_dynamic_batch(shared, format_name):
    made = export.make(kit.tiny(), "none", format_name, ExportOptions(dynamic={"": [0]}), cache=shared)
    assert made.artifact.inputs[0].shape == [-1, 3, 8, 8]
    assert made.artifact.outputs[0].shape == [-1, 4]
    feeds = kit.prepared("NCHW", 6)
    if format_name == "onnx":
        import onnxruntime

        outputs = onnxruntime.InferenceSession(made.artifact.path).run(None, {"image": feeds})[0]
    else:
        import openvino

        exact = {"INFERENCE_PRECISION_HINT": "f32"}  # a CPU with bfloat16 units would use them
        outputs = openvino.Core().compile_model(made.artifact.path, "CPU", exact)(feeds)[0]
    assert np.abs(outputs - kit.torch_outputs(6)).max() < 1e-4


def test_a_tflite_file_has_a_fixed_batch(shared):
    with pytest.raises(UsageError, match="fixed batch"):
        export.make(kit.tiny(), "none", "tflite", ExportOptions(dynamic={"": [0]}), cache=shared)


def test_a_model_file_with_a_fixed_batch(shared):
    found = model.load(kit.made("onnx").artifact.path)
    with pytest.raises(UsageError, match="fixed batch of 1") as caught:
        export.make(found, "none", "onnx", ExportOptions(batch=4), cache=shared)
    assert "--batch 1" in caught.value.fix


@pytest.mark.parametrize(("samples", "sizes"), [(8, [4, 4]), (9, [4, 4]), (4, [4]), (3, [4]), (1, [4])])
def test_calibration_in_batches(samples, sizes):
    """A converter with a batch of four is fed fours: the rest is left out, too few are repeated."""
    from edgepipe.formats.tflite import ranges

    array = np.arange(samples * 2).reshape(samples, 2)
    feeds = list(ranges.feeds([array], 4))
    assert [len(feed[0]) for feed in feeds] == sizes
    assert (feeds[0][0][0] == array[0]).all()
    assert {tuple(row) for feed in feeds for row in feed[0]} <= {tuple(row) for row in array}


def test_artifact_of_a_bare_file():
    for name, layout in (("onnx", "NCHW"), ("tflite", "NHWC"), ("openvino", "NCHW")):
        path = Path(kit.made(name).artifact.path)
        found = export.artifact_of_file(path, kit.tiny())
        artifact.check(found)
        assert found.preprocessing == dataclasses.replace(kit.tiny().preprocessing, layout=layout)
        assert found.sha256 == kit.made(name).artifact.sha256
        assert len(found.files) == (2 if name == "openvino" else 1)
    with pytest.raises(UsageError):
        export.artifact_of_file(kit.tiny().folder / "weights.safetensors")


def test_a_converter_that_crashes_leaves_no_entry(tmp_path, monkeypatch):
    def crash(*args, **kwargs):
        raise BoardError("crashed")

    monkeypatch.setattr(isolate, "call", crash)
    store = Cache(tmp_path)
    with pytest.raises(BoardError):
        export.make(kit.tiny(), "none", "onnx", cache=store)
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_an_export(tmp_path):
    """A real interruption of a real export: exit by KeyboardInterrupt, no child left, nothing half-written."""
    code = (
        "import sys\nfrom edgepipe import export, model\n"
        f"m = model.load({str(kit.tiny().folder)!r})\nprint('loaded', flush=True)\n"
        "export.make(m, 'none', 'tflite')\n"
    )
    root = str(Path(export.__file__).parent.parent)
    environment = {**os.environ, "EDGEPIPE_HOME": str(tmp_path), "PYTHONPATH": root}
    environment.pop("EDGEPIPE_CACHE", None)
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    jobs = tmp_path / "cache" / "jobs"
    assert process.stdout.readline() == "loaded\n"
    end = time.monotonic() + 60
    while not (jobs.is_dir() and list(jobs.iterdir())) and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) != 0
    assert not list(jobs.iterdir())
    assert not list((tmp_path / "cache" / "work" / "tmp").iterdir())
    entries = list((tmp_path / "cache" / "work" / "entries").glob("*/*"))
    assert len(entries) == 2  # what the model is, and the traced program, both whole
    assert all(Cache(tmp_path / "cache" / "work").get(entry.name) for entry in entries)
