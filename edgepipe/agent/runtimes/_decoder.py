"""A language model decoded token by token with ONNX Runtime, its keys and values kept in buffers that calls write into.

Its file takes ``tokens`` [1, S], ``rows`` [R] (whose next token is wanted), ``last`` [1] and ``total`` (what is cached
after these tokens, less one and as it is) and the caches ``past_...`` [1, K, P, D]; it gives ``logits`` [R, V] and the
caches ``next_...``, in float or int8. Of all that a caller feeds text alone: see `fed`.
"""

from __future__ import annotations

import math
import os
from typing import Any, Iterable, Iterator, List, Optional, Tuple

from edgepipe.errors import IntegrityError
from edgepipe.schema import Artifact

FED = ("tokens", "scored")  # int64 [windows, length] and [windows]: how many of the last predictions of each count
ANSWER = "nats"  # [windows], the mean loss of those predictions in nats
PIECE = 128  # tokens taken in at once: no slower than all of them
PROMPT, FOLLOWING = 64, 32  # tokens before the timed ones, and how many of these until the answer begins anew

_GIVEN = 4  # inputs before the caches
_DONTNEED = 4  # linux/mman.h
_NAME = 5  # the place of the name in a line of smaps


def fed(artifact: Artifact) -> bool:
    """Whether the artifact is such a file: fed with text, answering with how likely it is."""
    return [spec.name for spec in artifact.inputs] == list(FED) and [s.name for s in artifact.outputs] == [ANSWER]


class Decoder:
    """A session, and the cache of the sequence so far, of ``room`` tokens at most; see `reserve`.

    ``profile`` is where ONNX Runtime begins the name of a profile of all calls, if it is to write one.
    """

    def __init__(self, path: str, threads: int, room: int = 0, *, optimize: bool = True, profile: str = "") -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.enable_mem_pattern = options.enable_cpu_mem_arena = False  # shapes change with each call
        options.log_severity_level = 3
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        let_go(path)
        self._seen = self._room = 0
        if room:
            self.reserve(room)

    def reserve(self, room: int) -> None:
        """Make room for ``room`` tokens and begin a new sequence.

        The cache is one buffer for each layer and kind that calls write into: nothing of it is ever copied.
        """
        import numpy as np
        import onnxruntime

        self._room, self._seen = room, 0
        self._bound = self._session.io_binding()
        self._bound.bind_output("logits", "cpu")
        self._caches = []
        for past, following in zip(self._session.get_inputs()[_GIVEN:], self._session.get_outputs()[1:]):
            _, heads, _, width = past.shape
            kind = np.int8 if "int8" in past.type else np.float32
            buffer = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, heads, room, width), kind))
            self._caches.append(buffer)
            self._bound.bind_ortvalue_input(past.name, buffer)
            self._bound.bind_ortvalue_output(following.name, buffer)

    def forget(self, after: int = 0) -> None:
        """Go back to the first ``after`` tokens of the sequence; 0 begins a new one. It costs nothing."""
        self._seen = after

    def cached(self) -> List[Any]:
        """Keys and values of the sequence so far, layer by layer: arrays [K, seen, D]."""
        return [buffer.numpy()[0, :, : self._seen] for buffer in self._caches]

    @property
    def seen(self) -> int:
        """Tokens of the sequence so far."""
        return self._seen

    def step(self, tokens: List[int], rows: Optional[List[int]] = None) -> Any:
        """Take ``tokens`` in; return logits [R, V] at ``rows``, which ascend, by default at the last one.

        More than `PIECE` are taken in piece by piece, so that a long prompt needs no more memory than a short one.

        Raises:
            ValueError: there is no room for them.
        """
        import numpy as np

        wanted = [len(tokens) - 1] if rows is None else rows
        if self._seen + len(tokens) > self._room:
            raise ValueError(f"{self._seen + len(tokens)} tokens, and room for {self._room}")
        found = []
        for start in range(0, len(tokens), PIECE):
            part = tokens[start : start + PIECE]
            own = [row - start for row in wanted if start <= row < start + len(part)]
            logits = self._taken(part, own or [0])  # an empty list of rows is nothing to rely on
            if own:
                found.append(logits)
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _taken(self, tokens: List[int], wanted: List[int]) -> Any:
        import numpy as np

        self._seen += len(tokens)
        for name, value in (
            ("tokens", np.array([tokens], np.int64)),
            ("rows", np.array(wanted, np.int64)),
            ("last", np.array([self._seen - 1], np.int32)),
            ("total", np.array(self._seen, np.int32)),
        ):
            self._bound.bind_cpu_input(name, value)
        self._bound.bind_output("logits", "cpu")  # anew: its shape is that of the last call else
        self._session.run_with_iobinding(self._bound)
        return self._bound.get_outputs()[0].numpy()

    def window(self, tokens: List[int], scored: int) -> float:
        """The mean loss in nats of the last ``scored`` predictions of ``tokens``, with nothing before them.

        Raises:
            IntegrityError: it is not finite.
        """
        if len(tokens) > self._room:
            self.reserve(len(tokens))
        self.forget()
        last = len(tokens) - 1
        return loss(self.step(tokens[:-1], list(range(last - scored, last))), tokens[-scored:])

    def profiled(self) -> str:
        """End the profile and return the path of its file."""
        return str(self._session.end_profiling())


