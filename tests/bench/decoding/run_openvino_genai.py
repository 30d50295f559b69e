"""openvino-genai's own pipeline over the GGUF."""

import common
import numpy as np
import openvino as ov
import openvino_genai


def load(job):
    return openvino_genai.LLMPipeline(job["model"], "CPU", INFERENCE_NUM_THREADS=job["threads"])


def answer(pipe, job):
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = job["new"], True, False
    metrics = pipe.generate(ov.Tensor(np.array([job["prompt"]], np.int64)), config).perf_metrics
    return metrics.get_ttft().mean, 1e3 / metrics.get_tpot().mean


common.main(load, answer)
