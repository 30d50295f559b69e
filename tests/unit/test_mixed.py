"""The walk of mixed precision, with files that are only names: what is tried, what is kept, what is said."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe import isolate, mixed
from edgepipe.progress import Silent
from edgepipe.stages import FileStage

LAYERS = ["a", "b", "c", "d", "e"]
HARM = {"a": 0.001, "b": 0.05, "c": 0.0, "d": 0.02, "e": 0.0}  # what each loses when it is quantised


class Stages:
    """Stands in for the real stages: a file is the list of layers it keeps."""

    format, progress = "x", Silent()

    def __init__(self):
        self.tried = []

    def quantize(self, model, before, action, prefix, keep):
        self.tried.append(tuple(keep))
        return FileStage("k", tuple(keep), {"note": "said"}, False)


class Judge:
    def __init__(self, harm):
        self.harm = harm

    def loss(self, before, after):
        return sum(harm for layer, harm in self.harm.items() if layer not in after)

    def noise_db(self, before, after):
        return self.loss(before, after) * 100 - 50


@pytest.fixture
def stages(monkeypatch):
    monkeypatch.setattr(isolate, "call", lambda target, arguments: [{"name": name} for name in LAYERS])
    return Stages()


def walk(stages, limit, harm=HARM):
    action = SimpleNamespace(module=SimpleNamespace(__name__="m"))
    before = FileStage("f", SimpleNamespace(path="float"), {}, True)
    return mixed.walk(stages, SimpleNamespace(name="net"), before, action, "mixed", Judge(harm), limit)


def test_nothing_is_ranked_where_everything_holds(stages):
    found = walk(stages, 0.1)
    assert found.artifact == ()
    assert stages.tried == [()]
    assert "all layers quantised" in found.record["note"]


def test_the_fewest_of_the_worst_stay(stages):
    found = walk(stages, 0.01)
    assert set(found.artifact) == {"b", "d"}
    assert "2 of 5 layers stay in float: b (-45 dB), d (-48 dB)" in found.record["note"]
    assert "loss 7.10% -> 0.10%" in found.record["note"]
    assert found.record["note"].endswith("said")


def test_a_limit_nothing_meets_keeps_all(stages):
    assert set(walk(stages, -1.0).artifact) == set(LAYERS)


@given(st.integers(1, 200), st.data())
def test_fewest_is_the_first_that_holds(total, data):
    first = data.draw(st.integers(1, total))
    assert mixed.fewest(total, lambda count: count >= first) == first
