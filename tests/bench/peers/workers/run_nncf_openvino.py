"""NNCF's defaults on its OpenVINO backend."""

from pathlib import Path

import common


def quantize(job):
    import nncf
    import openvino

    model = openvino.Core().read_model(job["model"])
    del model.get_rt_info()["edgepipe"]  # the hash of the float file's weights
    quantized = nncf.quantize(model, nncf.Dataset(common.samples(job)))
    file = Path(job["target"]) / "model.xml"
    openvino.save_model(quantized, str(file))
    return file


common.main(quantize)
