"""Edits: the structure of a changed network as data, and back."""

import copy
import json

import pytest
import torch
from torch import nn

from edgepipe.edits import apply_edits, find_edits
from edgepipe.errors import UsageError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = 4
        self.position = nn.Parameter(torch.zeros(1, 5, 8))
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def round_trip(changed):
    base = Net()
    edits = json.loads(json.dumps(find_edits(base, changed)))
    rebuilt = copy.deepcopy(base)
    apply_edits(rebuilt, edits)
    rebuilt.load_state_dict(changed.state_dict(), strict=True)
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(x), changed.eval()(x))
    return edits


def test_the_same_structure_has_no_edits():
    assert find_edits(Net(), Net()) == {}


def test_fewer_channels():
    changed = Net()
    changed.body = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU())
    changed.head = nn.Linear(5, 4)
    assert set(round_trip(changed)) == {"body.0", "body.1", "head"}


def test_a_layer_that_became_two():
    changed = Net()
    changed.head = nn.Sequential(nn.Linear(8, 2, bias=False), nn.Linear(2, 4))
    changed.body[0] = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 8, 3, padding=1, bias=True))
    assert set(round_trip(changed)) == {"body.0", "head"}


def test_attributes_and_parameters_of_the_module_itself():
    changed = Net()
    changed.heads = 2
    changed.position = nn.Parameter(torch.ones(1, 5, 6))
    edits = round_trip(changed)
    assert edits == {"": {"attributes": {"heads": 2}, "parameters": {"position": [1, 5, 6]}}}


def test_a_layer_edits_can_not_say_is_refused():
    changed = Net()
    changed.head = nn.Bilinear(8, 8, 4)
    with pytest.raises(UsageError, match="Bilinear"):
        find_edits(Net(), changed)


@pytest.mark.parametrize(
    "edits",
    [
        {"nowhere.at.all": {"kind": "Identity", "arguments": {}}},
        {"head": {"kind": "Module", "arguments": {}}},
        {"head": {"kind": "os.system", "arguments": {}}},
    ],
)
def test_edits_never_run_code_of_their_own(edits):
    with pytest.raises(UsageError):
        apply_edits(Net(), edits)
