"""Quantised OpenVINO files: ranges, biases, layers kept, what is stored, and what is refused."""

import inspect as source_of
import os
from pathlib import Path

import numpy as np
import pytest

from edgepipe import export, model
from edgepipe.artifact import ExportOptions
from edgepipe.cache import Cache
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.formats.openvino import graph, inspect, quantize, static

from . import compress_kit
from . import formats_kit as kit

PARAMS = {"method": "minmax", "percentile": 99.99, "weights": "channel", "activations": "asymmetric", "bias": "on"}


@pytest.fixture(autouse=True)
def home(monkeypatch):
    kit.home()
    monkeypatch.setenv("EDGEPIPE_HOME", str(kit.home()))


@pytest.fixture(scope="module", autouse=True)
def quiet():
    os.environ["NNCF_CI"] = "1"  # as the child process that does this for users has it: no statistics are sent
    import nncf

    nncf.set_log_level("ERROR")


@pytest.fixture(scope="module")
def files():
    """Float files of three kinds of network, exported by edgepipe."""
    kit.use_home()
    found = {"tiny": Path(kit.made("openvino").artifact.path)}
    for name in ("depthwise", "encoder"):
        folder = kit.write_model(kit.home() / "models" / name)
        cls = compress_kit.NETWORKS[name]
        head = "import torch\nfrom torch import nn\n\n\n"
        tail = f"\n\ndef build():\n    return {cls.__name__}()\n"
        (folder / "model.py").write_text(head + source_of.getsource(cls) + tail)
        save(compress_kit.network(name), folder)
        made = export.make(model.load(str(folder)), "none", "openvino", cache=Cache(kit.home() / "work"))
        found[name] = Path(made.artifact.path)
    return found


def save(network, folder):
    import hashlib

    from safetensors.torch import save_file

    save_file(network.state_dict(), folder / "weights.safetensors")
    card = (folder / "model.toml").read_text().splitlines()
    sha = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    card = [f'weights_sha256 = "{sha}"' if line.startswith("weights_sha256") else line for line in card]
    (folder / "model.toml").write_text("\n".join(card))


def data(folder, array=None, name="image"):
    path = folder / "calibration.npz"
    np.savez(path, **{name: kit.prepared("NCHW") if array is None else array})
    return str(path)


def int8(source, folder, keep=(), array=None, *, reduce_range=False, **params):
    folder.mkdir(exist_ok=True)
    target = folder / "model.xml"
    facts = static.int8(
        str(source), str(target), data(folder, array), ["image"], {**PARAMS, **params}, reduce_range, list(keep)
    )
    return target, facts["note"]


def read(path):
    import openvino

    return openvino.Core().read_model(str(path))


def run(path, feeds=None):
    import openvino

    compiled = openvino.Core().compile_model(str(path), "CPU", kit.openvino_exact())
    feeds = kit.prepared("NCHW") if feeds is None else feeds
    return np.concatenate([compiled(x[None])[0].copy() for x in feeds])


def noise_db(path, like, feeds=None):
    a, b = run(like, feeds), run(path, feeds)
    return 10 * np.log10(((a - b) ** 2).sum() / (a**2).sum() + 1e-30)


def ops(path, kind):
    return [op for op in read(path).get_ordered_ops() if op.get_type_name() == kind]


@pytest.mark.parametrize("name", ["tiny", "depthwise", "encoder"])
@pytest.mark.parametrize(
    ("params", "most"),
    [
        ({}, -26),
        ({"method": "percentile"}, -26),
        ({"method": "mse"}, -26),
        ({"method": "entropy"}, -5),
        ({"activations": "symmetric"}, -24),
        ({"weights": "tensor"}, -20),
        ({"bias": "off"}, -24),
    ],
    ids=str,
)
def test_every_kind_of_network_by_every_method(files, tmp_path, name, params, most):
    path, note = int8(files[name], tmp_path, **params)
    assert noise_db(path, files[name]) < most
    assert f"{params.get('method', 'minmax')} over 32 samples" in note
    assert ("SmoothQuant" in note) == (name == "encoder")
    assert ("biases corrected" in note) == (params.get("bias") != "off")
    assert inspect.weights(str(path))["stored"] >= inspect.weights(str(files[name]))["stored"] - 1


