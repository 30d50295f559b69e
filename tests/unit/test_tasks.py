import numpy as np
import pytest

from edgepipe.errors import IntegrityError
from edgepipe.tasks import image_classification, null


def test_top1():
    scores = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert image_classification.metric([scores], np.array([1, 0, 0, 0])) == 0.75


def test_nan_counts_as_wrong():
    scores = np.array([[np.nan, 0.9], [0.8, 0.2]])
    assert image_classification.metric([scores], np.array([0, 0])) == 0.5
    assert image_classification.disagreement([scores], [scores]) == 0.5


def test_disagreement():
    a = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    b = np.array([[0.2, 0.8], [0.1, 0.2], [0.3, 0.7], [0.5, 0.4]])
    assert image_classification.disagreement([a], [b]) == 0.25


def test_wrong_shapes():
    with pytest.raises(IntegrityError):
        image_classification.metric([np.zeros((3, 2))], np.zeros(2))
    with pytest.raises(IntegrityError):
        image_classification.metric([np.zeros(3)], np.zeros(3))
    with pytest.raises(IntegrityError):
        image_classification.disagreement([np.zeros((3, 2))], [np.zeros((3, 4))])


def test_null_task():
    a, b = np.ones((4, 2), np.float32), np.ones((4, 2), np.float32)
    b[1, 0], b[2, 1] = 1.5, np.nan
    assert null.metric([a]) == 1.0
    assert null.metric([a, b]) == 0.75
    assert null.disagreement([a], [a]) == 0.0
    assert null.disagreement([a], [b]) == 0.5
    assert null.disagreement([np.zeros((2, 2))], [np.zeros((2, 2))]) == 0.0


def test_likeness_is_the_divergence_of_softened_scores():
    import torch

    wanted = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
    assert float(image_classification.likeness([wanted + 5], [wanted], 3.0)) == pytest.approx(0, abs=1e-6)
    mine = torch.zeros(2, 3)
    p, q = torch.softmax(wanted / 2, 1), torch.full((2, 3), 1 / 3)
    by_hand = 4 * (p * (p / q).log()).sum() / 2
    assert float(image_classification.likeness([mine], [wanted], 2.0)) == pytest.approx(float(by_hand), rel=1e-5)


def test_scores_that_are_probabilities_already():
    import torch

    logits, labels = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
    soft = torch.softmax(logits, 1)
    assert torch.allclose(image_classification.loss([soft], labels), image_classification.loss([logits], labels))
    other = torch.zeros(8, 4)
    wanted = image_classification.likeness([other], [logits], 4.0)
    assert torch.allclose(image_classification.likeness([other], [soft], 4.0), wanted)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_augmentations_mirror_and_shift_whole_images(layout):
    import torch

    mirror, shift = image_classification.augmentations(layout)
    image = torch.arange(28.0).expand(2, 28, 28).clone()  # columns tell themselves apart
    image[1] = image[1].T.clone()
    image = image[None].repeat(64, 1, 1, 1)  # [64, 2, 28, 28]
    arranged = image if layout == "NCHW" else image.permute(0, 2, 3, 1)
    back = (lambda x: x) if layout == "NCHW" else (lambda x: x.permute(0, 3, 1, 2))
    mirrored = back(mirror(arranged, torch.Generator().manual_seed(0)))
    flipped = [bool(torch.equal(one, old.flip(2))) for one, old in zip(mirrored, image, strict=True)]
    same = [bool(torch.equal(one, old)) for one, old in zip(mirrored, image, strict=True)]
    assert all(a != b for a, b in zip(flipped, same, strict=True))
    assert 10 < sum(flipped) < 54
    moved = back(shift(arranged, torch.Generator().manual_seed(0))) - image
    middle = moved[:, :, 3:-3, 3:-3].flatten(2)
    assert torch.equal(middle.amin(2), middle.amax(2))  # each image by one amount
    assert sorted(set(middle[:, 0, 0].tolist())) == [-2, -1, 0, 1, 2]
    assert sorted(set(middle[:, 1, 0].tolist())) == [-2, -1, 0, 1, 2]


def test_what_has_no_rows_is_not_augmented():
    assert image_classification.augmentations("NC") == []
    assert image_classification.augmentations("") == []
