"""`edgepipe inspect` on a file of each format."""

import json

import pytest

from edgepipe import inspection
from edgepipe.cli.inspect import command
from edgepipe.errors import EdgepipeError
from tests.unit import formats_kit as kit
from tests.unit import keras_kit


@pytest.fixture(autouse=True)
def home(monkeypatch):
    monkeypatch.setenv("EDGEPIPE_HOME", str(kit.home()))


@pytest.mark.parametrize(
    ("format_name", "op"), [("onnx", "Conv"), ("tflite", "CONV_2D"), ("openvino", "GroupConvolution")]
)
def test_an_exported_file(format_name, op):
    found = inspection.inspect(kit.made(format_name).artifact.path)
    assert found["schema"] == "edgepipe.inspect/1"
    assert found["format"] == format_name
    assert found["ops"][op] >= 1
    assert found["macs"] == kit.tiny().facts.macs
    assert found["bytes"] == kit.made(format_name).artifact.bytes
    assert found["precision"]["float"] == sum(
        count for kind, count in found["precision"]["by_dtype"].items() if "float" in kind
    )
    assert found["precision"]["text"].endswith("tensors are float")
    assert found["exports"][format_name]["path"] == [format_name]
    if format_name != "onnx":
        assert (
            "exact counterpart" in found["exports"]["onnx"]["reason"] or "its own" in found["exports"]["onnx"]["reason"]
        )
    rows = {row["target"]: row for row in found["targets"]}
    assert rows["rpi4"]["runs"] is True
    assert rows["local"]["runs"] is None
    assert "doctor" in rows["local"]["reason"]


def test_a_torch_model():
    found = inspection.inspect(str(kit.tiny().folder))
    assert found["format"] == "torch"
    assert found["ops"]["aten.conv2d.default"] == 2
    assert found["dynamic"] == ["image[0]"]
    assert found["exports"]["tflite"]["path"] == ["torch", "tflite"]
    assert all(row["runs"] is None and row["reason"] for row in found["targets"])


@keras_kit.needs_tensorflow
def test_a_saved_model():
    found = inspection.inspect(str(keras_kit.files() / "saved"))
    assert found["ops"]["Conv2D"] == 1
    assert found["metadata"]["signature"] == "serving_default"
    assert found["exports"]["onnx"]["path"] == ["tensorflow", "onnx"]


def test_one_document_and_a_table(capsys):
    command(kit.made("tflite").artifact.path, json=True)
    out, told = capsys.readouterr()
    assert json.loads(out)["metadata"]["schema_version"] == 3
    assert "tensors are float" in told
    assert "rpi4" in told


@pytest.mark.parametrize("suffix", [".onnx", ".tflite", ".xml", ".pt2", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"just text\n"])
def test_what_is_no_model(tmp_path, suffix, content):
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    with pytest.raises(EdgepipeError) as caught:
        inspection.inspect(str(path))
    assert caught.value.exit_code in (2, 5)
    assert caught.value.fix
