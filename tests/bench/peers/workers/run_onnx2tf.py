"""onnx2tf's integer quantisation with its defaults; of its files the one with float inputs and outputs."""

from pathlib import Path

import common


def quantize(job):
    import numpy as np
    from onnx2tf import convert

    folder = Path(job["target"])
    data = np.concatenate(common.samples(job)).transpose(0, 2, 3, 1)
    np.save(folder / "data.npy", data)
    channels = data.shape[-1]
    neutral = [[[[0.0] * channels]]], [[[[1.0] * channels]]]
    convert(
        input_onnx_file_path=job["model"],
        output_folder_path=str(folder / "out"),
        output_integer_quantized_tflite=True,
        custom_input_op_name_np_data_path=[[job["input"], str(folder / "data.npy"), *neutral]],
        non_verbose=True,
    )
    found = sorted((folder / "out").glob("*_integer_quant.tflite"))
    floats = [file for file in found if "full" not in file.name and "int16" not in file.name]
    return floats[0] if floats else None


common.main(quantize)
