from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from edgepipe import data, model, plugins
from edgepipe.errors import IntegrityError
from edgepipe.tasks import text_classification as task

LABELS = np.array([1, 1, 0, 0])


def answer():
    """Right but for the second text."""
    return [np.array([[0.0, 1], [1, 0], [1, 0], [1, 0]]), np.eye(4)[:, :3] + 0.1]


def test_accuracy_and_f1():
    assert task.metric(answer(), LABELS) == 0.75
    assert task.further(answer(), LABELS) == {"F1": pytest.approx(2 / 3)}  # precision 1, recall 1/2
    assert task.further([np.eye(3), np.eye(3)], np.array([0, 1, 1])) == {"F1": pytest.approx((1 + 2 / 3 + 0) / 3)}


def test_agreement_is_of_embeddings():
    one, other = answer(), answer()
    assert task.agreement(one, other)["embedding cosine"] == pytest.approx(1)
    other[1] = -3 * other[1]
    assert task.agreement(one, other)["embedding cosine"] == pytest.approx(-1)
    assert task.agreement(one[:1], other[:1]) == {}


def test_nan_is_wrong_and_disagrees():
    broken = answer()
    broken[1][0, 0] = np.nan
    assert task.metric(broken, LABELS) == 0.5
    assert task.disagreement(answer(), broken) == 0.25
    assert task.disagreement(broken, broken) == 0.25


def test_what_does_not_fit_is_refused():
    with pytest.raises(IntegrityError, match="4 outputs for 3 labels"):
        task.metric(answer(), LABELS[:3])
    with pytest.raises(IntegrityError, match="expected scores"):
        task.metric([np.zeros(4)], LABELS)
    with pytest.raises(IntegrityError, match="can't be compared"):
        task.disagreement(answer(), [np.zeros((4, 3))])


def test_the_shipped_data_fit_the_card():
    """Without its weights, which are fetched: tokens and mask of each set, and labels of both kinds."""
    card = model.read_card(model.find("spam-minilm") / model.CARD)
    assert card.task == "text-classification" and card.metric == plugins.task(card.task).METRIC
    for path in (card.data.calibration, card.data.training, card.data.validation, card.data.evaluation):
        arrays = data.load_npz(path)
        assert arrays["inputs"].shape == arrays["mask"].shape == (len(arrays["labels"]), 128)
        assert arrays["inputs"].max() < 30522 and set(np.unique(arrays["mask"])) <= {0, 1}
        assert not arrays["inputs"][arrays["mask"] == 0].any()
        assert arrays["labels"].mean() == 0.5


def test_training_mails_are_none_of_those_that_judge():
    card = model.read_card(model.find("spam-minilm") / model.CARD)
    source = SimpleNamespace(
        name=card.name, task=card.task, data=card.data, labels=card.labels, preprocessing=card.preprocessing,
        given=None, inputs=[replace(spec, shape=[-1, *spec.shape]) for spec in card.inputs],
    )  # fmt: skip
    learnt, judged = data.training(source), data.evaluation(source)
    assert not {row.tobytes() for row in learnt.inputs} & {row.tobytes() for row in judged.inputs}
    assert len(learnt.more["mask"]) == len(learnt.labels) == len(learnt.inputs) == 589
    assert (learnt.more["mask"].astype(bool) == (learnt.inputs != 0)).all()  # left out in step


def test_losses_are_of_the_scores_alone():
    import torch

    scores, embedding = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.randn(2, 4)
    right = task.loss([scores, embedding], torch.tensor([0, 1]))
    assert float(right) == pytest.approx(float(np.log(1 + np.exp(-2.0))))
    assert float(task.likeness([scores, embedding], [scores, -embedding], 2.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(task.likeness([scores, embedding], [scores.flip(1), embedding], 2.0)) > 0.1


def test_an_output_may_be_called_as_an_operator_is(tmp_path):
    """The exporter names values after operators; a name of the card must not meet one of those."""
    import torch

    from edgepipe.formats.onnx import export

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.Embedding(8, 4)

        def forward(self, ids):
            found = self.words(ids)
            return found.mean(1) * 2

    program = torch.export.export(Net().eval(), (torch.zeros(1, 3, dtype=torch.int32),))
    torch.export.save(program, tmp_path / "net.pt2")
    inputs, outputs = [{"name": "ids", "shape": [1, 3]}], [{"name": "embedding", "shape": [1, 4]}]
    made = export.convert(str(tmp_path / "net.pt2"), str(tmp_path / "net.onnx"), inputs, outputs, 1, None, None)
    assert made["outputs"][0]["name"] == "embedding"
