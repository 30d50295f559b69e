import numpy as np
import pytest

from edgepipe import convert, data, export, model
from edgepipe.errors import IntegrityError
from edgepipe.progress import Silent
from edgepipe.tasks import object_detection as task

pytest.importorskip("pycocotools")

LABELS = np.array(
    [[[0.1, 0.1, 0.3, 0.5, 0], [0.5, 0.5, 0.9, 0.9, 1]], [[0.2, 0.2, 0.6, 0.6, 1], [-1, -1, -1, -1, -1]]], np.float32
)


def perfect():
    """Logits and boxes that are the labels, and one box that holds nothing."""
    logits, boxes = np.full((2, 3, 2), -8.0, np.float32), np.zeros((2, 3, 4), np.float32)
    for sample, rows in enumerate(LABELS):
        for place, row in enumerate(rows[rows[:, 4] >= 0]):
            logits[sample, place, int(row[4])], boxes[sample, place] = 4.0, row[:4]
    return [logits, boxes]


def test_a_perfect_answer_and_none_at_all():
    assert task.metric(perfect(), LABELS) == pytest.approx(1)
    assert task.further(perfect(), LABELS) == {"mAP@.5:.95": pytest.approx(1)}
    logits, boxes = perfect()
    assert task.metric([logits * 0 - 9, boxes], LABELS) == 0


def test_the_metric_prints_nothing(capsys):
    task.metric(perfect(), LABELS)
    assert capsys.readouterr().out == ""


def test_a_missed_box_costs_its_share():
    logits, boxes = perfect()
    logits[0, 0] = -8  # the only one of class 0
    assert task.metric([logits, boxes], LABELS) == pytest.approx(0.5)
    assert task.disagreement(perfect(), [logits, boxes]) == 0.5


def test_a_shifted_box_counts_at_a_half_alone():
    logits, boxes = perfect()
    boxes += 0.04  # of boxes 0.2 to 0.4 wide
    found = task.metric([logits, boxes], LABELS), task.further([logits, boxes], LABELS)["mAP@.5:.95"]
    assert found[0] == pytest.approx(1) and 0.2 < found[1] < 0.7
    assert task.disagreement(perfect(), [logits, boxes]) == 0


def test_boxes_that_overlap_a_better_one_are_dropped():
    logits, boxes = perfect()
    logits[0, 2, 0], boxes[0, 2] = 3.0, boxes[0, 0] + 0.01
    assert len(task.detections([logits, boxes])[0]) == 2
    logits[0, 2] = [-8.0, 3.0]  # of another class it stays
    kept = task.detections([logits, boxes])[0]
    assert len(kept) == 3 and list(kept[:, 5]) == sorted(kept[:, 5], reverse=True)


def test_each_box_answers_for_one():
    """Two garments on each other's place are not found by one box."""
    logits, boxes = np.full((1, 2, 1), 4.0), np.array([[[0, 0, 0.4, 0.4], [0.14, 0, 0.54, 0.4]]])
    one = [logits, boxes]
    other = [np.array([[[4.0], [-9.0]]]), boxes]
    assert len(task.detections(one)[0]) == 2
    assert task.disagreement(one, other) == 1


def test_a_box_near_the_line_is_no_other_answer():
    logits, boxes = perfect()
    logits[0, 0, 0] = 0.05
    weaker = logits.copy()
    weaker[0, 0, 0] = -0.05
    assert task.disagreement([logits, boxes], [weaker, boxes]) == 0


def test_nan_is_not_found():
    logits, boxes = perfect()
    boxes[0, 0, 2] = np.nan
    logits[1] = np.nan
    assert [len(rows) for rows in task.detections([logits, boxes])] == [1, 0]
    assert task.disagreement(perfect(), [logits, boxes]) == 1


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ([np.zeros((2, 3, 2))], "expected logits"),
        ([np.zeros((2, 3)), np.zeros((2, 3, 4))], "expected logits"),
        ([np.zeros((2, 3, 2)), np.zeros((2, 4, 4))], "don't fit"),
        ([np.zeros((2, 3, 2)), np.zeros((2, 3, 5))], "don't fit"),
        ([np.zeros((3, 3, 2)), np.ones((3, 3, 4))], "3 outputs for 2 labels"),
    ],
)
def test_outputs_that_are_no_detections(outputs, said):
    with pytest.raises(IntegrityError, match=said):
        task.metric(outputs, LABELS)


def test_labels_are_checked():
    assert task.wrong_labels(LABELS, 2, 2) == ""
    assert "5" not in task.wrong_labels(LABELS, 2, 0)
    assert "for each of 3" in task.wrong_labels(LABELS, 3, 2)
    assert "not rows" in task.wrong_labels(np.zeros(2, np.int64), 2, 2)
    assert "0 to 1; the model has 1" in task.wrong_labels(LABELS, 2, 1)
    swapped = LABELS[..., [2, 1, 0, 3, 4]]
    assert "no area" in task.wrong_labels(swapped, 2, 2)


def test_the_shipped_detector_in_int8():
    source = model.load("fashion-scenes")
    few = data.evaluation(source).first(150)
    made = convert.prepare(source, "int8", "onnx", export.ExportOptions(), few, Silent(), 0.015)
    accuracy = made.ladder.accuracy
    assert accuracy.metric == "mAP@.5" and accuracy.exported > accuracy.baseline - 0.015
    assert 0.5 < accuracy.further["exported"]["mAP@.5:.95"] < accuracy.exported
    assert made.artifact.bytes < 0.3 * made.made.steps[0].bytes