def test_minmax_is_what_was_seen(files, tmp_path):
    path, _ = int8(files["tiny"], tmp_path)
    first = ops(path, "FakeQuantize")[0]
    low, high = (float(first.input_value(port).get_node().get_data()) for port in (1, 2))
    step = (high - low) / 255
    seen = kit.prepared("NCHW")
    assert low == pytest.approx(seen.min(), abs=step)
    assert high == pytest.approx(seen.max(), abs=step)
    assert low / step == pytest.approx(round(low / step), abs=1e-3)  # zero is a level
    path, _ = int8(files["tiny"], tmp_path, activations="symmetric")
    found = ops(path, "FakeQuantize")
    low, high = (float(found[0].input_value(port).get_node().get_data()) for port in (1, 2))
    assert low == pytest.approx(-high * 128 / 127, rel=1e-5)
    assert float(found[1].input_value(1).get_node().get_data()) == 0  # after a ReLU: all levels for what is positive


def test_scales_of_weights(files, tmp_path):
    for words, sizes in (("channel", {8, 4}), ("tensor", {1})):
        path, _ = int8(files["tiny"], tmp_path, weights=words)
        scales = [
            op.input_value(1).get_node().get_data().size
            for op in ops(path, "Multiply")
            if op.input_value(0).get_node().get_type_name() == "Convert"
        ]
        assert set(scales) == sizes


def test_reduce_range_leaves_a_bit_out(files, tmp_path):
    """The first layer does so in any case; NNCF lets depthwise layers be, whose kernels do not saturate."""
    largest = []
    for reduce_range in (False, True):
        path, _ = int8(files["depthwise"], tmp_path, reduce_range=reduce_range)
        for layer in ops(path, "Convolution"):
            weights = layer.input_value(1).get_node()
            while weights.get_type_name() != "Constant":
                weights = weights.input_value(0).get_node()
            largest.append(np.abs(weights.get_data().astype(int)).max())
    assert [value > 64 for value in largest] == [False, True, False, False]


def test_a_corrected_bias_undoes_the_shift(files, tmp_path):
    """Rounding is made coarse by one scale for each tensor; the mean of the outputs comes back."""
    shifts = []
    for bias in ("on", "off"):
        path, _ = int8(files["depthwise"], tmp_path, weights="tensor", bias=bias)
        shifts.append(np.abs(run(path).mean(0) - run(files["depthwise"]).mean(0)).mean())
    assert shifts[0] < shifts[1]


def test_layers_and_keep_by_names_of_any_kind(files, tmp_path):
    import openvino

    found = quantize.layers(str(files["tiny"]))
    assert [(layer["op"], layer["weights"]) for layer in found] == [
        ("Convolution", 8 * 27),
        ("GroupConvolution", 8 * 9),
        ("ReduceMean", 0),
        ("MatMul", 8 * 4),
    ]
    renamed = read(files["tiny"])
    nodes = {op.get_friendly_name(): op for op in renamed.get_ordered_ops()}
    strange = ["a.*(b)+[c]/d$ ^|", "{re}.*", "Ünï x", "no\\d"]
    for layer, name in zip(found, strange, strict=True):
        nodes[layer["name"]].set_friendly_name(name)
    openvino.save_model(renamed, str(tmp_path / "strange.xml"), compress_to_fp16=False)
    assert [layer["name"] for layer in quantize.layers(str(tmp_path / "strange.xml"))] == strange
    path, _ = int8(tmp_path / "strange.xml", tmp_path / "out", keep=strange[:1])
    (kept,), (quantised,) = ops(path, "Convolution"), ops(path, "GroupConvolution")
    assert kept.input_value(0).get_node().get_type_name() == "Parameter"
    assert kept.input_value(1).get_node().get_element_type().to_string() == "f32"
    assert quantised.input_value(0).get_node().get_type_name() == "FakeQuantize"
    path, note = int8(tmp_path / "strange.xml", tmp_path / "none", keep=strange)
    assert note.startswith("no effect")
    assert not ops(path, "FakeQuantize")
    with pytest.raises(UsageError, match="no such layer: nobody"):
        int8(files["tiny"], tmp_path, keep=["nobody"])


def test_attention_is_a_layer_and_is_seen(files):
    assert not graph.has_attention(read(files["tiny"]))
    assert graph.has_attention(read(files["encoder"]))
    found = {layer["op"]: layer["weights"] for layer in quantize.layers(str(files["encoder"]))}
    assert found["ScaledDotProductAttention"] == 0
    assert found["MatMul"] > 0


