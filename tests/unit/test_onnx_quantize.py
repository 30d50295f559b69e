"""Quantised ONNX files compute what the float file does, keep what they should in float, and refuse what is broken."""

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepipe import model
from edgepipe.artifact import ExportOptions
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.formats.onnx import graph, inspect, quantize, static, weights_only, widen

from . import formats_kit, onnx_kit
from .onnx_kit import noise_db, run, save, weight

node = helper.make_node
IMAGES = np.random.default_rng(3).normal(size=(24, 3, 8, 8)).astype(np.float32)
TOKENS = np.random.default_rng(4).normal(size=(24, 6, 16)).astype(np.float32)


def operators(path):
    return [item.op_type for item in onnx.load(path).graph.node]


def constants(path):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.fixture
def made(tmp_path):
    """A function that quantises a float file and gives the new file's path and the facts of it."""
    numbers = itertools.count()

    def make(source, feeds=None, keep=None, **words):
        target = str(tmp_path / f"int8-{next(numbers)}.onnx")
        calibration = onnx_kit.samples(tmp_path / "calibration.npz", **(feeds or {"x": IMAGES[:16]}))
        return target, static.int8(source, target, calibration, keep=keep, **words)

    return make


@pytest.fixture
def stored(tmp_path):
    """A function that stores a float file's weights in few bits and gives the new file's path and the facts of it."""
    numbers = itertools.count()

    def make(source, step, group):
        target = str(tmp_path / f"stored-{next(numbers)}.onnx")
        return target, getattr(weights_only, step)(source, target, group)

    return make


def network(path, middle, more=None, channels=8, opset=17):
    """Convolution a -> ``middle`` -> convolution of b."""
    nodes = [node("Conv", ["x", "w1", "b1"], ["a"], pads=[1] * 4), *middle, node("Conv", ["b", "w2"], ["y"])]
    values = {"w1": weight(8, 3, 3, 3), "b1": weight(8), "w2": weight(4, channels, 1, 1), **(more or {})}
    return save(path, nodes, values, {"x": [1, 3, 8, 8]}, {"y": [1, 4, None, None]}, opset)


def encoder(path, batch=None):
    """A transformer block of one head: attention, layer normalisation, two linear layers and their residuals."""
    names = ("wq", "wk", "wv", "wo")
    nodes = [node("MatMul", ["x", name], [name[1]]) for name in names[:3]]
    nodes += [
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["scores"]),
        node("Mul", ["scores", "quarter"], ["scaled"]),
        node("Softmax", ["scaled"], ["shares"]),
        node("MatMul", ["shares", "v"], ["mixed"]),
        node("MatMul", ["mixed", "wo"], ["o"]),
        node("Add", ["x", "o"], ["sum"]),
        node("LayerNormalization", ["sum", "gain", "offset"], ["normal"]),
        node("MatMul", ["normal", "w1"], ["m1"]),
        node("Add", ["m1", "b1"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "w2"], ["m2"]),
        node("Add", ["m2", "b2"], ["f"]),
        node("Add", ["normal", "f"], ["y"]),
    ]
    values = {name: weight(16, 16) for name in names}
    values |= {"w1": weight(16, 64), "b1": weight(64), "w2": weight(64, 16), "b2": weight(16)}
    values |= {"quarter": np.float32(0.25), "gain": np.ones(16, np.float32), "offset": np.zeros(16, np.float32)}
    return save(path, nodes, values, {"x": [batch, 6, 16]}, {"y": [batch, 6, 16]})


