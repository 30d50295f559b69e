"""The training loop that the steps share: it learns, and it keeps what earlier steps bought."""

import numpy as np
import pytest
import torch
from torch import nn

from edgepipe.errors import IntegrityError, UsageError
from edgepipe.schema import TensorSpec
from edgepipe.training import Context, Examples, Keep, fine_tune, fit


def context(**more):
    random = np.random.default_rng(0)
    inputs = random.normal(size=(512, 6)).astype(np.float32)
    truth = random.normal(size=(6, 3)).astype(np.float32)
    labels = (inputs @ truth).argmax(1)
    teacher = nn.Linear(6, 3, bias=False)
    teacher.weight = nn.Parameter(torch.from_numpy(truth.T.copy()), requires_grad=False)
    examples = Examples(inputs, labels, lambda raw: raw, "made up")

    def loss(outputs, wanted):
        return nn.functional.cross_entropy(outputs[0], wanted)

    return Context(teacher, [TensorSpec("x", [-1, 6])], training=examples, loss=loss, **more)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def accuracy(net, examples):
    with torch.no_grad():
        return float((net(torch.from_numpy(examples.inputs)).argmax(1).numpy() == examples.labels).mean())


def test_it_learns_and_says_so():
    told = []
    here = context(update=lambda done, total, text: told.append((done, total)))
    net = network()
    before = accuracy(net, here.training)
    line = fine_tune(net, here, 20, Keep(), 0.01)
    assert accuracy(net, here.training) > max(0.9, before)
    assert line.startswith("20 epochs over 512 samples (made up), loss ")
    assert not net.training
    assert told[-1] == (80, 80)


def test_the_same_each_time():
    first, again = network(), network()
    fine_tune(first, context(), 2, Keep(), 0.01)
    fine_tune(again, context(), 2, Keep(), 0.01)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_zeros_stay_zero_and_shared_values_stay_shared():
    net = network()
    with torch.no_grad():
        net[0].weight[::2] = 0
        net[2].weight.copy_(torch.where(net[2].weight > 0, 0.2, -0.1))
    fine_tune(net, context(), 3, Keep(("0.weight",), ("2.weight",)), 0.02)
    assert (net[0].weight[::2] == 0).all()
    assert (net[0].weight[1::2] != 0).all()
    values = net[2].weight.unique()
    assert len(values) == 2
    assert set(values.tolist()) != {0.2, -0.1}  # the values themselves have learnt


def test_without_training_data_it_says_so():
    bare = Context(nn.Identity(), [TensorSpec("x", [-1, 6])])
    assert "no training data" in fine_tune(network(), bare, 2, Keep(), 0.01)
    assert fine_tune(network(), context(), 0, Keep(), 0.01) == "not fine-tuned"
    with pytest.raises(UsageError, match="nothing to train on"):
        fit(network(), bare, lambda x, y, labels: y[0].sum(), epochs=1, rate=0.1)


def test_a_loss_that_is_not_finite():
    with pytest.raises(IntegrityError, match="diverged"):
        fit(network(), context(), lambda x, outputs, labels: outputs[0].sum() * float("nan"), epochs=1, rate=0.1)
