"""Static quantisation by Neural Compressor 2.x, the last line with an ONNX backend, with its defaults."""

from pathlib import Path

import common


def quantize(job):
    import onnx
    from neural_compressor import PostTrainingQuantConfig, quantization

    data = common.samples(job)

    class Loader:
        batch_size = 1

        def __iter__(self):
            for sample in data:
                yield sample, 0

    config = PostTrainingQuantConfig(approach="static", calibration_sampling_size=[len(data)])
    model = onnx.load(job["model"])
    del model.graph.value_info[:]  # it turns Gemm round and trips over the old shapes of its weights
    quantized = quantization.fit(model, config, calib_dataloader=Loader())
    file = Path(job["target"]) / "model.onnx"
    quantized.save(str(file))
    return file


common.main(quantize)
