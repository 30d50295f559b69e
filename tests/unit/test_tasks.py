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
