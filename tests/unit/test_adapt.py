"""Preprocessing and layout inside the file: raw data goes in, and the answers stay what they were."""

import dataclasses

import numpy as np
import pytest

from edgepipe import convert, export, model
from edgepipe.cache import Cache
from edgepipe.errors import UsageError
from edgepipe.given import Said
from edgepipe.progress import Silent
from edgepipe.runner import run_file
from edgepipe.schema import Preprocessing
from tests.unit import formats_kit as kit

FORMATS = ("onnx", "openvino", "tflite")


def made(name, recipe="none", source=None, **options):
    kit.use_home()
    wanted = export.ExportOptions(**options)
    return export.make(source or kit.tiny(), recipe, name, wanted, cache=Cache(kit.home() / "work")).artifact


def raw(count=8):
    return np.load(kit.tiny().folder / "evaluation.npz")["inputs"][:count]


@pytest.mark.parametrize("recipe", ["none", "int8"])
@pytest.mark.parametrize("name", FORMATS)
def test_raw_pixels_go_into_a_folded_file(name, recipe):
    plain = kit.made(name, recipe).artifact
    folded = made(name, recipe, fold=True, layout="NHWC")
    assert folded.preprocessing == Preprocessing("NHWC", "float32", [0.0, 255.0], color="RGB")
    assert folded.inputs[0].shape == [1, 8, 8, 3]
    assert folded.inputs[0].layout == "NHWC"
    assert folded.inputs[0].name == plain.inputs[0].name
    want = run_file(plain, {"inputs": raw()}, optimize=False).outputs[0]
    fed = {folded.inputs[0].name: raw().astype("float32")}  # as it is, by name: nothing prepares it
    have = run_file(folded, fed, optimize=False).outputs[0]
    within = (1e-5 if recipe == "none" else 0.02) * np.abs(want).max()  # an input may round to the next integer
    assert np.abs(want - have).max() <= within
    assert np.abs(kit.run(folded, raw().astype("float32")) - have).max() <= within


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NWCH"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_layout_is_had_in_every_format(name, layout):
    artifact = made(name, layout=layout)
    assert artifact.preprocessing == dataclasses.replace(kit.tiny().preprocessing, layout=layout)
    pixels = kit.prepared("NCHW", 4)
    feeds = pixels.transpose([0, *("NCHW".index(letter) for letter in layout[1:])])
    assert artifact.inputs[0].shape[1:] == list(feeds.shape[1:])
    assert np.abs(kit.run(artifact, np.ascontiguousarray(feeds)) - kit.torch_outputs(4)).max() < 1e-5
    own = kit.made(name).artifact
    assert (artifact.sha256 == own.sha256) == (own.preprocessing.layout == layout)


@pytest.mark.parametrize("name", FORMATS)
def test_colour_order_is_folded_in(name):
    bgr = dataclasses.replace(kit.tiny().preprocessing, color="BGR")
    source = dataclasses.replace(kit.tiny(), preprocessing=bgr, identity=f"bgr-{kit.tiny().identity}")
    plain, folded = made(name, source=source), made(name, source=source, fold=True)
    assert folded.preprocessing.color == "RGB"
    assert folded.preprocessing.mean == []
    want, have = (run_file(each, {"inputs": raw()}, optimize=False).outputs[0] for each in (plain, folded))
    assert np.abs(want - have).max() < 1e-5
    rgb = run_file(kit.made(name).artifact, {"inputs": raw()}, optimize=False).outputs[0]
    assert np.abs(rgb - have).max() > 1e-3


def test_the_ladder_has_a_rung_for_it_and_free_batches_stay_free(tmp_path):
    kit.use_home()
    request = convert.Request(
        str(kit.tiny().folder), ("onnx", "openvino"), tmp_path, "int8", dynamic={"": [0]}, layout="NHWC", fold=True
    )
    for item in convert.convert(request, Silent()).exports:
        assert [rung.rung for rung in item.ladder.parity] == ["exported", "quantized:int8", "input"]
        assert item.ladder.parity[-1].cosine > 0.9999
        assert item.made.steps[-1].name == "input"
        assert "preprocessing folded in; NCHW became NHWC" in item.made.steps[-1].note
        assert item.artifact.inputs[0].shape == [-1, 8, 8, 3]


@pytest.mark.parametrize("name", FORMATS)
def test_a_bare_file_is_folded_by_what_the_user_says_of_it(name, tmp_path):
    from tests.unit.test_given import bare

    kit.use_home()
    layout = "NHWC" if name == "tflite" else "NCHW"
    words = f"layout={layout} scale=1/255 mean=0.5,0.4,0.3 std=0.2,0.3,0.4 color=RGB range=0,255"
    other = "NCHW" if name == "tflite" else "NHWC"
    said = Said(preprocessing=words)
    request = convert.Request(str(bare(name)), (name,), tmp_path, layout=other, fold=True, said=said)
    (item,) = convert.convert(request, Silent()).exports
    pixels = raw(4).astype("float32")
    feeds = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) if other == "NCHW" else pixels
    assert np.abs(kit.run(item.artifact, feeds) - kit.torch_outputs(4)).max() < 1e-5


@pytest.mark.parametrize(
    ("options", "change", "says"),
    [
        ({"layout": "NHWX"}, {}, "no order of NCHW"),
        ({"layout": "NHW"}, {}, "no order of NCHW"),
        ({"layout": "NHWC"}, {"layout": ""}, "is not known"),
        ({"fold": True}, {"mean": [], "std": [], "scale": 1.0}, "no preprocessing to fold in"),
        ({"fold": True}, {"layout": ""}, "which axis are the channels"),
        ({"fold": True}, {"dtype": "uint8"}, "only into float32"),
        ({"dynamic": {"": [0]}}, {}, "fixed batch"),
    ],
)
def test_what_can_not_be_is_refused_before_any_work(options, change, says, monkeypatch):
    source = dataclasses.replace(kit.tiny(), preprocessing=dataclasses.replace(kit.tiny().preprocessing, **change))
    monkeypatch.setattr("edgepipe.isolate.call", lambda *a, **k: pytest.fail("work was begun"))
    with pytest.raises(UsageError, match=says) as caught:
        export.check(source, "none", ["tflite"], export.ExportOptions(**options))
    assert caught.value.fix


def test_a_format_without_the_part_refuses():
    with pytest.raises(UsageError, match="the input of null files can't be changed"):
        export.check(kit.tiny(), "none", ["null"], export.ExportOptions(fold=True))


def test_a_folded_file_loads_as_a_model():
    found = model.load(made("onnx", fold=True).path)
    assert found.inputs[0].shape == [1, 3, 8, 8]
