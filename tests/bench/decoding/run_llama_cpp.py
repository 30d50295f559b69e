"""llama.cpp by xllamacpp, in this process: its own greedy loop, timed by itself."""

import json

import common
import xllamacpp


def load(job):
    given = xllamacpp.CommonParams()
    given.model.path = job["model"]
    given.n_ctx = len(job["prompt"]) + job["new"] + 8
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = job["threads"]
    given.n_parallel = 1
    return xllamacpp.Server(given)


def answer(server, job):
    asked = {"prompt": job["prompt"], "n_predict": job["new"], "top_k": 1, "samplers": ["top_k"], "ignore_eos": True}
    found = server.handle_completions({**asked, "cache_prompt": False})
    times = (json.loads(found) if isinstance(found, str) else found)["timings"]
    return times["prompt_ms"], times["predicted_per_second"]


common.main(load, answer)
