"""What it costs to go through edgepipe from a torch model to three formats, against each converter by itself."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tests.bench.figure import Figure, at_most, interleaved, missing, seconds

MODELS = ("fashion-resnet8", "fashion-mbv2")
ROUNDS = 3
# Each converter as its own documentation calls it, in a process of its own as a person would.
_LOAD = """
import sys, torch
from pathlib import Path
from edgepipe import model
found = model.load(sys.argv[1])
module, example = found.module.eval(), (torch.rand(1, *found.inputs[0].shape[1:]),)
folder = Path(sys.argv[2])
"""
_NATIVE = {
    "onnx": "torch.onnx.export(module, example, str(folder / 'm.onnx'), dynamo=True, external_data=False,"
    " verbose=False)",
    "tflite": "import litert_torch; litert_torch.convert(module, example).export(str(folder / 'm.tflite'))",
    "openvino": "import openvino; openvino.save_model(openvino.convert_model(module, example_input=example),"
    " str(folder / 'm.xml'))",
}
_OURS = """
import sys
from edgepipe import export, model
found = model.load(sys.argv[1])
for name in sys.argv[2].split(","):
    export.make(found, "none", name)
"""


def figures(folder: Path) -> list[Figure]:
    """Wall time of all three formats, nothing cached, over the sum of the three converters' own."""
    try:
        import litert_torch  # noqa: F401
        import openvino  # noqa: F401
    except ImportError as error:
        return [missing("torch to three formats / converters alone", str(error))]
    return [_against(name, folder) for name in MODELS]


def _against(name: str, folder: Path) -> Figure:
    out, cache = folder / "native", folder / "cache"

    def ours() -> float:
        shutil.rmtree(cache, ignore_errors=True)
        environment = {**os.environ, "EDGEPIPE_CACHE": str(cache)}
        return seconds([sys.executable, "-c", _OURS, name, ",".join(_NATIVE)], env=environment)

    def native() -> float:
        out.mkdir(exist_ok=True)
        return sum(seconds([sys.executable, "-c", _LOAD + code, name, str(out)]) for code in _NATIVE.values())

    first, second, ratio = interleaved(ours, native, ROUNDS)
    detail = f"({first:.1f} / {second:.1f} s)"
    return at_most(f"{name} to three formats / converters alone", ratio, 1.1, "x", detail)
