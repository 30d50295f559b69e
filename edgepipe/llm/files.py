"""From a GGUF to ONNX files with a key-value cache: in float, and with their weights in 8 or 4 bits.

What needs torch or onnx runs in a child process; `made` keeps the files by what went into them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe import cache, isolate
from edgepipe.errors import IntegrityError, UsageError
from edgepipe.progress import Progress

if TYPE_CHECKING:
    from edgepipe.llm.gguf import File

NAME = "model.onnx"
_VARIANT = re.compile(r"(?:fp32|(int4|int8)(?:-g(16|32|64|128|256))?)(-kv8)?\Z")
_GROUP = 32
_FLOAT, _BYTE = 32, 8
OPSET, IR = 21, 10  # of the files
ACCURACY = 4
CALIBRATION = "dostoyevsky"
_SEEN = 1024  # tokens
_MARGIN, _MOST = 1.1, 127  # a longer text reaches a little further
_TOOLS = ("torch", "onnx", "onnxruntime")
_SPREAD = 1e-3  # of logits that reach some tens: what another order of the same sums may cost
_PROBE = (9, 1, 4)  # tokens of the calls that the exported file is compared on, each after those before


@dataclass(frozen=True)
class Variant:
    """How weights are kept: ``bits`` 32 is as exported. ``group`` weights share a scale and a zero point.

    ``cache`` is in how many bits keys and values are kept.
    """

    name: str
    bits: int
    group: int
    cache: int = 32


def variant(name: str) -> Variant:
    """Read ``fp32``, ``int8``, ``int4`` or ``int4-g64``, each with ``-kv8`` behind it or not; without a group it is 32.

    Raises:
        UsageError: none of these.
    """
    match = _VARIANT.match(name)
    if not match:
        fix = "choose of fp32, int8, int4, or with a group as in int4-g128 (16, 32, 64, 128 or 256), or int4-kv8"
        raise UsageError(f"no such form of the weights: {name}", "--weights", fix)
    bits, group = (int(match[1][3:]), int(match[2] or _GROUP)) if match[1] else (_FLOAT, 0)
    return Variant(name, bits, group, _BYTE if match[3] else _FLOAT)


def made(gguf: Path, how: Variant, context: int, progress: Progress) -> Path:
    """The ONNX file of a model with its weights as ``how`` says; made once, then taken from the cache.

    Raises:
        UsageError: the GGUF is not one that is read here.
        IntegrityError: the GGUF is damaged, or the file does not compute what the network does.
    """
    here = Path(__file__).parent
    parts = ("files", "graph", "weights", "packed", "network", "sizes", "gguf")
    source = {
        "gguf": cache.hash_file(gguf),
        "context": context,
        "tools": cache.versions(_TOOLS),
        "code": cache.code(*(here / f"{part}.py" for part in parts)),
    }

    floats, seen = "", list[int]()
    if how.cache != _FLOAT:
        floats, seen = str(made(gguf, variant("fp32"), context, progress)), _calibration(gguf, context, progress)
        source |= {"cache": how.cache, "seen": seen}

    def write(folder: Path) -> None:
        with progress.task(f"weights in {how.name}", "s") as task:
            kwargs = {"gguf": str(gguf), "context": context, "bits": how.bits, "size": how.group, "folder": str(folder)}
            kwargs |= {"floats": floats, "seen": seen}
            isolate.call("edgepipe.llm.files:export", kwargs, tick=task.update)

    kept, _ = cache.Cache().make(cache.key("llm-onnx", bits=how.bits, size=how.group, **source), write)
    return kept / NAME


def _calibration(path: Path, context: int, progress: Progress) -> list[int]:
    """Tokens that a cache in fewer bits is fitted to: of another text than the one that judges."""
    from edgepipe.llm import gguf, source
    from edgepipe.llm.text import Text

    found = Text(gguf.read(path)).encode(source.text(CALIBRATION, progress))[: min(_SEEN, context)]
    if not found:
        raise UsageError(f"{CALIBRATION} has no tokens", str(path), "take a form without -kv8")
    return found


def size(path: Path) -> int:
    """Bytes of a file and of the weights beside it."""
    return sum(part.stat().st_size for part in path.parent.glob(f"{NAME}*"))


def export(
    gguf: str,
    context: int,
    folder: str,
    bits: int = 32,
    size: int = 0,
    accuracy: int = ACCURACY,
    floats: str = "",
    seen: list[int] | None = None,
) -> dict[str, Any]:
    """Write ``model.onnx`` to ``folder``; in float it is compared with the network over three calls. Runs in a child.

    With the float file ``floats`` and tokens ``seen`` keys and values are kept in 8 bits, fitted to what these make.

    Raises:
        IntegrityError: the file answers otherwise than the network.
    """
    from edgepipe.llm import gguf as reader
    from edgepipe.llm import graph, sizes, weights

    file = reader.read(Path(gguf))
    s = sizes.sizes(file, context)
    scales = _scales(floats, seen) if seen else []
    graph.write(Path(folder), s, weights.Weights(file, s, bits, size), accuracy, scales)
    if bits != _FLOAT or scales:
        return {}
    path = str(Path(folder) / NAME)
    spread = _compare(file, context, path)
    if not spread < _SPREAD:
        raise IntegrityError(f"the exported file's logits are off by {spread:.2g}", path, "please report this model")
    return {"spread": spread}


def _scales(path: str, tokens: list[int]) -> list[Any]:
    """A step of each channel of keys and values, [K * D] for each layer and kind, by what the float file caches.

    Keys turn with their place: the longest of the two halves that turn with each other bounds them at every place.
    """
    import numpy as np

    from edgepipe.agent.runtimes._decoder import Decoder

    decoder = Decoder(path, 1, len(tokens))
    decoder.step(tokens)
    found = []
    for number, values in enumerate(decoder.cached()):
        reach = np.abs(values)
        if number % 2 == 0:
            half = values.shape[2] // 2
            reach = np.tile(np.hypot(values[..., :half], values[..., half:]), 2)
        most = reach.max(1).reshape(-1) * _MARGIN
        found.append(np.maximum(most / _MOST, np.finfo(np.float32).tiny).astype(np.float32))
    return found


def _compare(file: File, context: int, path: str) -> float:
    """The largest difference of logits between the file and the network: a prompt, one token, then several."""
    import torch

    from edgepipe.agent.runtimes._decoder import Decoder
    from edgepipe.llm import network

    model = network.load(file, context)
    decoder, kept, worst = Decoder(path, 1, sum(_PROBE)), model.empty(), 0.0
    generator = torch.Generator().manual_seed(0)
    for count in _PROBE:
        tokens = torch.randint(model.sizes.vocabulary, (1, count), generator=generator)
        rows = torch.arange(count)
        with torch.no_grad():
            expected, kept = model(tokens, rows, kept)
        logits = torch.from_numpy(decoder.step(tokens[0].tolist(), rows.tolist()))
        worst = max(worst, float((logits - expected).abs().max()))
    return worst
