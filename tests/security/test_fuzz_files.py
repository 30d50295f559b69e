"""A few hundred mutated files; `make fuzz` reads a hundred thousand."""

from pathlib import Path

import pytest

from tests.fuzz_files.__main__ import fuzz
from tests.unit import formats_kit as kit


@pytest.mark.parametrize(("kind", "name"), [("onnx", "onnx"), ("tflite", "tflite"), ("xml", "openvino")])
def test_mutated_files(kind, name, monkeypatch):
    monkeypatch.setenv("EDGEPIPE_HOME", str(kit.home()))
    found = fuzz(kind, Path(kit.made(name).artifact.path), 100)
    assert sum(found.values()) == 100
    assert found["refused"] > 0
    assert not found["escaped"]