FLOATS = {
    "z": np.float32(0),
    "six": np.float32(6),
    "two": np.array([1, 1, 2, 2], np.float32),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
    "one": np.array([1], np.int64),
    "seven": np.array([7], np.int64),
    "plane": np.array([2], np.int64),
    "order": np.array([7, 6, 5, 4, 3, 2, 1, 0], np.int64),
    "wide": np.array([1, 8, 16, 4], np.int64),
}
MIDDLES = {
    "relu": [node("Relu", ["a"], ["b"])],
    "clip": [node("Clip", ["a", "z", "six"], ["b"])],
    "pools": [
        node("MaxPool", ["a"], ["p"], kernel_shape=[2, 2]),
        node("AveragePool", ["p"], ["b"], kernel_shape=[2, 2]),
    ],
    "global": [node("GlobalAveragePool", ["a"], ["b"])],
    "concat": [node("Relu", ["a"], ["r"]), node("Concat", ["a", "r"], ["b"], axis=1)],
    "split": [node("Split", ["a"], ["s", "t"], axis=1), node("Add", ["s", "t"], ["b"])],
    "resize": [node("Resize", ["a", "", "two"], ["b"], mode="nearest")],
    "pad": [node("Pad", ["a", "pads"], ["b"])],
    "silu": [node("Sigmoid", ["a"], ["s"]), node("Mul", ["a", "s"], ["b"])],
    "leaky": [node("LeakyRelu", ["a"], ["b"])],
    "softmax": [node("Softmax", ["a"], ["b"], axis=1)],
    "where": [node("Greater", ["a", "z"], ["g"]), node("Where", ["g", "a", "z"], ["b"])],
    "slice": [node("Slice", ["a", "one", "seven", "plane"], ["b"])],
    "gather": [node("Gather", ["a", "order"], ["b"], axis=1)],
    "movers": [node("Transpose", ["a"], ["t"], perm=[0, 1, 3, 2]), node("Reshape", ["t", "wide"], ["b"])],
    "residual": [node("Conv", ["a", "ws", "b1"], ["c"]), node("Add", ["a", "c"], ["s"]), node("Relu", ["s"], ["b"])],
    "gate": [
        node("GlobalAveragePool", ["a"], ["p"]),
        node("Conv", ["p", "ws"], ["q"]),
        node("Sigmoid", ["q"], ["g"]),
        node("Mul", ["a", "g"], ["b"]),
    ],
    "depthwise": [node("Conv", ["a", "wd", "b1"], ["b"], group=8, pads=[1] * 4)],
    "transposed": [node("ConvTranspose", ["a", "wt"], ["b"], strides=[2, 2])],
    "shared": [node("Conv", ["a", "ws", "b1"], ["r"]), node("Conv", ["r", "ws", "b1"], ["b"])],
    "normal": [node("InstanceNormalization", ["a", "b1", "b1"], ["b"])],
}


def middle(path, name):
    more = {**FLOATS, "ws": weight(8, 8, 1, 1), "wd": weight(8, 1, 3, 3), "wt": weight(8, 8, 2, 2)}
    used = {item for step in MIDDLES[name] for item in step.input}
    chosen = {key: value for key, value in more.items() if key in used}
    channels, opset = {"concat": (16, 17), "split": (4, 13)}.get(name, (8, 17))
    return network(path, MIDDLES[name], chosen, channels, opset)


@pytest.mark.parametrize("name", MIDDLES)
def test_every_operator_between_layers(name, tmp_path, made, stored):
    source = middle(tmp_path / "float.onnx", name)
    before = run(source, x=IMAGES)
    for least, words in (
        (20, {}),
        (22, {"scheme": "w8a16"}),
        (20, {"activations": "symmetric"}),
        (20, {"weights": "tensor"}),
    ):
        target, _ = made(source, **words)
        assert noise_db(before, run(target, x=IMAGES)) > least, words
    target, _ = made(source, reduce_range=True)  # which this machine's 8-bit kernels compute without overflow
    assert noise_db(before, run(target, optimise=True, x=IMAGES)) > 20
    for least, step, group in ((38, "int8w", 0), (15, "int4", 32)):
        target, _ = stored(source, step, group)
        assert noise_db(before, run(target, x=IMAGES)) > least, step


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
def test_the_methods_on_a_real_export(method, scheme, made):
    formats_kit.use_home()
    feeds = {"image": formats_kit.prepared("NCHW")}
    target, facts = made(formats_kit.made("onnx").artifact.path, feeds, method=method, scheme=scheme)
    assert noise_db(formats_kit.torch_outputs(), run(target, **feeds)) > (25 if scheme == "w8a16" else 20)
    assert facts["note"].startswith("3 layers and") and f"{method} over 32 samples" in facts["note"]
    types = {tensor.data_type for tensor in onnx.load(target).graph.initializer}
    assert (TensorProto.UINT16 in types) == (scheme == "w8a16")


