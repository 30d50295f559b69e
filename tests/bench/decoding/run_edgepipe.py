"""edgepipe's own loop over the file that it made."""

import time

import common
import onnxruntime  # noqa: F401  before the count of what is there without a model

from edgepipe.agent.runtimes._decoder import Decoder


def load(job):
    return Decoder(job["model"], job["threads"], len(job["prompt"]) + job["new"])


def answer(decoder, job):
    decoder.forget()
    start = time.perf_counter()
    part = [int(decoder.step(job["prompt"])[0].argmax())]
    first = time.perf_counter()
    for _ in range(job["new"] - 1):
        part = [int(decoder.step(part)[0].argmax())]
    return (first - start) * 1e3, (job["new"] - 1) / (time.perf_counter() - first)


common.main(load, answer)
