"""Olive's static quantisation pass with its defaults."""

import shutil
from pathlib import Path

import common


def quantize(job):
    from olive.data.registry import Registry
    from olive.workflows import run

    name = job["input"]

    class Samples:
        def __init__(self):
            self.data = common.samples(job)

        def __len__(self):
            return len(self.data)

        def __getitem__(self, index):
            return {name: self.data[index][0]}, 0

    Registry.register_dataset("edgepipe_samples")(lambda **_: Samples())
    folder = Path(job["target"])
    cache = folder / "cache"
    config = {
        "input_model": {"type": "ONNXModel", "model_path": job["model"]},
        "data_configs": [
            {
                "name": "samples",
                "type": "DataContainer",
                "load_dataset_config": {"type": "edgepipe_samples"},
                "dataloader_config": {"batch_size": 1},
            }
        ],
        "passes": {"quantize": {"type": "OnnxStaticQuantization", "data_config": "samples"}},
        "cache_dir": str(cache),
        "output_dir": str(folder / "out"),
        "log_severity_level": 3,
    }
    run(config)
    shutil.rmtree(cache, ignore_errors=True)
    found = sorted((folder / "out").rglob("*.onnx"))
    return found[0] if found else None


common.main(quantize)
