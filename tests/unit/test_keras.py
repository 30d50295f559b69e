"""Keras files, SavedModels and frozen graphs: every way out gives TensorFlow's answers, and bad ones are refused."""

import io
import json
import shutil
import zipfile

import numpy as np
import pytest

from edgepipe import export, made_up, model
from edgepipe.artifact import ExportOptions
from edgepipe.cache import Cache
from edgepipe.errors import EdgepipeError, IntegrityError, UsageError
from tests.unit import formats_kit as kit
from tests.unit import keras_kit

pytestmark = keras_kit.needs_tensorflow


@pytest.fixture(autouse=True)
def home(monkeypatch):
    monkeypatch.setenv("EDGEPIPE_HOME", str(kit.home()))


def made(name, format_name, **options):
    source = model.load(str(keras_kit.files() / name))
    return export.make(source, "none", format_name, ExportOptions(**options), cache=Cache(kit.home() / "work"))


@pytest.mark.parametrize(
    ("name", "format_name"),
    [
        *(("net.keras", name) for name in ("onnx", "tflite", "openvino")),
        ("net.h5", "tflite"),
        ("net.pb", "onnx"),
        ("saved", "openvino"),
    ],
)
def test_gives_the_answers_of_tensorflow(name, format_name):
    with np.load(keras_kit.files() / "answers.npz") as answers:
        image, scores = answers["image"], answers["scores"]
    have = kit.run(made(name, format_name).artifact, image)
    assert np.abs(have - scores).max() < 1e-4


def test_says_what_is_inside():
    found = model.load(str(keras_kit.files() / "net.keras"))
    assert [(spec.name, spec.shape, spec.dtype) for spec in found.inputs] == [("image", [-1, 8, 8, 3], "float32")]
    assert found.outputs[0].shape == [-1, 5]
    # weights of the folded graph: 3*3*3*4 + 4, batch normalisation 4*4, 3*3*4 + 4, 4*5 + 5
    assert found.facts.parameters >= 112 + 16 + 40 + 25
    assert found.facts.macs == 6 * 6 * 4 * 27 + 6 * 6 * 4 * 9 + 4 * 5


def test_a_saved_model_is_named_by_its_folder():
    assert model.load(str(keras_kit.files() / "saved")).name == "saved"


@pytest.mark.parametrize("format_name", ["tflite", "openvino"])
def test_two_inputs_and_outputs_keep_their_order(format_name):
    found = made("two.keras", format_name).artifact
    sizes = [[spec.shape[-1] for spec in side] for side in (found.inputs, found.outputs)]
    assert sizes == [[4, 6], [2, 3]]
    assert [spec.name for spec in found.inputs] == ["a", "b"]


def test_an_open_batch():
    assert made("plain.keras", "onnx", dynamic={"": [0]}).artifact.inputs[0].shape == [-1, 4]


def test_control_flow_of_a_recurrent_layer():
    assert made("lstm.keras", "openvino", batch=3).artifact.bytes > 0


def test_open_sizes_are_asked_for():
    path = str(keras_kit.files() / "open.keras")
    with pytest.raises(UsageError, match="leaves its size open"):
        model.load(path)
    assert model.load(path, [16, 12, 3]).inputs[0].shape == [-1, 16, 12, 3]
    with pytest.raises(UsageError, match="is \\[-1, -1, 3\\], not"):
        model.load(path, [16, 12, 4])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lambda.keras", "Python code"),
        ("lambda.h5", "Python code"),
        ("words", "of type string"),
        ("reader", "ReadFile"),
        ("complex", "of type complex64"),
        ("only.weights.h5", "weights without their network"),
    ],
)
def test_refused_with_the_reason(name, words):
    with pytest.raises(UsageError, match=words):
        model.load(str(keras_kit.files() / name))


