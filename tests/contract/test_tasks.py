"""Every task of the folder, and every shipped model with data: a new file is under test the moment it exists."""

import inspect

import numpy as np
import pytest

from edgepipe import data, fetched, model, plugins, scores, verify

TASKS = plugins.names("tasks")
SHIPPED = [name for name in model.listing() if model.read_card(model.find(name) / model.CARD).data]
EXTRAS = {"object-detection": "pycocotools"}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_says_what_it_measures(name):
    task = plugins.task(name)
    assert task.__doc__ and task.metric.__doc__ and task.disagreement.__doc__
    assert isinstance(task.METRIC, str) and task.METRIC
    assert list(inspect.signature(task.metric).parameters) == ["outputs", "labels"]
    assert list(inspect.signature(task.disagreement).parameters) == ["a", "b"]
    assert bool(scores.unit(task)) or not scores.lower_is_better(task), "a share is better the higher it is"
    if hasattr(task, "further"):
        assert list(inspect.signature(task.further).parameters)[:2] == ["outputs", "labels"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_keeps_its_floor_and_its_task_knows_damage(name):
    card = model.read_card(model.find(name) / model.CARD)
    if card.weights_from and not fetched.place(card.weights_from).is_file():
        pytest.skip(f"{card.weights_from.package} is not in the cache")
    source = model.load(name)
    task = plugins.task(source.task)
    pytest.importorskip(EXTRAS.get(source.task, "numpy"))
    dataset = data.evaluation(source, "shipped").first(400)
    assert source.floor and source.metric == task.METRIC and dataset.labels is not None
    outputs = verify.framework(source, dataset)
    value = task.metric(outputs, dataset.labels)
    lost = scores.lost(source.floor, value, task)
    assert lost <= 0, f"{task.METRIC} of {name} is {value}, its floor is {source.floor}"
    assert task.disagreement(outputs, outputs) == 0
    broken = [output.copy() for output in outputs]
    for output in broken:
        output[: len(output) // 2] = np.nan
    assert task.disagreement(outputs, broken) > 0.25
    worse = task.metric(broken, dataset.labels)
    assert np.isnan(worse) or scores.lost(value, worse, task) > 0.25
    if hasattr(task, "further"):
        found = task.further(outputs, dataset.labels)
        assert found and all(np.isfinite(list(found.values())))
