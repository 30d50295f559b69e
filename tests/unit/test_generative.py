import re
from dataclasses import replace

import numpy as np
import pytest

from edgepipe import convert, data, export, model, network, verify
from edgepipe.errors import GateError, IntegrityError, UsageError
from edgepipe.progress import Silent
from edgepipe.record import Accuracy
from edgepipe.tasks import generative
from edgepipe.training import Keep


def answer(samples=6, seed=0):
    draw = np.random.default_rng(seed).standard_normal
    return [draw((samples, 1, 4, 4)), draw((samples, 1, 4, 4)), draw((samples, 3)), draw((samples, 3))]


def test_the_bound_is_that_of_torch():
    import torch
    from torch.distributions import Bernoulli, Normal, kl_divergence

    outputs, wanted = answer(), np.random.default_rng(1).uniform(0, 1, (6, 1, 4, 4))
    logits, _, mean, spread = (torch.tensor(x) for x in outputs)
    pixels = -Bernoulli(logits=logits, validate_args=False).log_prob(torch.tensor(wanted)).flatten(1).sum(1)
    code = kl_divergence(Normal(mean, (spread / 2).exp()), Normal(0.0, 1.0)).sum(1)
    assert generative.metric(outputs, wanted) == pytest.approx(float((pixels + code).mean()), rel=1e-9)


def test_what_does_not_fit_is_refused():
    with pytest.raises(IntegrityError, match="expected two images"):
        generative.metric(answer()[:3], np.zeros((6, 16)))
    with pytest.raises(IntegrityError, match="for images"):
        generative.metric(answer(), np.zeros((6, 9)))
    with pytest.raises(IntegrityError, match="within 0 to 1"):
        generative.metric(answer(), np.full((6, 16), 255))
    with pytest.raises(IntegrityError, match="can't be compared"):
        generative.disagreement(answer(), answer(5))


def test_disagreement_is_of_images():
    a, b = answer(), answer()
    b[0][1] += 5
    b[1][2] = np.nan
    b[2][3] += 100  # the code's mean alone is no image
    assert generative.disagreement(a, b) == pytest.approx(2 / 6)


def test_frechet_distance_of_known_distributions():
    draw = np.random.default_rng(0)
    one = draw.normal(0, [1.0, 2.0], (200_000, 2))
    other = draw.normal([3.0, 0.0], [2.0, 2.0], (200_000, 2))
    assert generative.frechet(one, one) == pytest.approx(0, abs=1e-9)
    assert generative.frechet(one, other) == pytest.approx(3.0**2 + (2.0 - 1.0) ** 2, rel=0.02)


def test_a_grid_places_images_side_by_side():
    rows = [np.zeros((3, 1, 4, 4)), np.ones((5, 4, 4))[:3]]
    found = generative.grid(rows, columns=2)
    assert found.shape == (10, 10) and found.dtype == np.uint8
    assert (found[:4, :4] == 0).all() and (found[6:, 6:] == 255).all() and (found[4:6] == 255).all()
    with pytest.raises(IntegrityError, match="not grey"):
        generative.grid([np.zeros((3, 3, 4, 4))])
    with pytest.raises(IntegrityError, match="the rows have shapes"):
        generative.grid([np.zeros((3, 4, 4)), np.zeros((3, 5, 4))])


def test_more_nats_are_a_loss():
    ladder = verify.Ladder(
        Accuracy("-ELBO", 10, baseline=200.0, exported=203.0, unit="nats", lower_is_better=True), [], [], []
    )
    verify.judge(ladder, 0.02, "here")
    with pytest.raises(GateError, match=re.escape("-ELBO rose by 1.50% (200 nats -> 203 nats)")):
        verify.judge(ladder, 0.01, "here")
    better = replace(ladder, accuracy=replace(ladder.accuracy, exported=150.0))
    verify.judge(better, 0.0, "here")


def test_the_shipped_model_in_int8(tmp_path):
    source = model.load("fashion-vae")
    made = convert.prepare(
        source, "int8", "onnx", export.ExportOptions(), data.evaluation(source).first(200), Silent(), 0.01
    )
    accuracy = made.ladder.accuracy
    assert accuracy.unit == "nats" and accuracy.lower_is_better
    assert set(accuracy.further["exported"]) == {"reconstruction MSE", "Frechet distance"}
    assert made.artifact.bytes < 0.3 * made.made.steps[0].bytes


def test_steps_that_learn_are_refused_without_a_training_set_of_all_inputs():
    source = model.load("fashion-vae")
    with pytest.raises(UsageError, match="lora trains, and fashion-vae has no training data"):
        export.check(source, "lora", ["onnx"])


def test_a_context_feeds_every_input():
    context = network._context(model.load("fashion-vae"), "calibration", Keep())
    inputs, _ = context.calibration.take(np.arange(3))
    assert [len(part) for part in inputs] == [3, 3]
    assert all(part.shape[1:] == tuple(spec.shape[1:]) for part, spec in zip(inputs, context.inputs, strict=True))
    assert not context.augment  # an image moved beside noise that is not


def test_a_floor_is_a_ceiling_where_less_is_better():
    source = replace(model.load("fashion-vae"), floor=100.0)
    few = data.evaluation(source).first(50)
    made = export.Made(None, [], [], source, cached=True)
    with pytest.raises(IntegrityError, match=r"worse than the model's own floor of 100 nats"):
        verify.climb(source, made, few)


def test_data_for_further_inputs(tmp_path):
    source = model.load("fashion-vae")
    arrays = dict(np.load(source.data.evaluation))
    for change, said in (
        ({"noise": None}, "no array for the input noise"),
        ({"noise": arrays["noise"][:9]}, "for 1000 samples"),
        ({"noise": arrays["noise"] * np.float16(np.nan)}, "NaN"),
    ):
        told = {name: value for name, value in {**arrays, **change}.items() if value is not None}
        np.savez(tmp_path / "x.npz", **told)
        broken = replace(source, data=replace(source.data, evaluation=tmp_path / "x.npz"))
        with pytest.raises(IntegrityError, match=said):
            data.evaluation(broken)
