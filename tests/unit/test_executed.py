"""What really ran: counted from the runtime's own words, and held against what the file promises."""

from dataclasses import replace

import pytest

from edgepipe import deploy, executed, export
from edgepipe.agent import precision
from edgepipe.errors import BoardError
from edgepipe.progress import Silent
from edgepipe.record import Measurement
from edgepipe.runner import run_file
from edgepipe.schema import Executed
from tests.unit import fallback_kit, search_kit
from tests.unit import formats_kit as kit

FORMATS = ("onnx", "openvino", "tflite")
LAYERS = 3  # of the tiny network: two convolutions and a product


def measured(ran):
    return Measurement("ok", "quick", 1, provider="its provider", executed=ran)


@pytest.mark.parametrize("name", FORMATS)
def test_an_int8_file_is_seen_to_run_in_integers(name):
    artifact = kit.made(name, "int8").artifact
    ran = run_file(artifact, {"inputs": kit_images()}).executed
    found = executed.judged(measured(ran), artifact)
    assert found.executed.integer_layers == LAYERS
    assert precision.integers(ran.layers) == sum(ran.layers.values()) == LAYERS
    assert sum(ran.providers.values()) >= LAYERS
    assert not found.warnings
    executed.check(found, "here")


@pytest.mark.parametrize("name", FORMATS)
def test_a_float_file_promises_no_integers(name):
    artifact = kit.made(name).artifact
    ran = run_file(artifact, {"inputs": kit_images()}, optimize=name != "openvino").executed  # it may take bfloat16
    found = executed.judged(measured(ran), artifact)
    assert found.executed.integer_layers == 0
    assert ran.layers == {"float32": LAYERS}
    assert not found.warnings


@pytest.mark.parametrize(("name", "ran_in_integers"), [("onnx", 0), ("openvino", 1)])
def test_a_quantised_file_that_runs_in_float_is_a_fallback(name, ran_in_integers):
    """Without their optimiser both compute a quantised file in float32: really provoked, not made up."""
    artifact = kit.made(name, "int8").artifact
    ran = run_file(artifact, {"inputs": kit_images()}, optimize=False).executed
    found = executed.judged(measured(ran), artifact)
    assert [warning.code for warning in found.warnings] == ["fallback"]
    assert f"3 layers of the file are integer ones, {ran_in_integers} ran in integers" in found.warnings[0].text
    assert found.warnings[0].text.endswith("by its provider")
    with pytest.raises(BoardError, match="fell back") as caught:
        executed.check(found, "tiny on board")
    assert caught.value.exit_code == 4
    assert "--allow-fallback" in caught.value.fix


def test_litert_has_no_float_way_for_an_integer_file():
    ran = run_file(kit.made("tflite", "int8").artifact, {"inputs": kit_images()}, optimize=False).executed
    found = executed.judged(measured(ran), kit.made("tflite", "int8").artifact)
    assert set(ran.providers) == {"reference kernels"}
    assert found.executed.integer_layers == LAYERS and not found.warnings


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_whose_layers_run_in_float_for_the_most_part_is_refused(name, tmp_path):
    """A real file for each runtime: one layer of three is computed in integers."""
    import numpy as np

    path = fallback_kit.FILES[name](tmp_path / f"model{fallback_kit.SUFFIX[name]}")
    artifact = export.artifact_of_file(path)
    (spec,) = artifact.inputs
    feeds = {spec.name: np.random.default_rng(0).normal(size=spec.shape).astype(np.float32)}
    found = executed.judged(measured(run_file(artifact, feeds).executed), artifact)
    assert (found.executed.integer_layers, found.executed.layers["int8"]) == (LAYERS, 1)
    with pytest.raises(BoardError, match="3 layers of the file are integer ones, 1 ran in integers"):
        executed.check(found, "here")


def test_deploy_takes_a_fall_back_only_when_told_to(tmp_path):
    kit.use_home()
    path = fallback_kit.onnx_file(tmp_path / "model.onnx")
    request = deploy.Request(str(path), "local", plan=search_kit.SHORT)
    outcome = deploy.deploy(request, Silent())
    assert isinstance(outcome.error, BoardError)
    assert "the runtime fell back" in outcome.error.what
    assert outcome.reports[0].release is None
    allowed = deploy.deploy(replace(request, allow_fallback=True), Silent())
    assert allowed.error is None
    assert [warning.code for warning in allowed.reports[0].measurement.warnings if warning.code == "fallback"]


def test_xnnpack_takes_the_operators_of_a_float_file():
    ran = run_file(kit.made("tflite").artifact, {"inputs": kit_images()}).executed
    assert ran.providers.get("XNNPACK", 0) >= LAYERS
    plain = run_file(kit.made("tflite").artifact, {"inputs": kit_images()}, optimize=False).executed
    assert set(plain.providers) == {"reference kernels"}


@pytest.mark.parametrize(
    ("ran", "says"),
    [
        (Executed(), ""),
        (Executed(layers={"float32": 4}), ""),
        (Executed(layers={"float32": 4}, integer_layers=0), ""),
        (Executed(layers={"int8": 2, "float32": 2}, integer_layers=4), ""),
        (Executed(layers={"int8": 1, "float16": 3}, integer_layers=4), "1 ran in integers"),
        (Executed(layers={"float32 with n-bit weights": 4}, integer_layers=4), "0 ran in integers"),
    ],
)
def test_half_of_what_is_promised_must_run(ran, says):
    why = precision.fallback(ran)
    assert says in why
    assert bool(why) == bool(says)


def test_a_delegate_takes_what_lies_between_its_tensors():
    rows = [{"inputs": [0], "outputs": [1]}, {"inputs": [1], "outputs": [2]}, {"inputs": [2], "outputs": [3]}]
    assert precision.replaced([{"inputs": [0], "outputs": [2]}], rows) == {0: 0, 1: 0}
    assert precision.replaced([], rows) == {}


def test_a_file_nobody_can_read_here_is_not_judged(tmp_path):
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"no model")
    artifact = replace(kit.made("onnx").artifact, path=str(broken))
    ran = Executed(layers={"float32": 1})
    assert executed.judged(measured(ran), artifact).executed.integer_layers is None


def kit_images():
    import numpy as np

    return np.load(kit.tiny().folder / "evaluation.npz")["inputs"][:2]
