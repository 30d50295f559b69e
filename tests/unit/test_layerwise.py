"""Layer by layer: sound files agree in every format and precision, and a planted fault is named where it is."""

import functools

import numpy as np
import pytest

from edgepipe import align, data, export, layerwise, samples
from edgepipe.align import Seen
from edgepipe.artifact import ExportOptions
from edgepipe.cache import Cache
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.schema import Preprocessing, TensorSpec
from tests.conformance import faults
from tests.unit import formats_kit as kit

CASES = 9  # every format with every fault once; `make conformance` tries a hundred


@functools.cache
def inputs():
    return samples.choose(kit.made("onnx").artifact, data.evaluation(kit.tiny()), 6)


@functools.cache
def seen(name, recipe="none"):
    return layerwise.observe(kit.made(name, recipe).artifact, inputs())


@pytest.mark.parametrize("recipe", ["none", "int8"])
@pytest.mark.parametrize("name", ["onnx", "openvino", "tflite"])
def test_sound_files_agree_in_every_layer(name, recipe):
    limit = "float32" if recipe == "none" else "int8"
    found = layerwise.compare(seen("onnx"), seen(name, recipe), limit, ("onnx", name), inputs().source)
    assert found.first is None
    assert len(found.layers) >= 4
    assert found.matched_by == ("value" if name == "tflite" else "name")
    assert min(layer.cosine for layer in found.layers) > 0.999
    assert found.layers[-1].like == "scores"


@pytest.mark.parametrize("seed", range(CASES))
def test_a_planted_fault_is_found_in_its_layer(seed):
    sound = {name: kit.made(name).artifact for name in faults.FORMATS}
    case = faults.try_case(seed, sound, seen("onnx"), inputs())
    assert case.found, case


def one_of(name, values, op="Conv", inputs=(), alias=""):
    return Seen(name, alias or name, f"layer-{name}", op, tuple(inputs), values)


def test_names_that_stayed_are_believed_over_values():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 2, 3, 4, 4))
    paired = align.pair([one_of("a", a), one_of("b", b)], [one_of("a", b), one_of("b", a)])
    assert (paired.pairs, paired.by) == ([(0, 0), (1, 1)], "name")


def test_without_names_order_shape_and_values_decide():
    random = np.random.default_rng(0)
    first, second, third = random.normal(size=(3, 2, 3, 4, 5))
    one = [one_of("a", first), one_of("b", second, "Relu"), one_of("c", third)]
    other = [one_of("x", np.moveaxis(first, 1, -1), "CONV_2D"), one_of("y", np.moveaxis(third, 1, -1), "CONV_2D")]
    paired = align.pair(one, other)
    assert (paired.pairs, paired.by) == ([(0, 0), (2, 1)], "value")
    moved, word = align.laid_out(other[1].values, third, moves=True)
    assert np.array_equal(moved, third)
    assert word == "channels last"


def test_a_swap_of_height_and_width_is_no_layout():
    values = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype("f")
    found = layerwise.compare(
        [one_of("a", values)], [one_of("x", values.swapaxes(2, 3), "CONV_2D")], "float32", ("one", "other"), ""
    )
    assert found.first.layer == "layer-x"


def test_what_is_not_finite_departs():
    values = np.ones((2, 3), "f")
    broken = values.copy()
    broken[0, 0] = np.nan
    found = layerwise.compare([one_of("a", values)], [one_of("a", broken)], "int8", ("one", "other"), "")
    assert "not finite" in found.first.text
    assert found.layers[0].cosine is None


def test_noise_that_only_came_in_is_not_blamed_on_the_layer():
    random = np.random.default_rng(0)
    clean = random.normal(size=(4, 64))
    noisy = clean + random.normal(size=clean.shape) * 0.18  # 3 % of the power, within the cosine allowed
    one = [one_of("a", clean), one_of("b", clean, inputs=["a"])]
    late = layerwise.compare(one, [one_of("a", clean), one_of("b", noisy, inputs=["a"])], "int8", ("", ""), "")
    assert late.first.layer == "layer-b"
    assert late.first.between == ["layer-b"]
    both = [one_of("a", noisy), one_of("b", noisy, inputs=["a"])]
    assert [row.departs for row in layerwise.compare(one, both, "int8", ("", ""), "").layers] == [True, False]


