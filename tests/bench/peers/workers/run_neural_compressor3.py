"""Static quantisation by Neural Compressor 3.x with its defaults: it stays a torch program, there is no file."""

import importlib.util

import common


def quantize(job):
    import torch
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import convert, get_default_static_config, prepare

    spec = importlib.util.spec_from_file_location("network", job["network"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.build().eval()
    data = [torch.from_numpy(sample) for sample in common.samples(job)]
    exported = export(network, example_inputs=(data[0],))
    prepared = prepare(exported, get_default_static_config(), example_inputs=(data[0],))
    with torch.no_grad():
        for sample in data:
            prepared(sample)
    convert(prepared)


common.main(quantize)
