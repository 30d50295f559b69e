"""Before anything is converted, all that stands in the way is told at once: each format, each node, each board."""

import json
from pathlib import Path

import pytest

from edgepipe import convert, inspection, model, targets
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.formats.tflite import preflight as tflite_preflight
from edgepipe.given import Said
from edgepipe.progress import Silent
from tests.unit import formats_kit as kit
from tests.unit import onnx_kit


@pytest.fixture(autouse=True)
def _home():
    kit.use_home()


def saved(path, nodes, inputs, outputs, opset=17, ir=8, domains=()):
    import onnx
    from onnx import TensorProto, helper

    sides = (
        [helper.make_tensor_value_info(name, kind or TensorProto.FLOAT, shape) for name, (shape, kind) in side.items()]
        for side in (inputs, outputs)
    )
    graph = helper.make_graph(nodes, "g", *sides)
    versions = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in domains)]
    onnx.save(helper.make_model(graph, opset_imports=versions, ir_version=ir), str(path))
    return str(path)


def many(path):
    """Two operators that TFLite and OpenVINO lack, and one use of a third that TFLite can't follow."""
    from onnx import helper

    nodes = [
        helper.make_node("Bernoulli", ["x"], ["b"], "dice"),
        helper.make_node("Bernoulli", ["b"], ["y"], "dice2"),
        helper.make_node("Det", ["m"], ["d"], "det"),
    ]
    return saved(path, nodes, {"x": ([2, 3], 0), "m": ([3, 3], 0)}, {"y": ([2, 3], 0), "d": ([], 0)})


def refusal(path, formats, folder, **words):
    with pytest.raises(UsageError) as caught:
        convert.convert(convert.Request(path, formats, folder, **words), Silent())
    assert not folder.exists()
    return caught.value


def test_all_nodes_of_all_formats_are_named_at_once(tmp_path):
    path = many(tmp_path / "many.onnx")
    error = refusal(path, ("onnx", "tflite", "openvino"), tmp_path / "out", target="rpi4")
    to_tflite, to_openvino = error.what.split("; to openvino: ")
    assert "no rule to bring Bernoulli to TFLite (at dice, dice2); Det (at det) has no TFLite form" in to_tflite
    assert "OpenVINO has no Bernoulli, Det (at " in to_openvino
    assert error.fix.startswith("export to onnx only, or ")
    assert not list(kit.home().rglob("work/tmp/*"))


def test_an_operator_newer_than_the_boards_opset_is_named_and_one_that_can_be_lowered_is_not(tmp_path):
    from onnx import helper

    def node(op, inside, out):
        return helper.make_node(op, [inside], [out], out)

    path = saved(tmp_path / "new.onnx", [node("Swish", "x", "y")], {"x": ([1, 3], 0)}, {"y": ([1, 3], 0)}, 24, 12)
    assert "opset 21, the newest that may be, has no Swish (at y)" in (
        refusal(path, ("onnx",), tmp_path / "out", target="jetson-nano").what
    )
    plain = saved(tmp_path / "relu.onnx", [node("Relu", "x", "y")], {"x": ([1, 3], 0)}, {"y": ([1, 3], 0)}, 24, 12)
    (made,) = convert.convert(
        convert.Request(plain, ("onnx",), tmp_path / "out", target="jetson-nano"), Silent()
    ).exports
    assert (made.artifact.opset, made.artifact.ir_version) == (21, 10)


@pytest.mark.parametrize(
    ("op", "domain", "kind", "says"),
    [
        ("MyOp", "acme", 0, "ONNX Runtime has no acme:MyOp (at mine)"),
        ("StringNormalizer", "", 8, "OpenVINO's CPU plug-in has no texts: StringNormalizer mine"),
        ("Identity", "", 14, "complex64"),
    ],
)
def test_custom_operators_texts_and_complex_numbers(tmp_path, op, domain, kind, says):
    from onnx import helper

    nodes = [helper.make_node(op, ["x"], ["y"], "mine", domain=domain)]
    path = saved(
        tmp_path / "odd.onnx", nodes, {"x": ([2], kind)}, {"y": ([2], kind)}, domains=[domain] if domain else []
    )
    error = refusal(path, ("onnx", "tflite", "openvino"), tmp_path / "out")
    assert says in error.what
    assert error.exit_code == 2
    if domain:
        (row,) = [row for row in inspection.inspect(path)["targets"] if row["target"] == "rpi4"]
        assert row["runs"] is False
        assert "at mine" in row["reason"]


