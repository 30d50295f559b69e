"""Each runtime that is installed, for real: right outputs, sane samples, honest words about what ran."""

import io
import os
import time
from pathlib import Path

import numpy as np
import pytest

from edgepipe.agent import runtimes
from edgepipe.agent.precision import describe
from edgepipe.errors import BoardError, UsageError
from edgepipe.runner import run_file
from edgepipe.schema import Manifest, Plan, Preprocessing, RunOptions, SelfTest, TensorSpec

RNG = np.random.RandomState(0)
WEIGHTS, BIAS = RNG.randn(3, 8).astype("f"), RNG.randn(3).astype("f")
X = RNG.uniform(-1, 1, (5, 8)).astype("f")
WANTED = X @ WEIGHTS.T + BIAS
IN, OUT = [TensorSpec("x", [-1, 8])], [TensorSpec("sums", [-1, 2]), TensorSpec("y", [-1, 3])]
SUMS = np.stack([X.sum(1), -X.sum(1)], 1)
SIGNS = np.stack([np.ones(8), -np.ones(8)]).astype("f")


def onnx_model(path, batch="n"):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1),
            helper.make_node("Gemm", ["x", "s"], ["sums"], transB=1),
        ],
        "linear",
        [value("x", TensorProto.FLOAT, [batch, 8])],
        [value("y", TensorProto.FLOAT, [batch, 3]), value("sums", TensorProto.FLOAT, [batch, 2])],
        [numpy_helper.from_array(array, name) for name, array in (("w", WEIGHTS), ("b", BIAS), ("s", SIGNS))],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def tflite_model(path, integer=False):
    """y and sums of x; with integer input and outputs of known scales if asked."""
    pytest.importorskip("ai_edge_litert")
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    kind = schema.TensorType
    buffers, tensors = [schema.BufferT()], []

    def tensor(name, shape, dtype, data=None, scale=None, zero=0):
        found = schema.TensorT()
        found.name, found.shape, found.type = name, shape, dtype
        if data is None:
            found.shapeSignature = [-1, *shape[1:]]
        else:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            buffers.append(buffer)
            found.buffer = len(buffers) - 1
        if scale:
            found.quantization = schema.QuantizationParametersT()
            found.quantization.scale, found.quantization.zeroPoint = [scale], [zero]
        tensors.append(found)
        return len(tensors) - 1

    def weights(name, array):
        if not integer:
            return tensor(name, list(array.shape), kind.FLOAT32, array), 0
        scale = float(np.abs(array).max() / 127)
        return tensor(name, list(array.shape), kind.INT8, np.rint(array / scale).astype(np.int8), scale), scale

    def bias(name, array, scale):
        if not integer:
            return tensor(name, [len(array)], kind.FLOAT32, array)
        return tensor(name, [len(array)], kind.INT32, np.rint(array / scale).astype(np.int32), scale)

    own, in_scale, out_scale = (kind.INT8, 2 / 255, 16 / 255) if integer else (kind.FLOAT32, None, None)
    x = tensor("x", [1, 8], own, scale=in_scale, zero=0 if not integer else -1)
    operators, outputs = [], []
    for name, array, add in (("y", WEIGHTS, BIAS), ("sums", SIGNS, np.zeros(2, "f"))):
        w, scale = weights(name + "/w", array)
        b = bias(name + "/b", add, scale * (in_scale or 0))
        outputs.append(tensor(name, [1, len(array)], own, scale=out_scale))
        operator = schema.OperatorT()
        operator.inputs, operator.outputs = [x, w, b], [outputs[-1]]
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        operator.builtinOptions = schema.FullyConnectedOptionsT()
        operators.append(operator)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 4 if integer else 1
    graph = schema.SubGraphT()
    graph.tensors, graph.operators, graph.inputs, graph.outputs = tensors, operators, [x], outputs
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], buffers
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def openvino_model(path):
    openvino = pytest.importorskip("openvino")
    openvino.save_model(
        openvino.convert_model(str(onnx_model(path.with_suffix(".onnx")))), str(path), compress_to_fp16=False
    )
    return path