class Answer:
    """One prompt answered again and again: each call of `next` is one token; the very first takes the prompt in."""

    def __init__(self, decoder: Decoder, tokens: List[int]) -> None:
        self._decoder, self._prompt = decoder, tokens[: min(PROMPT, len(tokens))]
        self._end = len(self._prompt) + FOLLOWING
        self._first = self._last = -1
        decoder.reserve(self._end)

    def next(self) -> int:
        """The likeliest next token. After `FOLLOWING` of them the answer begins anew behind the prompt."""
        decoder = self._decoder
        if self._first < 0:
            self._first = self._last = int(decoder.step(self._prompt)[0].argmax())
            return self._last
        if decoder.seen == self._end:
            decoder.forget(len(self._prompt))
            self._last = self._first
        self._last = int(decoder.step([self._last])[0].argmax())
        return self._last


def let_go(path: str) -> int:
    """Give back the memory of what a session has mapped of the file at ``path`` and those beside it; returns the bytes.

    The kernels have copied most weights into an order of their own, and what they read of the file while they did that
    (scales, zero points) stays in memory for nothing. What is read again comes back from the file. Only mappings
    without a page of their own are let go: such a page is not what the file says.
    """
    import ctypes

    freed = 0
    try:
        advise = ctypes.CDLL(None, use_errno=True).madvise
        advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        with open("/proc/self/smaps", encoding="utf-8", errors="replace") as file:
            for start, end, own in _mapped(file, os.path.realpath(path)):
                if not own and advise(start, end - start, _DONTNEED) == 0:
                    freed += end - start
    except (OSError, AttributeError, ValueError):
        pass  # another system: nothing is given back, and nothing is lost
    return freed


def _mapped(lines: Iterable[str], path: str) -> Iterator[Tuple[int, int, int]]:
    """Start, end and kB of changed pages of each mapping of ``path`` and of files whose names it begins."""
    place: Optional[Tuple[int, int]] = None
    for line in lines:
        head = line.split(None, 5)
        if "-" in head[0]:
            start, _, end = head[0].partition("-")
            ours = len(head) > _NAME and head[_NAME].rstrip("\n").startswith(path)
            place = (int(start, 16), int(end, 16)) if ours else None
        elif place and head[0] == "Anonymous:":
            yield (*place, int(head[1]))


def loss(logits: Any, truth: List[int]) -> float:
    """Mean cross-entropy in nats of ``logits`` [R, V]. Row by row: all of them as doubles are too much for a board.

    Raises:
        IntegrityError: it is not finite.
    """
    import numpy as np

    total = 0.0
    for row, token in zip(logits, truth):
        values = row.astype(np.float64)
        values -= values.max()
        total += float(np.log(np.exp(values).sum()) - values[token])
    found = total / len(truth)
    if not math.isfinite(found):
        raise IntegrityError("its logits are not finite", "perplexity", "take another form of the weights")
    return found