def test_attention_written_out_is_seen_and_a_classifier_is_not():
    import openvino
    from openvino import opset13 as op

    x = op.parameter([1, 4, 8], np.float32)
    product = op.matmul(x, x, transpose_a=False, transpose_b=True)
    mixed = op.matmul(op.softmax(product, 2), x, transpose_a=False, transpose_b=False)
    assert graph.has_attention(openvino.Model([op.result(mixed)], [x]))
    x = op.parameter([1, 8], np.float32)
    scores = op.matmul(op.softmax(x, 1), op.constant(np.ones((8, 2), np.float32)), False, False)
    assert not graph.has_attention(openvino.Model([op.result(scores)], [x]))


def test_what_feeds_a_concatenation_shares_a_range(tmp_path):
    import openvino
    from openvino import opset13 as op

    random = np.random.default_rng(0)
    x = op.parameter([1, 3, 8, 8], np.float32)
    x.set_friendly_name("image")
    x.output(0).set_names({"image"})

    def conv(of, channels, gain):
        weights = random.normal(size=(4, channels, 3, 3)).astype(np.float32) * gain
        ones = (np.array([1, 1]), np.array([1, 1]), np.array([1, 1]), np.array([1, 1]))
        return op.relu(op.convolution(of, op.constant(weights), *ones))

    both = op.concat([conv(x, 3, 1.0), conv(x, 3, 10.0)], 1)
    openvino.save_model(openvino.Model([op.result(conv(both, 8, 1.0))], [x]), str(tmp_path / "c.xml"))
    path, _ = int8(tmp_path / "c.xml", tmp_path / "out")
    (concat,) = ops(path, "Concat")
    highs = {
        float(port.get_source_output().get_node().input_value(2).get_node().get_data()) for port in concat.inputs()
    }
    assert len(highs) == 1
    assert noise_db(path, tmp_path / "c.xml") < -25


def test_the_kernel_that_goes_wrong_is_gone_round(files, tmp_path):
    """A mean over tokens, a factor for each channel, a quantiser: the plug-in mixes the channels up (see graph.py)."""
    path, _ = int8(files["encoder"], tmp_path)
    names, node = [], ops(path, "MatMul")[-1]
    while node.get_type_name() != "ReduceMean":
        node = node.input_value(0).get_node()
        names.append(node.get_type_name())
    assert names == ["FakeQuantize", "Multiply", "Squeeze", "ReduceMean"]
    assert node.get_attributes()["keep_dims"]


def changed(path, folder, change):
    """The file with its float weights run through ``change``, the first layer's first."""
    import openvino
    from openvino import opset13

    loaded = read(path)
    for number, (_, constant) in enumerate(list(graph.weighted(loaded))):
        values = np.array(constant.get_data())
        change(number, values)
        new = opset13.constant(values)
        for target in constant.output(0).get_target_inputs():
            target.replace_source_output(new.output(0))
    openvino.save_model(loaded, str(folder / "changed.xml"), compress_to_fp16=False)
    return folder / "changed.xml"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_named(files, tmp_path, value):
    def change(number, values):
        if number == 1:
            values.flat[0] = value

    broken = changed(files["tiny"], tmp_path, change)
    name = quantize.layers(str(files["tiny"]))[1]["name"]
    for work in (lambda: int8(broken, tmp_path), lambda: quantize.int8w(str(broken), str(tmp_path / "model.xml"))):
        with pytest.raises(IntegrityError, match="NaN or infinity") as caught:
            work()
        assert name in caught.value.what
    assert not (tmp_path / "model.xml").exists()


def test_an_activation_that_overflows_is_named(files, tmp_path):
    def change(number, values):
        values *= 3e38 if number == 1 else 1

    broken = changed(files["tiny"], tmp_path, change)
    with pytest.raises(IntegrityError, match="NaN or infinity in tensor"):
        int8(broken, tmp_path)


def test_channels_of_zeros(files, tmp_path):
    def change(number, values):
        values[:2] = 0

    dead = changed(files["depthwise"], tmp_path, change)
    for weights in ("channel", "tensor"):
        path, _ = int8(dead, tmp_path, weights=weights)
        assert np.isfinite(run(path)).all()
        assert noise_db(path, dead) < -20
    zeros = inspect.weights(str(path))["zeros"]
    assert zeros >= inspect.weights(str(dead))["zeros"] > 0