@pytest.fixture(params=["onnxruntime", "tflite", "openvino"])
def linear(request, tmp_path, tools):
    """(runtime, artifact) of y = x W + b and of sums, the outputs wanted in another order than the file's."""
    if request.param == "onnxruntime":
        return request.param, tools.artifact("onnx", onnx_model(tmp_path / "m.onnx"), IN, OUT)
    if request.param == "tflite":
        return request.param, tools.artifact("tflite", tflite_model(tmp_path / "m.tflite"), IN, OUT)
    path = openvino_model(tmp_path / "m.xml")
    return request.param, tools.artifact("openvino", path, IN, OUT, [path.with_suffix(".bin")])


def near(precision):
    """How near to the truth a result must be: OpenVINO computes in bfloat16 (8 bits) on CPUs that can."""
    kind = precision.partition(" ")[0]
    assert kind in ("float32", "bfloat16")
    return {"atol": 1e-5} if kind == "float32" else {"atol": 0.03, "rtol": 0.02}


@pytest.mark.parametrize("optimize", [True, False])
def test_outputs_are_right_and_in_the_artifacts_order(linear, optimize):
    runtime, artifact = linear
    done = run_file(artifact, {"x": X}, optimize=optimize, threads=1)
    sums, y = done.outputs
    assert optimize or done.precision_executed.startswith("float32 (")
    np.testing.assert_allclose(y, WANTED, **near(done.precision_executed))
    np.testing.assert_allclose(sums, SUMS, **near(done.precision_executed))
    assert y.dtype == np.float32 and done.seconds > 0
    assert done.runtime_version[0].isdigit()
    known = {"onnxruntime": "CPUExecutionProvider", "openvino": "CPU"}
    assert done.provider == known.get(runtime, done.provider) and done.provider != "unknown"


def test_raw_inputs_are_preprocessed_as_the_artifact_says(linear):
    from dataclasses import replace

    _, artifact = linear
    pre = Preprocessing(range=[0.0, 255.0], scale=1 / 255, mean=[0.5], std=[0.25])
    raw = RNG.randint(0, 256, (5, 8)).astype(np.uint8)
    _, y = run_file(replace(artifact, preprocessing=pre), {"inputs": raw}, optimize=False).outputs
    wanted = ((raw / 255 - 0.5) / 0.25) @ WEIGHTS.T + BIAS
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_bench_on_the_agent_gives_sane_samples(agent, linear, tools, batch):
    runtime, artifact = linear
    manifest = Manifest(name="linear", artifact=artifact, runtime=runtime)
    agent.push(*[(Path(artifact.path).parent / ref.name).read_bytes() for ref in artifact.files])
    run = agent.bench(manifest, options=RunOptions(threads=1, batch=batch))
    for process in run["processes"]:
        samples = process["samples_ns"]
        assert len(samples) >= 10 and sum(samples) >= 0.05e9 and process["batch"] == batch
        assert 200 < np.median(samples) < 5e6
        assert process["load_ns"] > np.median(samples) and process["first_ns"] > 0
        assert 20 << 20 < process["memory_peak_bytes"] < 2 << 30
    assert run["timer_overhead_ns"] < 20_000 and run["runtime_version"]
    assert near(run["precision_executed"])
    assert agent.good("status")["current"] is None, "a bench activates nothing"


def test_a_run_that_its_deadline_cuts_short_keeps_what_it_has_and_says_so(agent, tools):
    manifest, content = tools.null(sleep=0.05)
    agent.push(content)
    plan = Plan(processes=1, min_seconds=60, warmup_seconds=0.2, warmup_runs=2, deadline_seconds=4)
    run = agent.bench(manifest, plan=plan)
    assert [failure["code"] for failure in run["failures"]] == ["DeadlineError"]
    assert 20 <= len(run["processes"][0]["samples_ns"]) <= 75
    error = agent.bad("bench", manifest=manifest, plan=Plan(deadline_seconds=0.1), options=RunOptions())
    assert error["kind"] == "DeadlineError"


def test_a_process_that_fails_after_the_first_leaves_the_first_in_place(agent, tools, tmp_path):
    """The file is replaced while the second process is about to open it."""
    manifest, content = tools.null(sleep=0.01)
    agent.push(content)
    agent.send("bench", manifest=manifest, plan=Plan(processes=2, min_seconds=2, min_samples=2), options=RunOptions())
    model = agent.root / "releases" / manifest.id / "model.json"
    assert tools.eventually(lambda: any((agent.root / "tmp").iterdir()), 10)
    assert tools.eventually(model.exists)
    first = next((agent.root / "tmp").iterdir())
    time.sleep(1.0)
    model.unlink()
    assert tools.eventually(lambda: not first.exists(), 10)
    run = agent.reply()["result"]
    assert len(run["processes"]) == 1 and len(run["processes"][0]["samples_ns"]) >= 50
    assert run["failures"][0]["code"] == "BoardError" and "can't load" in run["failures"][0]["text"]