@pytest.mark.parametrize("name", ["net.keras", "net.h5", "net.pb"])
def test_damaged_files(name, tmp_path):
    content = (keras_kit.files() / name).read_bytes()
    for damage in (b"", b"hello\n", content[: len(content) // 2]):
        path = tmp_path / name
        path.write_bytes(damage)
        with pytest.raises((IntegrityError, UsageError)) as caught:
            model.load(str(path))
        assert "Traceback" not in caught.value.what
        assert caught.value.fix


def changed(tmp_path, change, name="plain.keras"):
    """The small model with its entries changed: ``change`` gets and returns name -> bytes."""
    with zipfile.ZipFile(keras_kit.files() / name) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    path = tmp_path / "changed.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, content in change(entries).items():
            archive.writestr(entry, content)
    return str(path)


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    path = changed(tmp_path, lambda entries: {**entries, "model.weights.h5": bytes(256 << 20)})
    with pytest.raises(IntegrityError, match="would unpack to"):
        model.load(path)


def test_code_named_in_the_description_is_not_run(tmp_path):
    """CVE-2025-1550: any module and function could be named in config.json."""
    witness = tmp_path / "witness"

    def hostile(entries):
        config = json.loads(entries["config.json"])
        config["config"]["layers"][-1]["config"]["kernel_initializer"] = {
            "module": "os", "class_name": "system", "config": {"command": f"touch {witness}"}, "registered_name": None
        }  # fmt: skip
        return {**entries, "config.json": json.dumps(config)}

    with pytest.raises(UsageError, match="code that the file does not hold"):
        model.load(changed(tmp_path, hostile))
    assert not witness.exists()


def test_a_layer_of_a_script_is_named(tmp_path):
    """Keras 3 says of it that it has no module; what it is to be built with stands in the script alone."""

    def own(entries):
        config = json.loads(entries["config.json"])
        config["config"]["layers"][-1] |= {"module": None, "class_name": "Mine", "registered_name": "Mine"}
        return {**entries, "config.json": json.dumps(config)}

    with pytest.raises(UsageError, match="Mine is code that the file does not hold"):
        model.load(changed(tmp_path, own))


def test_an_unknown_layer_of_an_older_file_is_named(tmp_path):
    import h5py

    path = shutil.copy(keras_kit.files() / "net.h5", tmp_path / "old.h5")
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        layer = config["config"]["layers"][-1]
        layer["class_name"] = "Mine"
        for key in ("module", "registered_name"):
            layer.pop(key, None)
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(UsageError, match="Mine is code that the file does not hold"):
        model.load(str(path))


def test_weights_in_another_file_are_not_read(tmp_path):
    import h5py

    secret = tmp_path / "secret"
    secret.write_bytes(np.ones(64, np.float32).tobytes())

    def hostile(entries):
        held = io.BytesIO()
        with h5py.File(held, "w") as file:
            group = file.create_group("layers/dense/vars")
            group.create_dataset("0", (4, 3), "f4", external=[(str(secret), 0, 48)])
            group["1"] = h5py.ExternalLink(str(secret), "/")
        return {**entries, "model.weights.h5": held.getvalue()}

    with pytest.raises(IntegrityError, match=r"another file|is a link"):
        model.load(changed(tmp_path, hostile))


def test_more_weights_declared_than_there_are(tmp_path):
    import h5py

    def hostile(entries):
        held = io.BytesIO()
        with h5py.File(held, "w") as file:
            file.create_dataset("layers/dense/vars/0", (1 << 20, 1 << 14), "f4", chunks=(1024, 1024))
        return {**entries, "model.weights.h5": held.getvalue()}

    with pytest.raises(IntegrityError, match="declares"):
        model.load(changed(tmp_path, hostile))


def test_a_saved_model_with_links_is_refused(tmp_path):
    folder = tmp_path / "linked"
    shutil.copytree(keras_kit.files() / "saved", folder)
    (folder / "variables" / "extra").symlink_to("/etc/hostname")
    with pytest.raises(IntegrityError, match="not a plain file"):
        model.load(str(folder))


def test_without_tensorflow_the_command_is_named(monkeypatch, tmp_path):
    import importlib.util

    path = tmp_path / "a.keras"
    path.write_bytes(b"x")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EdgepipeError) as caught:
        from edgepipe.formats.keras.load import require

        require(str(path))
    assert "pip install" in caught.value.fix


@pytest.mark.parametrize("name", ["net.keras", "net.pb"])
def test_the_first_rung_is_held_against_tensorflow_itself(name, tmp_path):
    found = model.load(str(keras_kit.files() / name))
    made = export.make(found, "none", "tflite", cache=Cache(kit.home() / "work"))
    shown = made_up.climb(found, made)
    assert len(shown.parity) == 1, shown
    rung = shown.parity[0]
    assert rung.rung == "exported" and rung.max_abs is not None and 0 <= rung.max_abs < 1e-4 and not shown.cautions
