"""edgepipe's own int8 step with its defaults, in this process as the peers run in theirs."""

import importlib
from pathlib import Path

import common
import numpy as np


def call(target, kwargs):
    """Run a converter's function here: what `isolate.call` does in a child."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)(**kwargs)


def quantize(job):
    from edgepipe import artifact
    from edgepipe.artifact import ExportOptions

    source = artifact.load(Path(job["model"]).parent)
    module = importlib.import_module(f"edgepipe.formats.{source.format}.quantize")
    folder = Path(job["target"])
    given = folder / "calibration.npz"
    data = np.concatenate(common.samples(job))
    if source.inputs[0].layout == "NHWC":
        data = data.transpose(0, 2, 3, 1)
    np.savez(given, **{source.inputs[0].name: data})
    params = {**module.DEFAULTS["int8"], "samples": len(data)}
    del data  # the converter reads the file
    output = module.quantize(source, "int8", params, given, folder, ExportOptions(), call)
    return folder / output.files[0]


common.main(quantize)