def test_attention_and_the_residual_stream_stay_float(tmp_path, made):
    for batch, tensors in ((1, 6), (None, 4)):  # with a fixed batch, Gemm and the reshapes around it
        source = encoder(tmp_path / "float.onnx", batch)
        target, facts = made(source, {"x": TOKENS})
        assert noise_db(run(source, x=TOKENS), run(target, x=TOKENS)) > 30
        assert facts["note"].startswith(f"6 layers and {tensors} tensors quantised")
        assert [layer["op"] for layer in graph.layers(source)].count("MatMul" if batch is None else "Gemm") >= 2
        makers = {name: item.op_type for item in onnx.load(target).graph.node for name in item.output}
        for item in onnx.load(target).graph.node:
            if item.op_type in ("Softmax", "Mul", "LayerNormalization"):
                assert makers.get(item.input[0]) not in ("DequantizeLinear", "QuantizeLinear")


def test_bias_correction_removes_the_mean_error_of_rounded_weights(tmp_path, made):
    """With 16-bit activations nothing but the weights is rounded; a scale for the whole tensor rounds them badly."""
    scales = np.array([1, 0.05, 0.3, 0.02, 0.5, 0.1, 0.2, 0.03], np.float32)[:, None, None, None]
    more = {"wd": weight(8, 1, 3, 3) * scales}
    source = network(tmp_path / "float.onnx", [node("Conv", ["a", "wd"], ["b"], group=8, pads=[1] * 4)], more)
    feeds = np.abs(IMAGES)  # a mean far from zero
    before = run(source, x=feeds).mean(axis=(0, 2, 3))
    errors = []
    for bias in ("on", "off"):
        target, facts = made(source, {"x": feeds}, bias=bias, weights="tensor", scheme="w8a16")
        errors.append(np.abs(run(target, x=feeds).mean(axis=(0, 2, 3)) - before).max())
        assert ("3 biases corrected" in facts["note"]) == (bias == "on")
    assert errors[0] < errors[1] / 5


def test_bias_behind_a_matrix_product_is_corrected_too(tmp_path, made):
    source = encoder(tmp_path / "float.onnx")
    feeds = {"x": TOKENS + 1}
    means = {}
    for bias in ("on", "off"):
        target, facts = made(source, feeds, bias=bias, weights="tensor", scheme="w8a16")
        means[bias] = np.abs((run(target, **feeds) - run(source, **feeds)).mean(axis=(0, 1))).mean()
        assert ("2 biases corrected" in facts["note"]) == (bias == "on")
    assert means["on"] < means["off"]


def test_layers_that_are_kept_stay_float(tmp_path, made):
    source = middle(tmp_path / "float.onnx", "residual")
    names = [layer["name"] for layer in graph.layers(source)]
    assert [(layer["op"], layer["weights"]) for layer in quantize.layers(source)] == [
        ("Conv", 216),
        ("Conv", 64),
        ("Conv", 32),
    ]
    before = run(source, x=IMAGES)
    noise = []
    for keep in ([], names[:1], names[:2]):
        target, facts = made(source, keep=keep)
        noise.append(noise_db(before, run(target, x=IMAGES)))
        kernels = {value.dtype for value in constants(target).values() if value.ndim == 4}
        assert (np.dtype(np.float32) in kernels) == bool(keep)
        assert (f"{len(keep)} layers stay float32" in facts["note"]) == bool(keep)
    assert noise[0] < noise[2]
    assert made(source, keep=names)[1]["note"].startswith("no effect: ")
    with pytest.raises(UsageError, match="no such layers: nothing"):
        made(source, keep=["nothing"])


