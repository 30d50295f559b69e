"""Nodes are timed in a run of their own; what a runtime does not tell is null."""

import pytest

from edgepipe.agent import runtimes
from edgepipe.schema import RunOptions, TensorSpec

np = pytest.importorskip("numpy")


def test_kernels_of_onnxruntime_are_counted_and_timed(tmp_path, tools, monkeypatch):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    monkeypatch.chdir(tmp_path)
    weights = helper.make_tensor("w", TensorProto.FLOAT, [8, 8], np.ones(64, np.float32))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="product"), helper.make_node("Relu", ["h"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weights])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    artifact = tools.artifact("onnx", path, [TensorSpec("x", [1, 8])], [TensorSpec("y", [1, 8])])
    session = runtimes.find("onnxruntime").load(str(path), RunOptions(), artifact)
    session.prepare([np.ones((1, 8), np.float32)])()
    rows = {row.op: row for row in session.profile(5)}
    assert rows["MatMul"].calls == 5 and rows["MatMul"].precision == "float32"
    assert rows["MatMul"].name == "product" and rows["MatMul"].total_us is not None
    assert rows["Relu"].provider == "CPUExecutionProvider"


def test_the_verb_profiles_a_release(agent, tools):
    manifest, content = tools.null()
    agent.push(content)
    assert agent.good("profile", manifest=manifest, options=RunOptions()) == {"ops": []}
    error = agent.bad("profile", manifest=manifest, release="x", options=RunOptions())
    assert error["kind"] == "UsageError"
