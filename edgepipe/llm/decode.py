"""Run an exported language model token by token with onnxruntime, score it and time it. Needs numpy and onnxruntime.

What is called from elsewhere runs in a child process of its own, so that its peak memory is the model's.
"""

from __future__ import annotations

import resource
import time
from itertools import pairwise
from typing import Any

from edgepipe.agent.measure import memory_peak_bytes
from edgepipe.agent.runtimes._decoder import Decoder


def perplexity(path: str, threads: int, tokens: list[int], window: int, stride: int) -> list[float]:
    """The mean negative log-likelihood, in nats a token, of each window. Runs in a child.

    A window is ``window`` tokens in a row with an empty cache before; the next begins ``stride`` further. Of each the
    last ``stride`` predictions count (all ``window - 1`` where the stride is the window): the rest is context.

    Raises:
        IntegrityError: the file answers with what is no number.
    """
    from edgepipe import isolate

    decoder, found = Decoder(path, threads, window), []
    starts = range(0, len(tokens) - window + 1, stride)
    for start in starts:
        found.append(decoder.window(tokens[start : start + window], min(stride, window - 1)))
        isolate.report(len(found), len(starts))
    return found


def agreement(path: str, threads: int, question: list[int], answer: list[int]) -> float:
    """The share of ``answer``'s tokens that this file would choose too, each after those before. Runs in a child.

    The answer is fed one token at a time, as it is when it is made: kernels for one row differ from those for many, and
    a framed question holds marks that a plain text lacks.
    """
    decoder = Decoder(path, threads, len(question) + len(answer))
    fed = [question, *([token] for token in answer[:-1])]
    same = [int(decoder.step(part)[0].argmax()) == token for part, token in zip(fed, answer, strict=True)]
    return sum(same) / len(same)


def generate(path: str, threads: int, tokens: list[int], most: int, end: int) -> list[int]:
    """The likeliest continuation, token by token, up to ``end`` or ``most`` tokens. Runs in a child."""
    decoder, part = Decoder(path, threads, len(tokens) + most), tokens
    found: list[int] = []
    while len(found) < most:
        found.append(int(decoder.step(part)[0].argmax()))
        if found[-1] == end:
            break
        part = found[-1:]
    return found


def timed(path: str, threads: int, prompt: list[int], new: int, repeats: int) -> dict[str, Any]:
    """Load the model and answer ``prompt`` with ``new`` tokens, ``repeats`` times after one that warms up.

    Runs in a child. Times are in ms: ``load``, ``cold`` (the first token of the first answer), ``first`` (to the first
    token, of each answer), ``next`` (each token after it, of each answer). ``peak_bytes`` is the most memory the
    process held, ``bare_bytes`` what of it was there before the model: Python and the runtime.
    """
    import onnxruntime  # noqa: F401  so that what it needs for itself is not the model's

    from edgepipe import isolate

    bare = _held()
    start = time.perf_counter()
    decoder = Decoder(path, threads, len(prompt) + new)
    loaded = (time.perf_counter() - start) * 1e3
    first, following = [], []
    for turn in range(repeats + 1):
        decoder.forget()
        ticks, part = [time.perf_counter()], prompt
        for _ in range(new):
            part = [int(decoder.step(part)[0].argmax())]
            ticks.append(time.perf_counter())
        spans = [(after - before) * 1e3 for before, after in pairwise(ticks)]
        first.append(spans[0])
        following.append(spans[1:])
        isolate.report(turn + 1, repeats + 1)
    spans_of = {"load": loaded, "cold": first[0], "first": first[1:], "next": following[1:]}
    return {**spans_of, "bare_bytes": bare, "peak_bytes": _held()}


def _held() -> int:
    """The most memory this process held so far; where the system tells that of it and its parent together, that."""
    return memory_peak_bytes() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