def test_scales_of_biases_are_computed_not_stored(tmp_path, made):
    source = middle(tmp_path / "float.onnx", "silu")
    target, _ = made(source)
    nodes = onnx.load(target).graph.node
    makers = {name: item for item in nodes for name in item.output}
    biases = [makers[item.input[2]] for item in nodes if item.op_type == "Conv"]
    assert biases and all(makers[bias.input[1]].op_type == "Mul" for bias in biases)
    assert not any("_quantized" in name for name in constants(target))
    # One file with every product written out gives the same answers.
    model = onnx.load(target)
    stored = constants(target)
    for product in [item for item in model.graph.node if item.op_type == "Mul" and item.input[0] in stored]:
        value = np.multiply(*(stored[name] for name in product.input))
        model.graph.initializer.append(numpy_helper.from_array(value, product.output[0]))
        model.graph.node.remove(product)
    onnx.save(model, tmp_path / "stored.onnx")
    assert np.array_equal(run(target, x=IMAGES)[0], run(str(tmp_path / "stored.onnx"), x=IMAGES)[0])


def test_dead_and_faint_channels_have_scales(tmp_path, made, stored):
    faint = np.array([0, 1, 1e-25, 1, 0, 1e-6, 1, 1], np.float32)[:, None, None, None]
    more = {"wd": weight(8, 1, 3, 3) * faint}
    source = network(tmp_path / "float.onnx", [node("Conv", ["a", "wd", "b1"], ["b"], group=8, pads=[1] * 4)], more)
    before = run(source, x=IMAGES)
    files = [
        made(source)[0],
        made(source, weights="tensor")[0],
        stored(source, "int8w", 0)[0],
        stored(source, "int4", 32)[0],
    ]
    for target, least in zip(files, (25, 20, 38, 15), strict=True):
        assert noise_db(before, run(target, x=IMAGES)) > least
        scales = [value for value in constants(target).values() if value.dtype == np.float32]
        assert all(np.isfinite(value).all() for value in scales)
    zeros = {"x": np.zeros_like(IMAGES)}
    assert np.isfinite(run(made(source, zeros)[0], x=IMAGES)).all()


def test_reduced_range_has_seven_bits(tmp_path, made):
    source = middle(tmp_path / "float.onnx", "relu")
    for reduce_range, most in ((False, 127), (True, 64)):
        target, _ = made(source, reduce_range=reduce_range)
        kernels = [value for value in constants(target).values() if value.dtype == np.int8 and value.ndim == 4]
        assert len(kernels) == 2 and max(np.abs(value.astype(int)).max() for value in kernels) == most


GEMMS = {
    "factors": ({"alpha": 0.5, "beta": 2.0}, weight(16, 8), weight(8)),
    "flipped": ({"transB": 1}, weight(8, 16), None),
    "scalar": ({"transB": 1}, weight(8, 16), np.float32(3)),
    "row": ({"transB": 1, "beta": 3.0}, weight(8, 16), weight(1, 8)),
    "matrix": ({"transB": 1, "beta": 2.0}, weight(8, 16), weight(1, 8).repeat(6, 0)),
}


