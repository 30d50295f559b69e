"""Each format for real: what it writes computes what the network does; what is damaged is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgepipe import artifact, model
from edgepipe.errors import EdgepipeError, IntegrityError, UsageError

from . import formats_kit as kit

LAYOUTS = {"onnx": "NCHW", "openvino": "NCHW", "tflite": "NHWC"}


@pytest.fixture(autouse=True)
def home(monkeypatch):
    kit.home()
    monkeypatch.setenv("EDGEPIPE_HOME", str(kit.home()))


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_file_computes_what_the_network_does(name):
    made = kit.made(name)
    found = made.artifact
    spec = found.inputs[0]
    assert (spec.name, spec.layout, found.preprocessing.layout) == ("image", LAYOUTS[name], LAYOUTS[name])
    assert spec.shape == ([1, 3, 8, 8] if LAYOUTS[name] == "NCHW" else [1, 8, 8, 3])
    assert (found.outputs[0].name, found.outputs[0].shape) == ("scores", [1, 4])
    outputs = kit.run(found, kit.prepared(LAYOUTS[name]))
    assert np.abs(outputs - kit.torch_outputs()).max() < 1e-5


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("step", "least"), [("fp16", 0.99999), ("dynamic", 0.999), ("int8", 0.99)])
def test_quantised_files_are_close(name, step, least):
    made = kit.made(name, step)
    outputs = kit.run(made.artifact, kit.prepared(LAYOUTS[name]))
    assert kit.cosine(outputs, kit.torch_outputs()) > least
    assert made.artifact.inputs == kit.made(name).artifact.inputs  # float32 in and out
    assert made.artifact.inputs[0].dtype == "float32"
    assert made.artifact.sha256 != kit.made(name).artifact.sha256 or made.steps[-1].note.startswith("no effect")


def test_onnx_is_one_file_that_tells_nothing_of_this_machine():
    import onnx

    found = kit.made("onnx").artifact
    assert [ref.name for ref in found.files] == ["model.onnx"]
    loaded = onnx.load(found.path, load_external_data=False)
    assert loaded.opset_import[0].version == found.opset == 20
    assert loaded.ir_version == found.ir_version == 10
    content = Path(found.path).read_bytes()
    assert str(kit.home()).encode() not in content
    assert b"site-packages" not in content


def test_onnx_int8_is_qdq_per_channel():
    import onnx

    graph = onnx.load(kit.made("onnx", "int8").artifact.path).graph
    operators = {node.op_type for node in graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= operators
    types = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 4}
    assert types == {onnx.TensorProto.INT8}
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    assert any(node.op_type == "DequantizeLinear" and sizes.get(node.input[1]) == [8] for node in graph.node)


def test_onnx_dynamic_leaves_convolutions_alone():
    import onnx

    made = kit.made("onnx", "dynamic")
    operators = [node.op_type for node in onnx.load(made.artifact.path).graph.node]
    assert "ConvInteger" not in operators
    assert operators.count("MatMulInteger") + operators.count("DynamicQuantizeMatMul") == 1
    assert made.steps[-1].note.startswith("1 of 1 MatMul and Gemm quantised; 2 Conv")


def test_tflite_int8_takes_and_gives_float():
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=kit.made("tflite", "int8").artifact.path)
    assert interpreter.get_input_details()[0]["dtype"] == np.float32
    assert interpreter.get_output_details()[0]["dtype"] == np.float32
    types = [np.dtype(detail["dtype"]).name for detail in interpreter.get_tensor_details()]
    assert types.count("int8") > 5


def test_tflite_dynamic_has_one_scale_for_each_tensor():
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=kit.made("tflite", "dynamic").artifact.path)
    details = interpreter.get_tensor_details()
    small = [detail for detail in details if detail["dtype"] == np.int8]
    assert small
    assert all(len(detail["quantization_parameters"]["scales"]) == 1 for detail in small)


def test_openvino_hash_covers_both_files(tmp_path):
    found = kit.made("openvino").artifact
    placed = artifact.copy(found, tmp_path)
    text = (tmp_path / "model.xml").read_text()
    assert found.files[1].sha256 in text
    assert model.load(placed.path).facts.parameters
    content = (tmp_path / "model.bin").read_bytes()
    (tmp_path / "model.bin").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(IntegrityError, match=r"not the one this \.xml was written with"):
        model.load(placed.path)
    (tmp_path / "model.bin").unlink()
    with pytest.raises(IntegrityError, match=r"\.bin of this OpenVINO model is missing"):
        model.load(placed.path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_files_load_as_models(name):
    found = model.load(kit.made(name).artifact.path)
    assert found.format == name
    assert found.module is None
    assert found.inputs[0].shape == kit.made(name).artifact.inputs[0].shape
    assert found.outputs[0].shape == [1, 4]
    assert found.facts.parameters == 8 * 27 + 8 + 8 * 9 + 8 + 8 * 4 + 4 or name == "tflite"
    assert found.facts.reason or found.facts.macs == kit.tiny().facts.macs


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("damage", ["empty", "truncated", "noise", "text"])
def test_damaged_files_are_typed_errors(name, damage, tmp_path):
    path = Path(artifact.copy(kit.made(name).artifact, tmp_path).path)
    content = path.read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, len(content), dtype=np.uint8).tobytes()
    path.write_bytes(
        {"empty": b"", "truncated": content[: len(content) // 2], "noise": noise, "text": b"hello"}[damage]
    )
    with pytest.raises(EdgepipeError) as caught:
        model.load(str(path))
    assert caught.value.exit_code in (4, 5)
    assert caught.value.what
    assert caught.value.fix


def onnx_model(tmp_path, change):
    import onnx

    loaded = onnx.load(kit.made("onnx").artifact.path)
    change(loaded)
    path = tmp_path / "changed.onnx"
    path.write_bytes(loaded.SerializeToString())
    return str(path)


def test_onnx_weights_that_are_no_numbers(tmp_path):
    from onnx import numpy_helper

    def change(loaded):
        tensor = next(item for item in loaded.graph.initializer if len(item.dims) == 4)
        values = numpy_helper.to_array(tensor).copy()
        values.flat[0] = np.nan
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    with pytest.raises(IntegrityError, match="NaN or infinity"):
        model.load(onnx_model(tmp_path, change))


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "link", "none", "", ".hidden", "folder"])
def test_onnx_external_data_outside_its_folder(tmp_path, location):
    (tmp_path.parent / "secret").write_bytes(b"x" * 4096)
    (tmp_path / "link").symlink_to(tmp_path.parent / "secret")
    (tmp_path / "folder").mkdir()

    def change(loaded):
        tensor = next(item for item in loaded.graph.initializer if len(item.dims) == 4)
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        tensor.external_data.add(key="location", value=location)

    with pytest.raises(IntegrityError, match="not a plain file in its folder"):
        model.load(onnx_model(tmp_path, change))


def test_onnx_external_data_beside_it_is_taken_in(tmp_path):
    import onnx

    from edgepipe import export
    from edgepipe.cache import Cache

    loaded = onnx.load(kit.made("onnx").artifact.path)
    path = tmp_path / "big.onnx"
    onnx.save(loaded, path, save_as_external_data=True, location="big.data", size_threshold=0)
    assert (tmp_path / "big.data").stat().st_size
    found = model.load(str(path))
    made = export.make(found, "none", "onnx", cache=Cache(kit.home() / "work"))
    assert np.abs(kit.run(made.artifact, kit.prepared("NCHW")) - kit.torch_outputs()).max() < 1e-5
    assert len(made.artifact.files) == 1


def test_onnx_external_data_that_is_too_short(tmp_path):
    import onnx

    path = tmp_path / "big.onnx"
    loaded = onnx.load(kit.made("onnx").artifact.path)
    onnx.save(loaded, path, save_as_external_data=True, location="big.data", size_threshold=0)
    (tmp_path / "big.data").write_bytes(b"short")
    with pytest.raises(IntegrityError, match="not a sound ONNX model"):
        model.load(str(path))


def test_an_onnx_output_without_a_shape_gets_the_one_that_follows(tmp_path):
    """Runtimes need none; a file that runs is not called damaged for it."""
    found = model.load(onnx_model(tmp_path, lambda loaded: loaded.graph.output[0].type.tensor_type.ClearField("shape")))
    assert found.outputs == model.load(kit.made("onnx").artifact.path).outputs


def test_shapes_that_contradict_each_other(tmp_path):
    from edgepipe import export
    from edgepipe.cache import Cache

    def change(loaded):
        loaded.graph.output[0].type.tensor_type.shape.dim[1].dim_value += 1

    found = model.load(onnx_model(tmp_path, change))
    with pytest.raises(IntegrityError, match="contradict each other"):
        export.make(found, "none", "onnx", cache=Cache(kit.home() / "work"))


def test_a_custom_operator_of_tflite_is_named(tmp_path):
    """It is no damage: the file is sound, and the runtime lacks the operator."""
    from ai_edge_litert.tools import flatbuffer_utils

    found = flatbuffer_utils.read_model(kit.made("tflite").artifact.path)
    code = found.operatorCodes[found.subgraphs[0].operators[-1].opcodeIndex]
    code.builtinCode = code.deprecatedBuiltinCode = 32  # CUSTOM
    code.customCode = b"Nowhere"
    flatbuffer_utils.write_model(found, str(tmp_path / "m.tflite"))
    with pytest.raises(UsageError, match="LiteRT has no custom operator Nowhere"):
        model.load(str(tmp_path / "m.tflite"))


def test_an_xml_bomb_is_not_unpacked(tmp_path):
    shutil.copy(Path(kit.made("openvino").artifact.path).with_suffix(".bin"), tmp_path / "m.bin")
    entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
    bomb = (
        f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a0 "aaaaaaaaaa">{entities}]><net name="&a11;" version="11"></net>'
    )
    (tmp_path / "m.xml").write_text(bomb)
    with pytest.raises(EdgepipeError):
        model.load(str(tmp_path / "m.xml"))


def test_of_a_sparse_tflite_tensor_what_is_stored_counts(tmp_path):
    """MediaPipe's sparse models keep the blocks that are not all zero; their values are fewer than the shape says."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    from edgepipe.formats.tflite import inspect

    source = kit.made("tflite").artifact.path
    before, found = inspect.weights(source), flatbuffer_utils.read_model(source)
    tensor = next(one for one in found.subgraphs[0].tensors if one.shape is not None and len(one.shape) == 4 and
                  found.buffers[one.buffer].data is not None)  # fmt: skip
    tensor.sparsity = schema.SparsityParametersT()
    values = np.frombuffer(bytes(found.buffers[tensor.buffer].data), np.float32)
    kept = np.array([1.0, 0.0, 2.0], np.float32)
    found.buffers[tensor.buffer].data = np.frombuffer(kept.tobytes(), np.uint8)
    flatbuffer_utils.write_model(found, str(tmp_path / "m.tflite"))
    after = inspect.weights(str(tmp_path / "m.tflite"))
    assert after["stored"] == before["stored"] - values.size + 3
    assert after["zeros"] == before["zeros"] - int((values == 0).sum()) + 1


@pytest.mark.parametrize("format_name", ["onnx", "tflite"])
def test_free_sizes_of_one_name_get_each_what_is_said(format_name, tmp_path):
    """Paddle's exporter calls all of them by one name, and writes -1 for a batch."""
    from onnx import TensorProto, helper, save

    from edgepipe import export
    from edgepipe.cache import Cache

    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, "free", "free"])
    given.type.tensor_type.shape.dim[0].dim_value = -1
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, 1, 1])
    graph = helper.make_graph([helper.make_node("GlobalAveragePool", ["x"], ["y"])], "g", [given], [made])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    found = model.load(str(tmp_path / "m.onnx"), [3, 8, 12])
    result = export.make(found, "none", format_name, cache=Cache(kit.home() / "work")).artifact
    assert result.inputs[0].shape == [1, 3, 8, 12]