def test_verify_on_the_agent_runs_all_samples(agent, linear, tools):
    runtime, artifact = linear
    buffer = io.BytesIO()
    np.savez(buffer, x=X)
    agent.push(buffer.getvalue(), *[(Path(artifact.path).parent / ref.name).read_bytes() for ref in artifact.files])
    manifest = Manifest(name="linear", artifact=artifact, runtime=runtime)
    done = agent.good("verify", manifest=manifest, inputs=tools.sha(buffer.getvalue()), threads=2, optimize=True)
    assert done["samples"] == 5
    close = near(done["precision_executed"])
    with np.load(io.BytesIO(agent.ask("get", sha256=done["outputs"])["data"])) as file:
        np.testing.assert_allclose(file["1"], WANTED, **close)
        np.testing.assert_allclose(file["0"], SUMS, **close)


@pytest.mark.parametrize("data", [True, False])
def test_golden_samples_guard_the_activation(agent, linear, tools, tmp_path, data):
    """What the host's file answered is held against the board's, on the board, before the link moves."""
    from edgepipe import bench, golden
    from edgepipe.data import Dataset

    _, artifact = linear
    made = golden.make(
        artifact, Dataset("rows", X, None, "", tools.sha(X.tobytes() + artifact.format.encode())) if data else None
    )
    manifest = bench.manifest_of(artifact, made.test)
    files = [(Path(artifact.path).parent / ref.name).read_bytes() for ref in artifact.files]
    agent.push(*files, *[content for content, _ in made.blobs])
    first = agent.good("activate", manifest=manifest)
    assert first["changed"] and not agent.good("activate", manifest=manifest)["changed"]
    with np.load(io.BytesIO(made.blobs[1][0])) as file:
        wrong = {name: -file[name] - 1 for name in file.files}
    content, sha = bench.blob(wrong)
    agent.push(content)
    other = bench.manifest_of(artifact, SelfTest(made.test.inputs, sha, made.test.atol))
    error = agent.bad("activate", manifest=other)
    assert error["kind"] == "IntegrityError" and "self-test failed on the board" in error["what"]
    assert agent.good("status")["current"] == manifest.id


def test_the_null_runtime_has_golden_samples_too(agent, tools, tmp_path):
    from dataclasses import replace

    from edgepipe import bench, golden

    manifest, content = tools.null()
    (tmp_path / "model.json").write_bytes(content)
    artifact = replace(manifest.artifact, path=str(tmp_path / "model.json"))
    made = golden.make(artifact, None)
    agent.push(content, *[content for content, _ in made.blobs])
    assert agent.good("activate", manifest=bench.manifest_of(artifact, made.test))["changed"]


def test_without_data_and_with_free_dimensions_there_is_no_self_test(tools):
    from edgepipe import golden

    manifest, _ = tools.null()
    free = tools.null()[0].artifact
    free.inputs[:] = [TensorSpec("x", [-1, -1])]
    assert golden.make(free, None) is None and manifest.artifact.inputs


def test_a_damaged_file_is_an_error_in_the_runtimes_own_words(linear):
    runtime, artifact = linear
    with Path(artifact.path).open("r+b") as file:
        file.write(os.urandom(64))
    with pytest.raises(BoardError) as caught:
        run_file(artifact, {"x": X})
    assert runtime in caught.value.what and caught.value.what.isprintable() and len(caught.value.what) < 600


def test_integer_inputs_and_outputs_are_scaled(tmp_path, tools):
    """Forgetting scale and zero point costs 50 dB; here the error stays within two steps of the output's scale."""
    artifact = tools.artifact("tflite", tflite_model(tmp_path / "q.tflite", integer=True), IN, OUT)
    done = run_file(artifact, {"x": X})
    sums, y = done.outputs
    assert y.dtype == sums.dtype == np.float32 and done.precision_executed == "int8 (2 of 2 kernels)"
    assert np.abs(y - WANTED).max() < 2 * 16 / 255 and np.abs(sums - SUMS).max() < 2 * 16 / 255