@pytest.mark.parametrize("name", GEMMS)
@pytest.mark.parametrize("opset", [11, 17])
def test_matrix_products_of_every_kind(name, opset, tmp_path, made, stored):
    attributes, factor, bias = GEMMS[name]
    values = {"w": factor} | ({} if bias is None else {"c": bias})
    step = node("Gemm", ["x", "w"] + ["c"] * (bias is not None), ["y"], **attributes)
    source = save(tmp_path / "float.onnx", [step], values, {"x": [6, 16]}, {"y": [6, 8]}, opset, 6 if opset < 13 else 8)
    feeds = TOKENS.reshape(-1, 16)
    before = np.concatenate([run_rows(source, feeds[i : i + 6]) for i in range(0, 144, 6)])
    files = [
        made(source, {"x": feeds})[0],
        stored(source, "int8w", 0)[0],
        stored(source, "int8w", 4)[0],
        stored(source, "int4", 16)[0],
    ]
    for target, least in zip(files, (35, 38, 38, 18), strict=True):
        after = np.concatenate([run_rows(target, feeds[i : i + 6]) for i in range(0, 144, 6)])
        assert noise_db(before, after) > least


def run_rows(path, rows):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if formats_kit.saturates():
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, {"x": rows})[0]


def test_stacks_of_matrices(tmp_path, made, stored):
    for shape in ((1, 16, 8), (6, 16, 8)):
        step = node("MatMul", ["x", "w"], ["y"])
        source = save(
            tmp_path / "float.onnx", [step], {"w": weight(*shape)}, {"x": [None, 6, 1, 16]}, {"y": [None, 6, None, 8]}
        )
        feeds = TOKENS[:, :, None]
        before = run(source, x=feeds)
        for target, least in (
            (made(source, {"x": feeds})[0], 30),
            (stored(source, "int8w", 0)[0], 38),
            (stored(source, "int4", 32)[0], 15),
        ):
            assert noise_db(before, run(target, optimise=True, x=feeds)) > least


def test_an_old_opset_is_raised_or_refused(tmp_path, made):
    source = network(tmp_path / "float.onnx", [node("Relu", ["a"], ["b"])], opset=11)
    target, facts = made(source)
    assert facts["opset"] == onnx.load(target).opset_import[0].version == 13
    assert made(source, opset=11, weights="tensor")[1]["opset"] == 11
    with pytest.raises(UsageError, match="needs opset 13; the runtime reads up to 12"):
        made(source, opset=12)


def test_weights_are_widened_when_the_file_is_loaded(tmp_path, stored):
    """No operator that widens is left in the graph the runtime executes."""
    import onnxruntime

    source = middle(tmp_path / "float.onnx", "transposed")
    before = run(source, x=IMAGES)
    for step, group in (("int8w", 0), ("int8w", 9), ("int4", 16)):
        target, facts = stored(source, step, group)
        assert "widened" in facts["note"]
        assert set(operators(target)) == {
            "Conv",
            "ConvTranspose",
            *(n for n in operators(target) if n.startswith("Widen")),
        }
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
        onnxruntime.InferenceSession(target, options, providers=["CPUExecutionProvider"])
        assert not {"Cast", "Mul", "Sub", "BitShift", "DequantizeLinear"} & set(
            operators(options.optimized_model_filepath)
        )
        assert noise_db(before, run(target, x=IMAGES)) == pytest.approx(
            noise_db(before, run(target, optimise=True, x=IMAGES)), abs=0.1
        )


def test_blocks_share_scales_as_asked():
    """A block is ``group`` inputs of one output channel; whole channels where that does not divide."""
    assert widen.blocks((8, 4, 3, 3), 0, 12) == widen.Blocks((8, 3, 12), (2,))
    assert widen.blocks((8, 4, 3, 3), 0, 0) == widen.blocks((8, 4, 3, 3), 0, 32) == widen.Blocks((8, 1, 36), (2,))
    assert widen.blocks((64, 8), 1, 32) == widen.Blocks((2, 32, 8), (1,))
    assert widen.blocks((8, 4, 3, 3), 1, 32) == widen.Blocks((8, 4, 3, 3), (0, 2, 3))
    assert widen.blocks((8, 4, 3, 3), 0, 12).size == 12


