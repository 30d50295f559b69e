"""Small networks of the three kinds, data they can learn, and a step applied to them and kept as edits."""

import copy
import json

import numpy as np
import torch
from torch import nn

from edgepipe.edits import apply_edits, find_edits
from edgepipe.schema import TensorSpec
from edgepipe.training import Context, Examples, Keep


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        x = self.one(x)
        return self.head((x + self.two(x)).mean((2, 3)))


class Depthwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
        self.deep = nn.Sequential(
            nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU6(),
            nn.Conv2d(24, 48, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU6(),
        )  # fmt: skip
        self.head = nn.Linear(48, 4)

    def forward(self, x):
        return self.head(self.deep(self.stem(x)).mean((2, 3)))


class Encoder(nn.Module):
    """Patches of an image as tokens, two encoder layers, the mean token as the answer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(48, 32)
        self.position = nn.Parameter(torch.randn(1, 4, 32) * 0.1)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        n = x.shape[0]
        patches = x.reshape(n, 3, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(n, 4, 48)
        return self.head(self.body(self.embed(patches) + self.position).mean(1))


NETWORKS = {"cnn": Cnn, "depthwise": Depthwise, "encoder": Encoder}


def network(kind):
    """A network in eval mode, seeded, its statistics seen."""
    torch.manual_seed(0)
    made = NETWORKS[kind]()
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):  # as after training: no two scales are the same
                module.weight.uniform_(0.5, 1.5)
        for _ in range(5):
            made(torch.randn(64, 3, 8, 8))
    return made.eval()


def context(kind, *, training=True, **more):
    """Data the teacher itself labels, so that a network that follows it is right."""
    teacher = network(kind)
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    random = np.random.default_rng(1)
    inputs = random.normal(size=(512, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        labels = teacher(torch.from_numpy(inputs)).argmax(1).numpy()
    examples = Examples(inputs, labels, lambda raw: raw, "made up")

    def loss(outputs, wanted):
        return nn.functional.cross_entropy(outputs[0], wanted)

    specs = [TensorSpec("x", [-1, 3, 8, 8])]
    return Context(teacher, specs, examples, examples if training else None, loss, **more)


def apply(module, kind, **params):
    """The step's result, proven to be what edits say of it: rebuilt from them, it gives the same outputs."""
    here = params.pop("context", None) or context(kind)
    base = network(kind)
    changed = module.compress(copy.deepcopy(base), {**module.DEFAULTS, **params}, here)
    rebuilt = copy.deepcopy(base)
    apply_edits(rebuilt, json.loads(json.dumps(find_edits(base, changed.network))))
    rebuilt.load_state_dict(changed.network.state_dict(), strict=True)
    inputs = torch.from_numpy(here.calibration.inputs[:8])
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(inputs), changed.network.eval()(inputs))
    return changed


def agreement(changed, here):
    """The share of samples to which the network gives the teacher's answer."""
    with torch.no_grad():
        answers = changed.network(torch.from_numpy(here.calibration.inputs)).argmax(1).numpy()
    return float((answers == here.calibration.labels).mean())


__all__ = ["NETWORKS", "Keep", "agreement", "apply", "context", "network"]
