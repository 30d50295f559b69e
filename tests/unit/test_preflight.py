"""What a runtime can't run is told before anything is written, with the nodes it is at."""

import pytest

from edgepipe import export, model
from edgepipe.cache import Cache
from edgepipe.errors import UsageError
from tests.unit import formats_kit as kit


def onnx_file(path, nodes, shape):
    import onnx
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "g", values, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def to_openvino(path, tmp_path):
    kit.use_home()
    options = export.ExportOptions(dynamic={"": [0]})
    return export.make(model.load(str(path)), "none", "openvino", options, cache=Cache(tmp_path / "work"))


def test_an_operator_without_a_rule_is_named_with_its_node(tmp_path):
    from onnx import helper

    nodes = [helper.make_node("Relu", ["x"], ["r"], "first"), helper.make_node("Bernoulli", ["r"], ["y"], "dice")]
    path = onnx_file(tmp_path / "m.onnx", nodes, [2, 3])
    with pytest.raises(UsageError, match="OpenVINO has no Bernoulli") as caught:
        to_openvino(path, tmp_path)
    assert "y" in caught.value.what or "dice" in caught.value.what
    assert caught.value.exit_code == 2
    assert not list((tmp_path / "work").rglob("model.xml"))


def test_a_rank_known_only_at_run_time_is_refused(tmp_path):
    from onnx import TensorProto, helper

    path = tmp_path / "m.onnx"
    nodes = [helper.make_node("Unsqueeze", ["x", "axes"], ["y"], "free")]
    onnx_file(path, nodes, [1, 2, 3])
    import onnx

    proto = onnx.load(str(path))
    proto.graph.input.append(helper.make_tensor_value_info("axes", TensorProto.INT64, [1]))
    onnx.save(proto, str(path))
    with pytest.raises(UsageError, match="rank of every tensor"):
        to_openvino(path, tmp_path)


def board(runtime, package, version, arch="x86_64"):
    from edgepipe.schema import Board, Runtime

    found = [Runtime(runtime, version, package)]
    return Board(arch, "cpu", [], 4, None, "", "", "", runtimes=found)


def test_a_file_newer_than_the_boards_runtime_is_refused_before_it_is_sent():
    from edgepipe import preflight
    from edgepipe.errors import BoardError

    artifact = kit.made("onnx").artifact
    assert artifact.opset == 20
    assert preflight.check(artifact, board("onnxruntime", "onnxruntime", "1.19.2"), "x") == []
    import dataclasses

    import onnx

    newer = onnx.load(artifact.path)
    newer.opset_import[0].version, newer.ir_version = 24, 12
    path = kit.home() / "newer.onnx"
    onnx.save(newer, str(path))
    artifact = dataclasses.replace(artifact, path=str(path))
    for version, says in (("1.19.2", "loads up to 21"), ("1.23.2", "loads up to 23")):
        with pytest.raises(BoardError, match=f"opset 24.*{says}.*IR version 12"):
            preflight.check(artifact, board("onnxruntime", "onnxruntime", version), "x")
    assert preflight.check(artifact, board("onnxruntime", "onnxruntime", "1.31.1"), "x") == []
    assert preflight.check(artifact, board("onnxruntime", "onnxruntime", "2.0"), "x") == []


def test_the_old_tflite_runtime_is_not_given_what_it_computes_wrongly():
    from edgepipe import preflight
    from edgepipe.errors import BoardError

    old = board("tflite", "tflite-runtime", "2.14.0", "armv7l")
    assert preflight.check(kit.made("tflite", "int8").artifact, old, "x") == []
    four = kit.made("tflite", "int4").artifact
    with pytest.raises(BoardError, match=r"tflite-runtime 2\.14\.0 .*\(at "):
        preflight.check(four, old, "x")
    assert preflight.check(four, board("tflite", "ai-edge-litert", "2.3.0"), "x") == []


def test_int8_by_openvino_on_arm_is_a_caution():
    from edgepipe import preflight

    artifact = kit.made("openvino", "int8").artifact
    (words,) = preflight.check(artifact, board("openvino", "openvino", "2026.4.1", "aarch64"), "x")
    assert "3 int8 layers may run in float" in words
    assert preflight.check(artifact, board("openvino", "openvino", "2026.4.1"), "x") == []