def test_rounding_is_within_half_a_step_and_zeros_stay_zeros():
    values = np.random.default_rng(5).normal(size=(8, 64)).astype(np.float32)
    values[:, ::3] = 0
    cut = widen.blocks(values.shape, 0, 32)
    integers, scale = widen.to_bytes(values, cut)
    assert np.abs((integers * scale).reshape(values.shape) - values).max() <= scale.max() * 0.5001
    nibbles, scale, zero = widen.to_nibbles(values, cut)
    assert nibbles.max() <= 15
    restored = (scale * (nibbles.astype(np.float32) - zero)).reshape(values.shape)
    assert (restored[values == 0] == 0).all()
    widest = np.maximum(values.reshape(cut.shape).max(2), 0) - np.minimum(values.reshape(cut.shape).min(2), 0)
    plain = np.abs(restored - values).reshape(cut.shape)
    assert (
        np.square(plain).mean(2) <= (widest / 15) ** 2 / 12 * 1.3
    ).all()  # no worse than rounding over the whole range
    assert (widen.unpack(widen.pack(nibbles)) == nibbles.reshape(-1)).all()


def test_large_matrices_compute_on_four_bits(tmp_path, stored):
    """Rows that are no multiple of the block are padded; the bias and what shares the weight stay right."""
    nodes = [
        node("Gemm", ["x", "w", "b"], ["h"], transB=1),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "w2"], ["y"]),
    ]
    values = {"w": weight(301, 250), "b": weight(301), "w2": weight(301, 256)}
    source = save(tmp_path / "float.onnx", nodes, values, {"x": [None, 250]}, {"y": [None, 256]})
    feeds = np.random.default_rng(6).normal(size=(8, 250)).astype(np.float32)
    for group in weights_only.GROUPS:
        target, facts = stored(source, "int4", group)
        assert operators(target).count("MatMulNBits") == 2
        assert facts["note"] == "2 large MatMul and Gemm compute on 4-bit weights"
        assert noise_db(run(source, x=feeds), run(target, x=feeds)) > 13
        assert inspect.weights(target)["stored"] == 301 * 250 + 301 + 301 * 256


def test_embedding_tables_are_stored_small(tmp_path, stored):
    table = weight(100, 32)
    inputs = [helper.make_tensor_value_info("x", TensorProto.INT64, [None, 5])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 5, 8])]
    nodes = [node("Gather", ["table", "x"], ["e"]), node("MatMul", ["e", "w"], ["y"])]
    tensors = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(weight(32, 8), "w")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, tensors), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    source = str(tmp_path / "float.onnx")
    onnx.save(model, source)
    words = np.arange(40).reshape(8, 5)
    for step, least in (("int8w", 38), ("int4", 15)):
        target, _ = stored(source, step, 32)
        assert all(value.dtype != np.float32 or value.size < 200 for value in constants(target).values())
        assert noise_db(run(source, x=words), run(target, x=words)) > least


@pytest.mark.parametrize(("step", "group"), [("int8", 0), ("int8w", 0), ("int8w", 8), ("int4", 32), ("int4", 16)])
def test_stored_weights_and_zeros_are_counted(step, group, tmp_path, made, stored):
    kernel = weight(8, 8, 3, 3)
    kernel[:, ::2] = 0
    source = network(
        tmp_path / "float.onnx", [node("Conv", ["a", "w3", "b3"], ["b"], pads=[1] * 4)], {"w3": kernel, "b3": weight(8)}
    )
    size = 216 + 8 + 576 + 8 + 32
    assert inspect.weights(source) == {"stored": size, "zeros": 288}
    target = made(source)[0] if step == "int8" else stored(source, step, group)[0]
    found = inspect.weights(target)
    assert found["stored"] == size + (4 if step == "int8" else 0)  # int8 gives the last layer a bias
    assert 288 <= found["zeros"] < 288 + (16 if step != "int4" else 100)


