"""Shapes that are fixed, and axes that are left free, by name."""

import numpy as np
import pytest

from edgepipe import convert, export, model
from edgepipe.cache import Cache
from edgepipe.cli import options
from edgepipe.errors import UsageError
from edgepipe.given import Said
from edgepipe.progress import Silent
from tests.unit import formats_kit as kit
from tests.unit import onnx_kit


@pytest.fixture
def free(tmp_path):
    """y = relu(x) + z for any batch and width."""
    from onnx import helper

    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Add", ["r", "z"], ["y"])]
    shapes = {"x": ["n", 3, "w"], "z": ["n", 3, None]}
    return onnx_kit.save(tmp_path / "free.onnx", nodes, {}, shapes, {"y": ["n", 3, None]})


def exported(source, name, folder, shapes, **words):
    kit.use_home()
    request = convert.Request(str(source), (name,), folder, said=Said(options.shapes(shapes)), **words)
    return convert.convert(request, Silent()).exports[0].artifact


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_free_sizes_of_a_file_are_fixed_by_name(free, name, tmp_path):
    found = exported(free, name, tmp_path / "out", ["x=2,3,5", "z=2,3,5"])
    assert [spec.shape for spec in found.inputs] == [[2, 3, 5], [2, 3, 5]]
    again = exported(found.path, name, tmp_path / "again", None, batch=2)
    assert [spec.shape for spec in again.inputs] == [[2, 3, 5], [2, 3, 5]]
    first = exported(free, name, tmp_path / "first", ["3,7"])
    assert first.inputs[0].shape == [1, 3, 7]


def test_free_sizes_of_an_ir_are_fixed(free, tmp_path):
    ir = exported(free, "openvino", tmp_path / "ir", None, dynamic={"": [0]})
    assert ir.inputs[0].shape == [-1, 3, -1]
    assert exported(ir.path, "openvino", tmp_path / "out", ["x=1,3,4"]).inputs[0].shape == [1, 3, 4]


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (["q=1,3,5"], "no such input: q"),
        (["x=1,4,5"], "has shape"),
        (["x=1,3"], "has shape"),
        (["3,5,6"], "has shape"),
    ],
)
def test_shapes_that_do_not_fit_the_file(free, shapes, says, tmp_path):
    with pytest.raises(UsageError, match=says):
        exported(free, "onnx", tmp_path, shapes)


def test_two_batches_are_one_too_many(free, tmp_path):
    with pytest.raises(UsageError, match="a batch of 4 and one of 2"):
        exported(free, "onnx", tmp_path, ["x=2,3,5"], batch=4)


def test_a_tflite_file_keeps_its_shapes():
    path = kit.made("tflite").artifact.path
    name = model.load(path).inputs[0].name
    assert model.load(path, {name: [1, 8, 8, 3]}).inputs[0].shape == [1, 8, 8, 3]
    with pytest.raises(UsageError, match="has shape"):
        model.load(path, {name: [1, 9, 9, 3]})


def test_the_inputs_of_a_function_are_named(tmp_path, monkeypatch):
    code = (
        "import torch\n\nclass Net(torch.nn.Module):\n    def forward(self, a, b):\n        return a @ b\n\nnet = Net\n"
    )
    (tmp_path / "mine_shapes.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    found = model.load("mine_shapes:net", {"left": [1, 2, 3], "right": [1, 3, 4]})
    assert [(spec.name, spec.shape) for spec in found.inputs] == [("left", [-1, 2, 3]), ("right", [-1, 3, 4])]
    kit.use_home()
    made = export.make(found, "none", "onnx", cache=Cache(kit.home() / "work")).artifact
    assert [(spec.name, spec.shape) for spec in made.inputs] == [("left", [1, 2, 3]), ("right", [1, 3, 4])]


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_axes_are_left_free_by_name(name):
    kit.use_home()
    wanted = export.ExportOptions(dynamic={"image": [2, 3]})
    made = export.make(kit.tiny(), "none", name, wanted, cache=Cache(kit.home() / "work")).artifact
    assert made.inputs[0].shape == [1, 3, -1, -1]
    assert np.abs(kit.run(made, kit.prepared("NCHW", 4)) - kit.torch_outputs(4)).max() < 1e-5
    larger = np.random.default_rng(0).normal(size=(2, 3, 16, 12)).astype("f")
    import torch

    with torch.no_grad():
        want = kit.tiny().module(torch.from_numpy(larger)).numpy()
    assert np.abs(kit.run(made, larger) - want).max() < 1e-5


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_a_free_batch_leaves_a_scalar_beside_it_as_it_is(tmp_path, form):
    from onnx import helper

    kit.use_home()
    nodes = [helper.make_node("Mul", ["x", "k"], ["y"])]
    path = onnx_kit.save(tmp_path / "m.onnx", nodes, {}, {"x": ["n", 3], "k": []}, {"y": ["n", 3]})
    made = exported(path, form, tmp_path / "out", None, dynamic={"": [0]})
    assert [spec.shape for spec in made.inputs] == [[-1, 3], []]


@pytest.mark.parametrize(
    ("dynamic", "form", "says"),
    [
        ({"image": [2]}, "tflite", "fixed shapes"),
        ({"": [0]}, "tflite", "fixed batch"),
        ({"imag": [2]}, "onnx", "no such input: imag"),
        ({"image": [4]}, "onnx", "4 axes, 0 to 3"),
    ],
)
def test_axes_that_can_not_be_free(dynamic, form, says, monkeypatch):
    monkeypatch.setattr("edgepipe.isolate.call", lambda *a, **k: pytest.fail("work was begun"))
    with pytest.raises(UsageError, match=says):
        export.check(kit.tiny(), "none", [form], export.ExportOptions(dynamic=dynamic))


def test_a_file_that_fixes_a_size_can_not_free_it():
    found = model.load(kit.made("onnx").artifact.path)
    with pytest.raises(UsageError, match="the file fixes axis 2 at 8"):
        export.check(found, "none", ["onnx"], export.ExportOptions(dynamic={"image": [2]}))


def test_channels_that_a_network_needs_can_not_be_free():
    kit.use_home()
    with pytest.raises(UsageError, match="can't be traced") as caught:
        export.make(kit.tiny(), "none", "onnx", export.ExportOptions(dynamic={"image": [1]}))
    assert "--dynamic" in caught.value.fix


@pytest.mark.parametrize(
    "texts", [["3,x"], ["0,3"], ["-1,3"], ["x="], ["3", "x=1"], ["x=1", "x=2"], ["1.5"], [""], ["x=1,,2"]]
)
def test_words_that_are_no_shapes(texts):
    with pytest.raises(UsageError):
        options.shapes(texts)


@pytest.mark.parametrize("texts", [["x"], ["x="], ["x=a"], ["x=-1"], ["=1"], ["2,3"]])
def test_words_that_are_no_axes(texts):
    with pytest.raises(UsageError, match="not axes"):
        options.axes(texts)


def test_words_that_are():
    assert options.axes(["batch", "x=3,2", "x=2"]) == {"": [0], "x": [2, 3]}
    assert options.shapes(["x=1,2", "y/z:0=3"]) == {"x": [1, 2], "y/z:0": [3]}
    assert options.shapes(None) is None
