"""NNCF's defaults on its ONNX backend."""

from pathlib import Path

import common


def quantize(job):
    import nncf
    import onnx

    name = job["input"]
    data = nncf.Dataset(common.samples(job), lambda sample: {name: sample})
    quantized = nncf.quantize(onnx.load(job["model"]), data)
    file = Path(job["target"]) / "model.onnx"
    onnx.save(quantized, file)
    return file


common.main(quantize)