def test_files_without_layers_are_left_alone(tmp_path, made, stored):
    source = save(tmp_path / "float.onnx", [node("Relu", ["x"], ["y"])], {}, {"x": [1, 3, 8, 8]}, {"y": [1, 3, 8, 8]})
    for target, facts in (made(source), stored(source, "int8w", 0), stored(source, "int4", 32)):
        assert facts["note"].startswith("no effect: the file has no Conv, ConvTranspose, Gemm, MatMul")
        assert operators(target) == ["Relu"]


def test_calibration_names_the_tensor_that_is_not_finite(tmp_path, made):
    source = network(tmp_path / "float.onnx", [node("Log", ["a"], ["l"]), node("Relu", ["l"], ["b"])])
    for method in ("minmax", "mse"):
        with pytest.raises(IntegrityError, match=r"NaN or infinity in tensor [lb]") as failure:
            made(source, method=method)
        assert failure.value.fix
    broken = weight(8, 8, 1, 1)
    broken[0, 0] = np.inf
    source = network(tmp_path / "float.onnx", [node("Conv", ["a", "wx"], ["b"])], {"wx": broken})
    with pytest.raises(IntegrityError, match="NaN or infinity: tensor wx"):
        made(source)


@pytest.mark.parametrize(
    ("feeds", "what"),
    [
        ({"z": IMAGES}, "no samples for input x"),
        ({"x": IMAGES[:, :2]}, r"shape \[24, 2, 8, 8\] don't fit input x of shape \[1, 3, 8, 8\]"),
        ({"x": IMAGES[0]}, r"shape \[3, 8, 8\]"),
        ({"x": IMAGES[:0]}, r"shape \[0, 3, 8, 8\]"),
        ({"x": IMAGES.astype(np.float64)}, "samples of float64 don't fit input x, float32"),
        ({"x": (IMAGES * 50).astype(np.uint8)}, "samples of uint8"),
    ],
)
def test_samples_that_do_not_fit_are_refused(feeds, what, tmp_path, made):
    source = middle(tmp_path / "float.onnx", "relu")
    with pytest.raises(UsageError, match=what):
        made(source, feeds)
    assert not list(tmp_path.glob("int8-*"))


def test_samples_short_of_a_batch_fill_it(tmp_path, made):
    nodes = [node("Conv", ["x", "w"], ["y"])]
    source = save(tmp_path / "float.onnx", nodes, {"w": weight(4, 3, 1, 1)}, {"x": [8, 3, 8, 8]}, {"y": [8, 4, 8, 8]})
    assert "over 8 samples" in made(source, {"x": IMAGES[:3]})[1]["note"]
    assert "over 24 samples" in made(source, {"x": IMAGES})[1]["note"]


def test_an_operator_the_runtime_does_not_know_is_an_error(tmp_path, made, stored):
    source = network(tmp_path / "float.onnx", [node("Relu", ["a"], ["b"])])
    model = onnx.load(source)
    model.graph.node[1].op_type, model.graph.node[1].domain = "Wobble", "my.own"
    model.opset_import.append(helper.make_opsetid("my.own", 1))
    onnx.save(model, source)
    for attempt in (lambda: made(source), lambda: stored(source, "int4", 32)):
        with pytest.raises(IntegrityError, match="Wobble"):
            attempt()


def test_groups_without_kernels_are_refused_before_any_work(tmp_path):
    formats_kit.use_home()
    source = formats_kit.made("onnx").artifact

    def call(*_):
        raise AssertionError("no work may start")

    with pytest.raises(UsageError, match="no kernels for groups of 33") as failure:
        quantize.quantize(source, "int4", {"group": 33}, None, tmp_path, ExportOptions(), call)
    assert "32" in failure.value.fix


@pytest.mark.parametrize("recipe", ["int8", "int8:w8a16", "int8w:8", "int4:16"])
def test_quantised_files_load_as_models(recipe):
    formats_kit.use_home()
    found = model.load(formats_kit.made("onnx", recipe).artifact.path)
    assert found.outputs == formats_kit.made("onnx").artifact.outputs
    assert found.facts.reason or found.facts.macs == formats_kit.tiny().facts.macs