def test_files_without_a_tensor_in_common_are_other_models():
    one, other = [one_of("a", np.ones((2, 3)))], [one_of("b", np.ones((2, 4)))]
    with pytest.raises(IntegrityError, match="no tensor in common"):
        layerwise.compare(one, other, "float32", ("one", "other"), "")


def test_made_up_inputs_say_what_they_are_and_stay_in_range():
    artifact = kit.made("onnx").artifact
    made = samples.choose(artifact, None, 6, seed=3)
    assert made.source == "2 made-up samples each of normal, uniform, sparse values, seed 3"
    values = made.arrays[0]
    pre = kit.tiny().preprocessing
    low, high = (-np.mean(pre.mean) / np.mean(pre.std), (1 - np.mean(pre.mean)) / np.mean(pre.std))
    assert values.shape == (6, 3, 8, 8)
    assert values.min() >= low - 1e-5
    assert values.max() <= high + 1e-5
    assert np.array_equal(values, samples.choose(artifact, None, 6, seed=3).arrays[0])
    feeds = made.feeds(kit.made("tflite").artifact)
    assert np.array_equal(np.moveaxis(next(iter(feeds.values())), -1, 1), values)


def test_inputs_that_do_not_fit_are_refused():
    from dataclasses import replace

    artifact = kit.made("onnx").artifact
    free = replace(artifact, inputs=[TensorSpec("x", [1, -1, 4])], preprocessing=Preprocessing())
    with pytest.raises(UsageError, match="free dimension"):
        samples.choose(free, None, 6)
    made = samples.choose(artifact, None, 6)
    with pytest.raises(UsageError, match="takes"):
        made.feeds(replace(artifact, inputs=[TensorSpec("x", [1, 5, 5])]))
    with pytest.raises(UsageError, match="2 inputs"):
        made.feeds(replace(artifact, inputs=[*artifact.inputs, TensorSpec("y", [1])]))


def verify(capsys, *arguments):
    """Run `edgepipe verify --layers` here; its exit code, its document and what it said."""
    import json

    from edgepipe.cli import main

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr("sys.argv", ["edgepipe", "verify", *map(str, arguments), "--layers", "--json"])
        main()
    said = capsys.readouterr()
    return ended.value.code, json.loads(said.out), said.err


def test_the_command_names_the_layer_and_ends_with_5(capsys, tmp_path):
    kit.use_home()
    sound = kit.made("onnx").artifact
    code, document, _ = verify(capsys, sound.path, "--against", kit.tiny().folder)
    assert code == 0
    assert document["comparisons"][0]["first"] is None
    faulty, layer = faults._in_onnx(sound, sound, tmp_path, "pad", np.random.default_rng(0))
    code, document, said = verify(capsys, faulty.path, "--against", kit.tiny().folder)
    assert code == 5
    assert document["comparisons"][0]["first"]["layer"] == layer
    assert f"error: {layer} (Conv) departs first" in said


def test_a_board_answers_layer_by_layer(capsys):
    """The board is this machine, by the agent in a child process: the same file, here and there."""
    kit.use_home()
    options = ExportOptions(reduce_range=kit.saturates())  # as a deployment to this machine would make it
    file = export.make(kit.tiny(), "int8", "onnx", options, cache=Cache(kit.home() / "work")).artifact.path
    code, document, _ = verify(capsys, file, "--against", kit.tiny().folder, "--target", "local", "--quiet")
    assert code == 0
    here, there = document["comparisons"]
    assert (here["limit"], there["limit"]) == ("int8", "int8")
    assert there["other"] == "onnx on local"
    assert there["matched_by"] == "name"
    assert len(there["layers"]) == len(here["layers"]) + there["unmatched"] + here["unmatched"]


def test_a_board_needs_layers(capsys, monkeypatch):
    from edgepipe.cli import main

    monkeypatch.setattr("sys.argv", ["edgepipe", "verify", "x.onnx", "--against", "tiny", "--target", "local"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--layers" in capsys.readouterr().err
