"""Adapters as releases of their own on a base that stays, over a real SSH connection."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgepipe import bench, export, model
from edgepipe import board as boards
from edgepipe.formats.onnx import apart
from edgepipe.progress import Silent
from edgepipe.training import answers
from tests.unit import formats_kit as kit

pytest.importorskip("peft")
NETWORK = """
from torch import nn


def build():
    wide = [nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*wide, nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 4))
"""
RECIPES = ("lora:2,merge=no,epochs=1", "lora:1,merge=no,epochs=1", "lora:2,merge=no,epochs=2,base=int8")


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A network whose weights are mostly in one matrix, and images to learn from."""
    from safetensors.torch import save_file

    monkeypatch.setattr(kit, "NETWORK", NETWORK)
    folder = kit.write_model(tmp_path / "model")
    card = (folder / "model.toml").read_text().replace("evaluation =", 'training = "training.npz"\nevaluation =')
    (folder / "model.toml").write_text(card)
    scope: dict = {}
    exec(NETWORK, scope)
    torch.manual_seed(0)
    save_file(scope["build"]().state_dict(), folder / "weights.safetensors")
    sha = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    (folder / "model.toml").write_text(card.replace(card.split('weights_sha256 = "')[1][:64], sha))
    random = np.random.default_rng(5)
    images = random.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "training.npz", inputs=images, labels=random.integers(0, 4, 64))
    return model.load(str(folder))


def test_a_further_adapter_sends_its_own_small_file_alone(source, board):
    made = [export.make(source, recipe, "onnx") for recipe in RECIPES]
    assert [[ref.name for ref in one.artifact.files] for one in made] == [["model.onnx", apart.BASE]] * 3
    bases = [one.artifact.files[1] for one in made]
    assert bases[0] == bases[1] != bases[2]  # the same whatever the rank; rounded weights are another base
    images = np.random.default_rng(6).normal(size=(8, 3, 8, 8)).astype(np.float32)
    content, inputs = bench.blob({"image": images})
    sent = []
    with boards.connect(board.pinned(python=sys.executable), "me@test", Silent()) as client:
        client.push([(content, inputs)])
        for one in made[:2]:
            sent.append(client.push(bench.files_of(one.artifact)))
            manifest = bench.manifest_of(one.artifact)
            found = client.arrays(client.verify(manifest, inputs).outputs)
            assert client.activate(manifest).changed
            with torch.no_grad():
                wanted = answers(one.model.module.eval(), torch.from_numpy(images))
            assert np.abs(found[0] - wanted[0].numpy()).max() < 1e-4
        assert client.activate(bench.manifest_of(made[0].artifact)).changed  # back to the first: nothing to send
    own = [one.artifact.files[0].bytes for one in made]
    assert sent == [own[0] + bases[0].bytes, own[1]]
    assert own[1] < 0.1 * bases[0].bytes


def test_one_hash_covers_both_files(source):
    import onnx

    artifact = export.make(source, RECIPES[0], "onnx").artifact
    proto = onnx.load(artifact.path, load_external_data=False)
    assert {item.key: item.value for item in proto.metadata_props} == {apart.PROPERTY: artifact.files[1].sha256}
    assert artifact.sha256 == artifact.files[0].sha256
    bare = export.artifact_of_file(Path(artifact.path), source)  # as `bench FILE` and `verify FILE` take it
    assert bare.files == artifact.files


def test_equal_weights_are_stored_once_and_in_an_order_of_their_own(tmp_path):
    """Names and order of the graph say nothing to the base."""
    import onnx
    from onnx import helper, numpy_helper

    values = [np.random.default_rng(seed).normal(size=(32, 32)).astype(np.float32) for seed in range(3)]
    shas = []
    for run, order in enumerate(([0, 1, 2, 0], [2, 0, 1])):
        tensors = [numpy_helper.from_array(values[at], f"w{run}_{place}") for place, at in enumerate(order)]
        proto = helper.make_model(helper.make_graph([], "g", [], [], tensors))
        folder = tmp_path / str(run)
        folder.mkdir()
        own = apart.digests(_Holder(values[1].T.copy()), ["weight"])  # stored turned round, and recognised
        apart.split(proto, folder, own)
        content = (folder / apart.BASE).read_bytes()
        assert len(content) == 2 * 32 * 32 * 4
        onnx.save(proto, folder / "model.onnx")
        for tensor, at in zip(onnx.load(folder / "model.onnx").graph.initializer, order, strict=True):
            assert np.array_equal(numpy_helper.to_array(tensor), values[at])
        shas.append(hashlib.sha256(content).hexdigest())
    assert shas[0] == shas[1]


class _Holder(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(values))
