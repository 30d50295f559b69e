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


def exported_for(target, name, recipe, folder, **words):
    from edgepipe import convert
    from edgepipe.progress import Silent

    kit.use_home()
    request = convert.Request(str(kit.tiny().folder), (name,), folder, recipe, target=target, **words)
    return convert.convert(request, Silent()).exports[0]


def test_an_export_for_a_board_keeps_to_what_its_runtimes_load(tmp_path):
    from edgepipe.errors import BoardError

    found = exported_for("jetson-nano", "onnx", "int8", tmp_path / "onnx").artifact
    assert found.opset <= 21
    assert found.ir_version <= 10
    with pytest.raises(BoardError, match=r"tflite-runtime 2\.13\.0 has no 4-bit .*\(at \w+_\d"):
        exported_for("jetson-nano", "tflite", "int4", tmp_path / "tflite")
    assert not (tmp_path / "tflite").exists()
    (words,) = exported_for("rpi4", "openvino", "int8", tmp_path / "openvino").cautions
    assert "on aarch64" in words


def test_what_a_board_never_has_is_told_before_any_work(tmp_path, monkeypatch):
    from edgepipe import preflight, targets

    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "old.toml").write_text(
        "like = 'rpi4'\n[hardware]\narch = 'armv7l'\n[runtimes]\nopenvino = { reason = 'no wheel for armv7l' }\n"
        "onnxruntime = { version = '1.19.2' }\n[caps]\nonnx_opset = 21\nonnx_ir = 10\n"
    )
    monkeypatch.chdir(tmp_path)
    old = targets.load("old")
    with pytest.raises(UsageError, match="there is no openvino for old: no wheel for armv7l"):
        preflight.expected(old, ["onnx", "openvino"])
    with pytest.raises(UsageError, match="up to opset 21, not 22"):
        preflight.within(export.ExportOptions(opset=22), old)
    assert preflight.within(export.ExportOptions(), old).ir_version == 10
    assert preflight.expected(targets.load("local"), ["onnx"]).runtimes == []


def test_all_that_stands_against_any_format_is_said_at_once(tmp_path):
    from onnx import helper

    from edgepipe import convert
    from edgepipe.progress import Silent

    kit.use_home()
    nodes = [helper.make_node("Bernoulli", ["x"], ["b"], "dice"), helper.make_node("Relu", ["b"], ["y"], "last")]
    path = onnx_file(tmp_path / "m.onnx", nodes, [2, 3])
    wanted = convert.Request(str(path), ("onnx", "tflite", "openvino"), tmp_path / "out")
    with pytest.raises(UsageError) as caught:
        convert.convert(wanted, Silent())
    assert "tflite: no rule to bring Bernoulli" in caught.value.what
    assert "openvino: OpenVINO has no Bernoulli" in caught.value.what
    assert not (tmp_path / "out").exists()