def test_an_opset_nobody_knows_yet(tmp_path):
    from onnx import helper

    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    path = saved(tmp_path / "later.onnx", nodes, {"x": ([1, 3], 0)}, {"y": ([1, 3], 0)}, 99, 13)
    with pytest.raises(UsageError, match="asks for opset 99"):
        model.load(path)


def test_free_sizes_are_fixed_on_the_way_to_tflite(tmp_path):
    from onnx import helper

    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    path = onnx_kit.save(tmp_path / "free.onnx", nodes, {}, {"x": ["n", "c", None]}, {"y": ["n", "c", None]})
    error = refusal(path, ("onnx", "tflite"), tmp_path / "out")
    assert "free dimension" in error.what
    assert "--input-shape" in error.fix
    request = convert.Request(path, ("tflite",), tmp_path / "out", said=Said({"x": [1, 3, 4]}))
    (made,) = convert.convert(request, Silent()).exports
    assert made.artifact.inputs[0].shape == [1, 3, 4]


def test_a_batch_that_the_file_fixes_need_not_be_named(tmp_path):
    from onnx import helper

    path = saved(
        tmp_path / "two.onnx", [helper.make_node("Relu", ["x"], ["y"])], {"x": ([2, 3], 0)}, {"y": ([2, 3], 0)}
    )
    for told in (None, 2):
        exports = convert.convert(
            convert.Request(path, ("onnx", "tflite", "openvino"), tmp_path / f"out{told}", batch=told), Silent()
        ).exports
        assert [made.artifact.inputs[0].shape for made in exports] == [[2, 3]] * 3
    with pytest.raises(UsageError, match="fixed batch of 2"):
        convert.convert(convert.Request(path, ("onnx",), tmp_path / "out", batch=3), Silent())


def test_operators_in_versions_that_a_tflite_runtime_lacks_are_named(tmp_path):
    from edgepipe.formats.tflite import graph

    found = graph.read(kit.made("tflite").artifact.path)
    kinds = [graph.operator(found, op) for op in found.subgraphs[0].operators]
    place = kinds.index("CONV_2D")
    found.operatorCodes[found.subgraphs[0].operators[place].opcodeIndex].version = 8
    path = tmp_path / "newer.tflite"
    path.write_bytes(graph.pack(found))
    old = tflite_preflight.for_board(str(path), "tflite-runtime", "2.13.0", "aarch64")["blocked"]
    assert any(
        f"tflite-runtime 2.13.0 has CONV_2D up to version 7, the file uses 8 (at conv_2d_{place}" in x for x in old
    )
    assert tflite_preflight.for_board(str(path), "ai-edge-litert", "2.3.0", "aarch64")["blocked"] == []
    rows = {row["target"]: row for row in inspection.inspect(str(path))["targets"]}
    assert rows["rpi4"]["runs"] is True
    assert rows["jetson-nano"]["runs"] is False


def test_the_versions_are_those_of_the_runtimes_of_the_targets():
    known = json.loads(tflite_preflight._BUILTINS.read_text())
    told = {
        targets.load(name).runtimes["tflite"].version for name in targets.listing() if name not in ("local", "loopback")
    }
    for version in told:
        package, _, number = version.partition(" ")
        assert f"{package} {'.'.join(number.split('.')[:2])}" in known or package in known


def test_a_damaged_file_is_told_before_that(tmp_path):
    path = tmp_path / "cut.onnx"
    path.write_bytes(Path(many(tmp_path / "many.onnx")).read_bytes()[:40])
    with pytest.raises(IntegrityError):
        convert.convert(convert.Request(str(path), ("onnx",), tmp_path / "out"), Silent())
