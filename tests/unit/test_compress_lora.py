"""Low-rank adaptation: what learns, what stays, what is merged."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from edgepipe import export, model
from edgepipe.compress import lora
from edgepipe.errors import UsageError

from . import compress_kit as kit

pytest.importorskip("peft")


def params(**more):
    return {**lora.DEFAULTS, "rank": 2, "epochs": 1, **more}


@pytest.mark.parametrize("kind", ["cnn", "depthwise"])
@pytest.mark.parametrize("base", ["float", "int8", "int4"])
def test_the_structure_stays_and_each_change_is_of_low_rank(kind, base):
    network = kit.network(kind)
    before = copy.deepcopy(network)
    names, small = lora._adaptable(before, 2)
    lora._round(before, names, {"float": 24, "int8": 8, "int4": 4}[base])
    changed = lora.compress(network, params(base=base), kit.context(kind)).network
    own, other = dict(changed.named_modules()), dict(before.named_modules())
    assert list(own) == list(other) and {type(m) for m in own.values()} == {type(m) for m in other.values()}
    moved = 0
    for name, layer in own.items():
        if isinstance(layer, nn.BatchNorm2d):
            assert torch.equal(layer.running_mean, other[name].running_mean) and "train" not in vars(layer)
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        difference = (layer.weight - other[name].weight).detach().flatten(1).double()
        values = torch.linalg.svdvals(difference)
        moved += float(values[0]) > 1e-4
        if layer.weight[0, 0].numel() == 1 and name in names:
            assert (values[2:] < 1e-4).all(), name  # rank 2
        assert (name in names) + (name in small) + (getattr(layer, "groups", 1) > 1) == 1
    assert moved


def test_adapters_on_rounded_weights_learn_from_the_labels():
    context = kit.context("cnn")
    inputs, labels = context.training.take(list(range(512)))

    def loss(network):
        with torch.no_grad():
            return float(context.loss([network.eval()(inputs)], labels))

    rounded = kit.network("cnn")
    lora._round(rounded, lora._adaptable(rounded, 4)[0], 4)
    changed = lora.compress(kit.network("cnn"), params(base="int4", rank=4, epochs=6), context)
    assert loss(changed.network) < 0.97 * loss(rounded)  # half of what it learns is to answer as the teacher
    assert "rank 4" in changed.note and "rounded to int4" in changed.note and "bytes" in changed.note


def test_a_network_of_grouped_layers_is_refused():
    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    with pytest.raises(UsageError, match="no layer of this network can be adapted"):
        lora.compress(network, params(), kit.context("cnn"))


@pytest.mark.parametrize("kind", ["cnn", "encoder"])
def test_adapters_that_stay_beside_their_layers_answer_as_merged_ones(kind):
    context = kit.context(kind)
    beside = kit.apply(lora, kind, context=context, rank=2, epochs=1, merge="no")  # rebuilt from edits, too
    merged = kit.apply(lora, kind, context=context, rank=2, epochs=1)
    inputs = torch.from_numpy(context.calibration.inputs)
    with torch.no_grad():
        assert torch.allclose(beside.network(inputs), merged.network(inputs), atol=1e-4)
    state, own = beside.network.state_dict(), dict(kit.network(kind).named_parameters())
    assert set(beside.learnt) < set(state) and not merged.learnt
    assert {"head.weight", "head.bias"} <= set(beside.learnt)  # rank 2 of 4 would save nothing: it learns in full
    for name, value in state.items():
        if name not in beside.learnt and name.replace(".base", "") in own:
            assert torch.equal(value, own[name.replace(".base", "")]), name


def test_alpha_is_the_share_of_the_teachers_answers():
    right = kit.context("cnn")
    training = dataclasses.replace(right.training, labels=1 - right.training.labels % 2)
    wrong = dataclasses.replace(right, training=training)
    inputs = torch.from_numpy(wrong.calibration.inputs)
    moved = []
    for alpha in (1.0, 0.0):
        changed = lora.compress(kit.network("cnn"), params(alpha=alpha, epochs=3), wrong)
        with torch.no_grad():
            moved.append(float((changed.network(inputs) - wrong.teacher(inputs)).abs().max()))
    assert moved[0] < 0.2 * moved[1]


def test_few_samples_go_in_small_batches():
    context = kit.context("cnn")
    assert lora._batch(context) == 16
    few = dataclasses.replace(context.training, inputs=context.training.inputs[:40])
    assert lora._batch(dataclasses.replace(context, training=few)) == 8


@pytest.mark.parametrize(
    ("recipe", "to", "reason"),
    [
        ("lora:merge=no+int8", "onnx", "int8 would not keep it"),
        ("lora:merge=no+cluster", "onnx", "cluster would not keep it"),
        ("lora:merge=no", "openvino", "a openvino file would not keep it"),
    ],
)
def test_nothing_may_follow_a_base_of_its_own(recipe, to, reason):
    with pytest.raises(UsageError, match=reason):
        export.check(model.load("fashion-resnet8"), recipe, [to])