@pytest.mark.parametrize(("optimize", "wanted"), [(True, "int8"), (False, "float32")])
def test_onnx_runtime_says_whether_int8_really_ran(tmp_path, tools, optimize, wanted):
    """A QDQ file without the optimiser computes in float32: its name does not make it int8."""
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):
        rows = iter([{"x": X[:1]}, {"x": X[1:2]}])

        def get_next(self):
            return next(self.rows, None)

    path = tmp_path / "q.onnx"
    kinds = {"activation_type": quantization.QuantType.QUInt8, "weight_type": quantization.QuantType.QInt8}
    quantization.quantize_static(str(onnx_model(tmp_path / "m.onnx")), str(path), Reader(), per_channel=True, **kinds)
    done = run_file(tools.artifact("onnx", path, IN, OUT), {"x": X}, optimize=optimize)
    assert done.precision_executed.startswith(wanted), done.precision_executed


def test_a_fixed_batch_is_filled_up_and_cut(tmp_path, tools):
    inputs = [TensorSpec("x", [2, 8])]
    done = run_file(tools.artifact("onnx", onnx_model(tmp_path / "m.onnx", batch=2), inputs, OUT), {"x": X})
    np.testing.assert_allclose(done.outputs[1], WANTED, atol=1e-5)


def test_a_missing_input_and_a_wrong_runtime_are_the_users_errors(tmp_path, tools):
    artifact = tools.artifact("onnx", onnx_model(tmp_path / "m.onnx"), IN, OUT)
    with pytest.raises(UsageError, match="no samples for the input 'x'"):
        run_file(artifact, {"z": X})
    with pytest.raises(UsageError, match="does not run onnx"):
        run_file(artifact, {"x": X}, runtime="tflite")


@pytest.mark.parametrize("name", runtimes.names())
def test_every_runtime_file_has_all_that_is_asked_of_it(name):
    module = runtimes.find(name)
    assert module.FORMATS and isinstance(module.PACKAGES, tuple) and callable(module.load) and callable(module.version)
    for machine in ("x86_64", "aarch64", "armv7l", "riscv64"):
        for isa in ([], ["asimddp"], ["asimddp", "i8mm"], ["avx2"], ["avx2", "avx_vnni"], ["neon", "vfpv4"]):
            done = module.arithmetic(machine, isa, (*module.PACKAGES, "")[0])
            assert done.verdict in ("green", "yellow") and done.int8 and done.int4
            assert done.fix or done.verdict == "green", "a loss comes with what helps"
    # Each way to get it ends at the version that was tested, and each known crash says where it was reported.
    assert all("<=" in wheel.requirement for wheel in module.WHEELS)
    assert all(crash.source.startswith("https://") for crash in module.CRASHES)
    assert runtimes.runtime_for(module.FORMATS[0]) == name


def test_nothing_counted_is_unknown():
    assert describe({}) == describe({"": 0}) == "unknown"
    assert describe({"int8": 12, "float32": 2}) == "int8 (12 of 14 kernels; 2 float32)"


class _NoDotProducts:
    """OpenVINO's core as it is on a Cortex-A72: 8-bit convolutions are planned, and no kernel is there for them."""

    def __init__(self):
        self.asked = []

    def compile_model(self, model, device, properties):
        self.asked.append(properties)
        if properties.get("LP_TRANSFORMS_MODE") != "NO":
            raise RuntimeError("object is not initialized")
        return "compiled"


def test_8_bit_kernels_that_do_not_start_on_an_arm_cpu_give_way_to_float_and_the_record_says_so(monkeypatch):
    from edgepipe.agent.runtimes import openvino

    monkeypatch.setattr(openvino.platform, "machine", lambda: "aarch64")
    core = _NoDotProducts()
    compiled, properties, provider = openvino._compiled(core, None, openvino._properties(RunOptions()))
    assert compiled == "compiled" and len(core.asked) == 2 and properties is core.asked[-1]
    assert provider == "CPU, whose 8-bit kernels do not start on this processor"
    assert openvino._compiled(core, None, openvino._properties(RunOptions(optimize=False)))[2] == "CPU"
    monkeypatch.setattr(openvino.platform, "machine", lambda: "x86_64")
    with pytest.raises(RuntimeError, match="not initialized"):
        openvino._compiled(core, None, openvino._properties(RunOptions()))
