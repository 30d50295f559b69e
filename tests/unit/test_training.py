"""The training loop that the steps share: it learns, and it keeps what earlier steps bought."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgepipe.errors import IntegrityError, UsageError
from edgepipe.schema import TensorSpec
from edgepipe.training import (
    Context,
    Examples,
    Keep,
    answers,
    fine_tune,
    fit,
    fit_to_teacher,
    relative_error,
    taught,
    teaching_batch,
)


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
    assert fit(network(), context(), lambda x, y, labels: y[0].sum(), epochs=0, rate=0.1) == "not trained"
    with pytest.raises(UsageError, match="nothing to train on"):
        fit(network(), bare, lambda x, y, labels: y[0].sum(), epochs=1, rate=0.1)


def test_a_loss_that_is_not_finite():
    with pytest.raises(IntegrityError, match="diverged"):
        fit(network(), context(), lambda x, outputs, labels: outputs[0].sum() * float("nan"), epochs=1, rate=0.1)


def negated(inputs, generator):
    return -inputs


def noisy(inputs, generator):
    return inputs + 0.001 * torch.randn(inputs.shape, generator=generator)


def test_only_augmentations_that_the_teacher_bears():
    """Negated inputs have other labels, which the teacher knows; a little noise changes none."""
    teacher = network()
    fine_tune(teacher, context(), 20, Keep(), 0.01)
    base = context(augment=(negated, noisy))
    line = fine_tune(network(), replace(base, teacher=teacher), 2, Keep(), 0.01)
    assert "(made up, noisy)" in line
    unlabelled = replace(base, teacher=teacher, training=None, calibration=base.training)
    line = fit_to_teacher(network(), unlabelled, taught(unlabelled, 0.5), epochs=1, rate=0.01)
    assert "(made up, negated, noisy)" in line
    assert "no training data: the calibration samples without labels, 8 times over for each epoch" in line


def test_the_teacher_s_answers_are_learnt():
    teacher = network()
    fine_tune(teacher, context(), 20, Keep(), 0.01)
    here = replace(context(), teacher=teacher)
    net = network()
    fit_to_teacher(net, here, taught(here, 1.0), epochs=20, rate=0.01)
    x = torch.from_numpy(here.training.inputs)
    with torch.no_grad():
        assert float(relative_error(net(x), teacher(x))) < 0.05
    assert teaching_batch(here) == 128
    assert teaching_batch(replace(here, training=None, calibration=here.training)) == 32


def test_alpha_weighs_the_labels():
    here = replace(context(), teacher=network())
    x, y = here.training.take(np.arange(8))
    outputs = [torch.zeros(8, 3)]
    soft, hard = (float(taught(here, alpha)(x, outputs, y)) for alpha in (1.0, 0.0))
    assert hard == pytest.approx(float(here.loss(outputs, y)))
    assert float(taught(here, 0.25)(x, outputs, y)) == pytest.approx(0.25 * soft + 0.75 * hard, rel=1e-5)
    assert float(taught(here, 0.25)(x, outputs, None)) == pytest.approx(soft)


def test_images_train_and_come_back_contiguous():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    images = np.random.default_rng(0).normal(size=(64, 2, 6, 6)).astype(np.float32)
    examples = Examples(images, np.arange(64) % 3, lambda raw: raw, "images")
    here = context()
    fit(net, here, lambda x, y, labels: here.loss(y, labels), epochs=2, rate=0.01, examples=examples)
    assert net[0].weight.is_contiguous()


class Two(nn.Module):
    """One layer on the product of two inputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x, mask):
        return self.layer(x * mask)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_network_of_two_inputs_learns_from_both(labelled):
    here = context()
    one = here.training
    more = np.ones_like(one.inputs)
    more[::2] = 0.0  # of these nothing is seen, so every answer to them is the same
    examples = replace(one, more=(more,))
    taken, labels = examples.take(np.arange(4))
    assert [tuple(part.shape) for part in taken] == [(4, 6), (4, 6)] and len(labels) == 4
    teacher, net = Two(), Two()
    teacher.load_state_dict({"layer.weight": here.teacher.weight, "layer.bias": torch.zeros(3)})
    sets = {"training": examples} if labelled else {"training": None, "calibration": examples}
    here = replace(here, teacher=teacher, inputs=[TensorSpec("x", [-1, 6]), TensorSpec("mask", [-1, 6])], **sets)
    fit_to_teacher(net, here, taught(here, 0.5), epochs=20, rate=0.05)
    seen, blind = (answers(net, examples.take(np.arange(start, 512, 2))[0])[0].detach() for start in (1, 0))
    assert (seen.argmax(1).numpy() == one.labels[1::2]).mean() > 0.9
    assert torch.equal(blind, blind[:1].expand_as(blind))
