"""Quantisation of TFLite files: what each word of a step does to the file, and what bad input gets."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgepipe import export, isolate
from edgepipe.agent import runtimes
from edgepipe.artifact import ExportOptions
from edgepipe.cache import Cache
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.formats.tflite import graph, inspect, layers, quantize, ranges, static, weights_only
from edgepipe.schema import RunOptions

from . import formats_kit as kit

INT8 = quantize.DEFAULTS["int8"]


@pytest.fixture(autouse=True)
def home(monkeypatch):
    kit.home()
    monkeypatch.setenv("EDGEPIPE_HOME", str(kit.home()))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An .npz of calibration data as the stages write it."""
    kit.home()
    path = tmp_path_factory.mktemp("data") / "calibration.npz"
    np.savez(path, image=kit.prepared("NHWC"))
    return str(path)


def source():
    return kit.made("tflite").artifact.path


def changed(tmp_path, change):
    """The float file after ``change(model)``."""
    model = graph.read(source())
    change(model)
    path = tmp_path / "changed.tflite"
    path.write_bytes(graph.pack(model))
    return str(path)


def set_weights(layer, values):
    """A change that gives a layer, by its place among the layers, other weights or (slot 2) another bias."""

    def change(model, slot=1):
        found = layers.find(model)[layer]
        old = graph.constant(model, found.weights if slot == 1 else found.bias)
        graph.set_constant(model, found.index, slot, values(old.copy()))

    return change


def run(path, feeds):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    found = []
    for x in feeds:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).copy())
    return np.concatenate(found)


def int8(tmp_path, data, path=None, **words):
    target = tmp_path / "int8.tflite"
    note = static.int8(path or source(), str(target), data, ["image"], 1, **words)
    return target, note


def tensors(path, kind):
    """The tensors of one type that hold content in the file."""
    model = graph.read(str(path))
    held = [tensor for tensor in model.subgraphs[0].tensors if model.buffers[tensor.buffer].data is not None]
    return [tensor for tensor in held if graph.kind(tensor) == kind]


@pytest.mark.parametrize(
    ("words", "least"),
    [
        ({}, 0.99),
        ({"method": "percentile"}, 0.99),
        ({"method": "mse"}, 0.99),
        ({"method": "entropy"}, 0.95),
        ({"activations": "symmetric"}, 0.98),
        ({"weights": "tensor"}, 0.98),
        ({"bias": "off"}, 0.99),
        ({"scheme": "w8a16"}, 0.9999),
        ({"scheme": "w8a16", "weights": "tensor", "method": "percentile", "bias": "off"}, 0.995),
    ],
)
def test_every_word_of_int8(tmp_path, data, words, least):
    target, note = int8(tmp_path, data, **words)
    assert kit.cosine(run(target, kit.prepared("NHWC")), kit.torch_outputs()) > least
    assert f"{words.get('method', 'minmax')} over 32 samples; 3 of 3 layers" in note
    scales = [len(tensor.quantization.scale) for tensor in tensors(target, "INT8")]
    assert scales == ([1, 1, 1] if "tensor" in words.values() else scales)
    assert max(scales) == (1 if "tensor" in words.values() else 8)
    flowing = [
        tensor
        for tensor in graph.read(str(target)).subgraphs[0].tensors
        if graph.kind(tensor) == ("INT16" if "w8a16" in words.values() else "INT8")
        and tensor.quantization.zeroPoint is not None
    ]
    points = {int(tensor.quantization.zeroPoint[0]) for tensor in flowing}
    assert (points == {0}) == ("symmetric" in words.values() or "w8a16" in words.values())


def test_methods_give_other_files(tmp_path, data):
    words = ({}, {"method": "entropy"}, {"method": "percentile", "percentile": 95.0})
    assert len({int8(tmp_path, data, **word)[0].read_bytes() for word in words}) == 3


