"""onnxruntime-genai's own loop over edgepipe's file, whose inputs are made of those that genai knows."""

import time
from pathlib import Path

import common
import onnxruntime_genai


def load(job):
    return onnxruntime_genai.Model(str(Path(job["model"]).parent))


def answer(model, job):
    params = onnxruntime_genai.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=len(job["prompt"]) + job["new"])
    generator = onnxruntime_genai.Generator(model, params)
    start = time.perf_counter()
    generator.append_tokens(job["prompt"])
    generator.generate_next_token()
    first = time.perf_counter()
    for _ in range(job["new"] - 1):
        generator.generate_next_token()
    return (first - start) * 1e3, (job["new"] - 1) / (time.perf_counter() - first)


common.main(load, answer)