def test_data_of_zeros(files, tmp_path):
    path, _ = int8(files["tiny"], tmp_path, array=np.zeros((4, 3, 8, 8), np.float32))
    assert np.isfinite(run(path)).all()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), "shape"),
        (np.zeros((4, 3, 8), np.float32), "shape"),
        (np.zeros((0, 3, 8, 8), np.float32), "shape"),
        (np.zeros((4, 3, 8, 8), "U1"), "shape"),
        (np.full((4, 3, 8, 8), np.nan, np.float32), "NaN or infinity"),
    ],
)
def test_data_that_does_not_fit(files, tmp_path, array, words):
    with pytest.raises(IntegrityError, match=words):
        int8(files["tiny"], tmp_path, array=array)
    assert not (tmp_path / "model.xml").exists()


def test_data_without_the_input(files, tmp_path):
    path = data(tmp_path, name="other")
    with pytest.raises(IntegrityError, match="lacks the input image"):
        static.int8(str(files["tiny"]), str(tmp_path / "model.xml"), path, ["image"], PARAMS, False, [])


def test_one_sample_and_whole_numbers_will_do(files, tmp_path):
    path, note = int8(files["encoder"], tmp_path, array=kit.prepared("NCHW", 1))
    assert "over 1 samples" in note
    path, _ = int8(files["tiny"], tmp_path, array=np.arange(8 * 3 * 64).reshape(8, 3, 8, 8) % 5)
    assert np.isfinite(run(path)).all()


def test_nothing_to_quantise(tmp_path):
    import openvino
    from openvino import opset13 as op

    x = op.parameter([1, 3, 8, 8], np.float32)
    x.output(0).set_names({"image"})
    openvino.save_model(openvino.Model([op.result(op.relu(x))], [x]), str(tmp_path / "relu.xml"))
    path, note = int8(tmp_path / "relu.xml", tmp_path / "out")
    assert note.startswith("no effect")
    assert noise_db(path, tmp_path / "relu.xml") < -250
    facts = quantize.int8w(str(tmp_path / "relu.xml"), str(tmp_path / "out" / "model.xml"))
    assert facts["note"].startswith("no effect")
    assert quantize.layers(str(tmp_path / "relu.xml")) == []


def test_weights_alone(files, tmp_path):
    target = tmp_path / "model.xml"
    float_file = inspect.weights(str(files["encoder"]))
    size = files["encoder"].with_suffix(".bin").stat().st_size
    facts = quantize.int8w(str(files["encoder"]), str(target))
    assert noise_db(target, files["encoder"]) < -35
    assert target.with_suffix(".bin").stat().st_size < 0.4 * size
    assert inspect.weights(str(target))["stored"] == float_file["stored"]
    facts = quantize.int4(str(files["encoder"]), str(target), group=32)
    assert noise_db(target, files["encoder"]) < -12
    assert target.with_suffix(".bin").stat().st_size < 0.25 * size
    assert inspect.weights(str(target))["stored"] == float_file["stored"]
    assert "int4 in groups of 32" in facts["note"]
    assert "in groups of 16" in facts["note"]  # 48 inputs: 32 does not divide them
    facts = quantize.int4(str(files["depthwise"]), str(target), group=32)
    assert "as int8 with one scale for each channel" in facts["note"]  # its convolutions


def test_refused_before_any_work(files, tmp_path):
    def call(*given):
        raise AssertionError("work was done")

    source = kit.made("openvino").artifact
    for step, change, what, fix in (
        ("int8", {"scheme": "w8a16"}, "16-bit activations", "w8a8"),
        ("mixed", {"scheme": "w8a16"}, "16-bit activations", "w8a8"),
        ("int8w", {"group": 32}, "one scale for each channel", "int4"),
        ("int4", {"group": 4}, "no smaller than int8", "int8w"),
    ):
        params = {**quantize.DEFAULTS[step], **change}
        with pytest.raises(UsageError, match=what) as caught:
            quantize.quantize(source, step, params, tmp_path / "none.npz", tmp_path, ExportOptions(), call)
        assert fix in caught.value.fix


def test_zeros_are_counted_in_every_precision(files, tmp_path):
    def change(number, values):
        values.flat[: values.size // 2] = 0

    sparse = changed(files["encoder"], tmp_path, change)
    counted = inspect.weights(str(sparse))
    assert counted["zeros"] >= 0.4 * counted["stored"]
    path, _ = int8(sparse, tmp_path / "out")
    for work in (quantize.fp16, quantize.int8w):
        work(str(sparse), str(tmp_path / "model.xml"))
        assert inspect.weights(str(tmp_path / "model.xml"))["zeros"] >= counted["zeros"]
    assert inspect.weights(str(path))["zeros"] >= counted["zeros"]