def test_bias_correction_takes_the_mean_error_away(tmp_path, data):
    """Rounding weights coarsely shifts outputs on average; the corrected bias brings the average back."""
    coarse = changed(tmp_path, set_weights(0, lambda w: w + (np.arange(8).reshape(8, 1, 1, 1) == 0) * 6))
    feeds = kit.prepared("NHWC")
    wanted, shifts = run(coarse, feeds), []
    for word in ("on", "off"):
        target, _ = int8(tmp_path, data, coarse, weights="tensor", bias=word)
        shifts.append(np.linalg.norm((run(target, feeds) - wanted).mean(0)))
    assert shifts[0] < 0.7 * shifts[1]


@pytest.mark.parametrize(("padding", "stride", "gap", "depth"), [(0, 2, 1, False), (1, 1, 2, False), (0, 2, 1, True)])
def test_what_each_weight_meets(padding, stride, gap, depth):
    """The mean output of a convolution is its output for the means: held against a convolution written out by hand."""
    from types import SimpleNamespace as Space

    random = np.random.default_rng(0)
    height, width, channels, kernel = 7, 6, 4, 3
    image = random.normal(size=(1, height, width, channels))
    reach = (kernel - 1) * gap + 1
    sizes = [-(-n // stride) if padding == 0 else (n - reach) // stride + 1 for n in (height, width)]
    pads = [
        max((n - 1) * stride + reach - m, 0) if padding == 0 else 0 for n, m in zip(sizes, (height, width), strict=True)
    ]
    padded = np.pad(image[0], [*[(p // 2, p - p // 2) for p in pads], (0, 0)])
    patches = [
        padded[y * stride : y * stride + reach : gap, x * stride : x * stride + reach : gap]
        for y in range(sizes[0])
        for x in range(sizes[1])
    ]
    shape = (1, kernel, kernel, channels) if depth else (5, kernel, kernel, channels)
    options = Space(padding=padding, strideH=stride, strideW=stride, dilationHFactor=gap, dilationWFactor=gap)
    main = Space(
        tensors=[Space(shape=list(shape), type=0, buffer=0), Space(shape=[1, *sizes, 5])],
        operators=[Space(builtinOptions=options, outputs=[1])],
    )
    content = np.zeros(shape, np.float32).tobytes()
    model = Space(subgraphs=[main], buffers=[Space(data=content)])
    layer = layers.Layer(0, "DEPTHWISE_CONV_2D" if depth else "CONV_2D", 9, 0, -1, 3 if depth else 0)
    assert np.allclose(ranges._met(model, layer, image), np.mean(patches, 0))


def test_a_shared_bias_is_corrected_for_one_reader_alone(tmp_path):
    model = graph.read(source())
    first, second = layers.find(model)[:2]
    main = model.subgraphs[0]
    main.operators[second.index].inputs[2] = first.bias
    before = graph.constant(model, first.bias).copy()
    graph.set_constant(model, second.index, 2, before + 1)
    assert (graph.constant(model, first.bias) == before).all()
    own = int(main.operators[second.index].inputs[2])
    assert (graph.constant(model, own) == before + 1).all()
    count = len(main.tensors)
    graph.set_constant(model, second.index, 2, before + 2)  # now it has a reader of its own: changed in place
    assert len(main.tensors) == count and (graph.constant(model, own) == before + 2).all()
    names = [tensor.name for tensor in main.tensors]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("words", [{}, {"scheme": "w8a16"}, {"weights": "tensor"}, {"bias": "off"}])
def test_channels_of_zeros_keep_their_bias(tmp_path, data, words):
    """A channel that pruning or batch normalisation has killed gives its bias, which must not overflow its scale."""

    def change(model):
        set_weights(0, lambda w: w * (np.arange(8) > 2).reshape(8, 1, 1, 1))(model)
        set_weights(0, lambda b: np.where(np.arange(8) < 3, [3, 1e-3, 0] + [0] * 5, b))(model, 2)
        set_weights(1, lambda w: w * np.where(np.arange(8) == 5, 1e-12, 1))(model)

    path = changed(tmp_path, change)
    feeds = kit.prepared("NHWC")
    target, _ = int8(tmp_path, data, path, **words)
    assert kit.cosine(run(target, feeds), run(path, feeds)) > 0.99
    for tensor in tensors(target, "INT8"):
        assert np.isfinite(tensor.quantization.scale).all() and (np.array(tensor.quantization.scale) > 0).all()


def test_a_layer_of_zeros(tmp_path, data):
    path = changed(tmp_path, set_weights(1, np.zeros_like))
    target, _ = int8(tmp_path, data, path)
    assert np.allclose(run(target, kit.prepared("NHWC", 4)), run(path, kit.prepared("NHWC", 4)), atol=0.02)
    for step in (weights_only.int8w, lambda *paths: weights_only.int4(*paths, 32)):
        step(path, str(target))
        assert np.isfinite(run(target, kit.prepared("NHWC", 4))).all()


def test_layers_and_keep(tmp_path, data):
    found = layers.layers(source())
    assert [layer["op"] for layer in found] == ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"]
    assert [layer["weights"] for layer in found] == [8 * 27, 8 * 9, 8 * 4]
    names = [layer["name"] for layer in found]
    assert len(set(names)) == 3
    target, note = int8(tmp_path, data, keep=[names[1]])
    assert "2 of 3 layers" in note
    shapes = [tuple(tensor.shape) for tensor in tensors(target, "FLOAT32")]
    assert (1, 3, 3, 8) in shapes and (8, 3, 3, 3) not in shapes
    assert (8, 3, 3, 3) in [tuple(tensor.shape) for tensor in tensors(target, "INT8")]
    target, note = int8(tmp_path, data, keep=names)
    assert note == "no effect: every layer is kept in float"
    assert target.read_bytes() == Path(source()).read_bytes()
    with pytest.raises(UsageError, match="no such layers: conv_2d_99"):
        int8(tmp_path, data, keep=["conv_2d_99"])


def test_keep_when_all_tensors_share_one_name(tmp_path, data):
    def change(model):
        for tensor in model.subgraphs[0].tensors:
            tensor.name = b"same"

    path = changed(tmp_path, change)
    name = layers.layers(path)[0]["name"]
    target, note = int8(tmp_path, data, path, keep=[name])
    assert "2 of 3 layers" in note
    assert (8, 3, 3, 3) in [tuple(tensor.shape) for tensor in tensors(target, "FLOAT32")]
    assert kit.cosine(run(target, kit.prepared("NHWC")), kit.torch_outputs()) > 0.99
    weights_only.int8w(path, str(target))
    quantize.fp16(path, str(target))


def test_what_stays_in_float():
    """conv -> add -> conv is integer all through; what a normalisation or a kept layer surrounds is not."""
    from types import SimpleNamespace as Space

    from ai_edge_litert import schema_py_generated as schema

    chain = [
        "CONV_2D",
        "RESHAPE",
        "ADD",
        "CONV_2D",
        "MEAN",
        "SUB",
        "RSQRT",
        "MUL",
        "FULLY_CONNECTED",
        "GELU",
        "FULLY_CONNECTED",
    ]
    codes = [Space(builtinCode=getattr(schema.BuiltinOperator, kind), deprecatedBuiltinCode=0) for kind in chain]
    operators, flows = [], len(chain) + 1
    for index, kind in enumerate(chain):
        inputs = [index, flows] if kind in ("CONV_2D", "FULLY_CONNECTED") else [index]
        operators.append(Space(opcodeIndex=index, inputs=inputs, outputs=[index + 1]))
    main = Space(
        operators=operators,
        tensors=[Space(type=0, buffer=0, shape=[1]) for _ in range(flows)] + [Space(type=0, buffer=1, shape=[1])],
    )
    buffers = [Space(data=None), Space(data=np.ones(1, np.float32).tobytes())]
    model = Space(subgraphs=[main], buffers=buffers, operatorCodes=codes)
    assert layers.in_float(model, set(), lambda kind: True) == {4, 5, 6, 7}
    assert layers.in_float(model, {"conv_2d_3"}, lambda kind: True) == {1, 2, 3, 4, 5, 6, 7}
    assert layers.in_float(model, {"conv_2d_0"}, lambda kind: True) == {0, 1, 2, 4, 5, 6, 7}
    assert layers.in_float(model, set(), lambda kind: kind != "GELU") == {4, 5, 6, 7, 9}


def test_mixed_calibrates_once(tmp_path, data):
    """Layers are tried one by one: what calibration saw is kept, for the same file, data and words."""
    calls = []

    def call(target, kwargs):
        calls.append(target.partition(":")[2])
        return isolate.call(target, kwargs)

    names = [layer["name"] for layer in layers.layers(source())]
    params = {**quantize.DEFAULTS["mixed"], "keep": names[:1]}
    arguments = (kit.made("tflite").artifact, "mixed"), (Path(data), tmp_path, ExportOptions(), call)
    first = quantize.quantize(*arguments[0], params, *arguments[1])
    quantize.quantize(*arguments[0], {**params, "keep": names[1:]}, *arguments[1])
    assert calls == ["calibrate", "int8", "int8"]
    alone, _ = int8(tmp_path, data, keep=names[1:])
    assert (tmp_path / "model.tflite").read_bytes() == alone.read_bytes()
    assert "2 of 3 layers" in first.note
    quantize.quantize(*arguments[0], {**params, "method": "mse"}, *arguments[1])
    assert calls[3:] == ["calibrate", "int8"]


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        (np.zeros((4, 3, 8, 8), np.float32), r"shape \[3, 8, 8\], the input takes \[8, 8, 3\]"),
        (np.zeros((4, 8, 8, 3), np.uint8), "samples are uint8, the input takes float32"),
        (np.zeros((0, 8, 8, 3), np.float32), "no samples"),
        (np.full((4, 8, 8, 3), np.nan, np.float32), "samples hold NaN or infinity"),
    ],
)
def test_calibration_data_that_does_not_fit(tmp_path, arrays, match):
    path = tmp_path / "bad.npz"
    np.savez(path, image=arrays)
    with pytest.raises(UsageError, match=match) as caught:
        int8(tmp_path, str(path))
    assert "image" in caught.value.where
    assert not (tmp_path / "int8.tflite").exists()


def test_weights_that_are_no_numbers(tmp_path, data):
    def broken(weights):
        weights.flat[3] = np.nan
        return weights

    path = changed(tmp_path, set_weights(1, broken))
    name = layers.layers(path)[1]["name"]
    target = str(tmp_path / "x.tflite")
    for step in (
        lambda: int8(tmp_path, data, path),
        lambda: weights_only.int8w(path, target),
        lambda: weights_only.int4(path, target, 32),
    ):
        with pytest.raises(IntegrityError, match=f"weights of {name} hold NaN"):
            step()
    assert not Path(target).exists()


def test_activations_that_overflow(tmp_path, data):
    def change(model):
        set_weights(1, lambda w: w * 1000)(model)
        set_weights(2, lambda w: np.sign(w) * np.float32(3e38))(model)

    path = changed(tmp_path, change)
    with pytest.raises(IntegrityError, match="NaN or infinity in tensor") as caught:
        int8(tmp_path, data, path)
    assert layers.layers(path)[2]["name"] in caught.value.what


def test_a_custom_operation_is_a_typed_error(tmp_path, data):
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    def change(model):
        code = next(code for code in model.operatorCodes if code.builtinCode == BuiltinOperator.MEAN)
        code.builtinCode = code.deprecatedBuiltinCode = BuiltinOperator.CUSTOM
        code.customCode = b"Mine"

    path = changed(tmp_path, change)
    with pytest.raises(IntegrityError, match="Mine"):
        int8(tmp_path, data, path)
    with pytest.raises(IntegrityError, match="TFLite"):
        graph.read(str(_text(tmp_path)))


def _text(tmp_path):
    path = tmp_path / "text.tflite"
    path.write_bytes(b"....TFL3 no")
    return path


def test_nothing_to_quantise(tmp_path, data):
    """A file that is quantised already has no layer with float weights."""
    before = kit.made("tflite", "int8").artifact.path
    target, note = int8(tmp_path, data, before)
    assert note == "no effect: the file has no layer with float weights"
    assert target.read_bytes() == Path(before).read_bytes()
    assert weights_only.int8w(before, str(target)).startswith("no effect")
    assert layers.layers(before) == []


@pytest.mark.parametrize(("recipe", "match"), [("int4:group=33", "groups of 33"), ("int8w:group=32", "int8w kernels")])
def test_groups_without_kernels(recipe, match):
    with pytest.raises(UsageError, match=match):
        export.make(kit.tiny(), recipe, "tflite", cache=Cache(kit.home() / "work"))


def test_int4_in_groups_is_refused_by_runtimes_that_would_compute_garbage(tmp_path):
    """The head gets 64 inputs, so that groups of 32 fit; its operation bears the version that knows groups."""
    path = _wide(tmp_path)
    feeds = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)
    target = tmp_path / "int4.tflite"
    note = weights_only.int4(path, str(target), 32)
    assert "1 layers in groups of 32" in note and "2.14 can't load it" in note
    model = graph.read(str(target))
    weights = next(tensor for tensor in model.subgraphs[0].tensors if graph.in_blocks(tensor))
    assert graph.kind(weights) == "INT4"
    assert {code.version for code in model.operatorCodes if code.builtinCode == 9} == {14}
    assert kit.cosine(run(target, feeds), run(path, feeds)) > 0.98
    assert inspect.weights(str(target))["stored"] == inspect.weights(path)["stored"]
    note = weights_only.int4(path, str(target), 128)
    assert "groups" not in note and "stored 1 as int4" in note


def _wide(tmp_path):
    """A file of one fully connected layer, 64 -> 16, cut out of the tiny one's head."""
    model = graph.read(source())
    main = model.subgraphs[0]
    head = main.operators[-1]
    random = np.random.default_rng(0)
    for index, shape in zip(head.inputs, ([1, 64], [16, 64], [16]), strict=True):
        tensor = main.tensors[int(index)]
        tensor.shape, tensor.shapeSignature = shape, None
        if int(index) != int(head.inputs[0]):
            values = random.normal(size=shape).astype(np.float32)
            model.buffers[tensor.buffer].data = np.frombuffer(values.tobytes(), np.uint8)
    main.tensors[int(head.outputs[0])].shape = [1, 16]
    main.operators, main.inputs = [head], [int(head.inputs[0])]
    model.signatureDefs = None
    path = tmp_path / "wide.tflite"
    path.write_bytes(graph.pack(model))
    return str(path)


@pytest.mark.parametrize(("recipe", "kinds"), [("int8w", {"INT8"}), ("int4", {"INT4", "INT8"})])
def test_weights_alone(recipe, kinds):
    made = kit.made("tflite", recipe)
    plain = kit.made("tflite").artifact
    assert made.artifact.inputs == plain.inputs
    model = graph.read(made.artifact.path)
    assert {graph.kind(tensor) for tensor in model.subgraphs[0].tensors} - {"FLOAT32", "INT32"} == kinds
    least = 0.9999 if recipe == "int8w" else 0.9
    assert kit.cosine(kit.run(made.artifact, kit.prepared("NHWC")), kit.torch_outputs()) > least
    assert "saves size, not time" in made.steps[-1].note


def test_what_a_file_stores(tmp_path, data):
    stored = 8 * 27 + 8 + 8 * 9 + 8 + 8 * 4 + 4
    path = changed(tmp_path, set_weights(1, lambda w: w * (np.arange(w.size).reshape(w.shape) % 2)))
    zeros = inspect.weights(path)["zeros"] - inspect.weights(source())["zeros"]
    assert zeros == 36
    assert inspect.weights(source())["stored"] == stored
    target = tmp_path / "small.tflite"
    for step in (
        lambda: quantize.fp16(path, str(target)),
        lambda: weights_only.int8w(path, str(target)),
        lambda: weights_only.int4(path, str(target), 0),
        lambda: shutil.copy(int8(tmp_path, data, path)[0], target),
    ):
        step()
        found = inspect.weights(str(target))
        assert found["stored"] == stored
        assert found["zeros"] >= 36
    assert json.dumps(found)


def test_names_of_tensors():
    model = graph.read(source())
    names = [tensor.name.decode() for tensor in model.subgraphs[0].tensors]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) < 40
    assert any(name == layers.layers(source())[0]["name"] for name in names)
    main = model.subgraphs[0]
    assert main.tensors[int(main.inputs[0])].name == b"serving_default_args_0"
    assert graph.pattern(model, set()) == ""


ENCODER = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 2, 64, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


def build():
    return Net()
"""


@pytest.mark.slow
def test_a_transformer_encoder(tmp_path):
    """Matrix products become integers; normalisation, attention and residual streams stay exact."""
    import torch

    from edgepipe.formats.tflite.export import convert

    scope: dict = {}
    exec(ENCODER, scope)
    torch.manual_seed(0)
    net = scope["build"]().eval()
    samples = np.random.default_rng(0).normal(size=(32, 8, 32)).astype(np.float32)
    with torch.no_grad():
        torch.export.save(torch.export.export(net, (torch.from_numpy(samples[:1]),)), str(tmp_path / "net.pt2"))
        wanted = net(torch.from_numpy(samples)).numpy()
    path, data = str(tmp_path / "net.tflite"), str(tmp_path / "data.npz")
    np.savez(data, x=samples)
    convert(str(tmp_path / "net.pt2"), path, False)
    target = tmp_path / "out.tflite"
    for words, least in (({}, 0.995), ({"scheme": "w8a16"}, 0.9995), ({"weights": "tensor", "method": "mse"}, 0.995)):
        note = static.int8(path, str(target), data, ["x"], 1, **words)
        assert "5 of 5 layers" in note
        assert kit.cosine(run(target, samples), wanted) > least
        model = graph.read(str(target))
        main = model.subgraphs[0]
        for op in main.operators:
            if graph.operator(model, op) in ("RSQRT", "SQUARED_DIFFERENCE", "SOFTMAX", "BATCH_MATMUL", "ADD"):
                assert {graph.kind(main.tensors[int(index)]) for index in op.outputs} == {"FLOAT32"}
    assert weights_only.int4(path, str(target), 32).startswith("5 layers in groups of 32")
    assert kit.cosine(run(target, samples), wanted) > 0.9


@pytest.mark.parametrize("optimize", [True, False])
def test_groups_of_int4_compute_the_same_with_and_without_optimisation(tmp_path, optimize):
    """The reference kernel of LiteRT 2.3 takes no notice of groups: the host's rungs must not run it."""
    import litert_torch
    import torch

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(128, 10)).eval()
    source, target = str(tmp_path / "fc.tflite"), str(tmp_path / "int4.tflite")
    litert_torch.convert(network, (torch.rand(1, 128),)).export(source)
    assert "1 layers in groups of 32" in weights_only.int4(source, target, 32)
    fed = np.random.default_rng(0).normal(size=(1, 128)).astype(np.float32)
    artifact = export.artifact_of_file(Path(target))
    found = runtimes.find("tflite").load(target, RunOptions(optimize=optimize), artifact).run([fed])[0]
    with torch.no_grad():
        assert kit.cosine(found, network(torch.from_numpy(fed)).numpy()) > 0.99
