"""Decoding with our int4 file against other runtimes' own loops: one model, one prompt, the same threads, in turns."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepipe import isolate
from edgepipe.errors import EdgepipeError
from edgepipe.llm import files, gguf, measure, sizes, source
from edgepipe.llm.text import Text
from edgepipe.progress import Silent
from tests.bench.decoding import genai_folder
from tests.bench.figure import Figure, at_least, at_most, missing
from tests.bench.peers import environments
from tests.bench.peers.environments import Environment, MissingError

ROUNDS, THREADS = 3, int(os.environ.get("EDGEPIPE_LLM_THREADS", "2"))
PROMPT, NEW, REPEATS, DEADLINE = 64, 48, 2, 300
CONTEXT = 1024
_WORKERS = Path(__file__).parent / "decoding"


@dataclass(frozen=True)
class Peer:
    """Another runtime, and the share of its rate that ours must reach."""

    name: str
    script: str
    environment: Environment
    share: float


PEERS = (
    Peer("llama.cpp", "run_llama_cpp.py", environments.LLAMA_CPP, 0.9),
    Peer("onnxruntime-genai", "run_genai.py", environments.GENAI, 1.0),
    Peer("openvino-genai", "run_openvino_genai.py", environments.OPENVINO_GENAI, 1.0),
)


def figures(folder: Path) -> list[Figure]:
    """The rise of perplexity, tokens a second against each peer, and peak memory."""
    try:
        path = source.model("smollm2-135m", Silent())
        text = Text(gguf.read(path))
        tokens = text.encode(source.text("lee", Silent()))
        forms = {name: files.made(path, files.variant(name), CONTEXT, Silent()) for name in ("fp32", "int4")}
    except EdgepipeError as error:
        return [missing("int4 of SmolLM2-135M", str(error))]
    found = [_quality(forms, tokens)]
    shape = sizes.sizes(gguf.read(path), CONTEXT)
    given = genai_folder.make(forms["int4"], folder / "genai", shape, THREADS, text.end)
    models = {"llama.cpp": path, "openvino-genai": path, "onnxruntime-genai": given}
    ours: list[dict[str, Any]] = []
    for peer in PEERS:
        title = f"int4 tokens/s / {peer.name}'s, {THREADS} threads"
        try:
            found.append(_against(peer, models[peer.name], forms["int4"], tokens[:PROMPT], title, ours))
        except MissingError as error:
            found.append(missing(title, str(error)))
    return found + (_memory(ours[-1], files.size(forms["int4"])) if ours else [])


def _quality(forms: dict[str, Path], tokens: list[int]) -> Figure:
    """Perplexity of int4 over that of the loaded model's floats: 2048 tokens, windows of 256, stride 128."""
    plan = measure.Plan(threads=THREADS)
    kwargs = {"threads": THREADS, "tokens": tokens[: plan.tokens], "window": plan.window, "stride": plan.stride}
    losses = [
        isolate.call("edgepipe.llm.decode:perplexity", {"path": str(forms[name]), **kwargs})
        for name in ("int4", "fp32")
    ]
    rise = measure.against(*losses)
    assert rise.value is not None
    detail = f"[{rise.low:.4f}, {rise.high:.4f}]" if rise.low is not None else ""
    return at_most("perplexity of int4 / of the source's floats", rise.value, 1.05, "x", detail)


def _against(peer: Peer, model: Path, own: Path, prompt: list[int], title: str, ours: list[dict[str, Any]]) -> Figure:
    """Ours and the peer's in turns; the ratio is the median over neighbours."""
    python, ratios, rates = peer.environment.make(), [], []
    for _ in range(ROUNDS):
        one = _run(sys.executable, "run_edgepipe.py", own, prompt)
        other = _run(str(python), peer.script, model, prompt)
        pair = statistics.median(one["rate"]), statistics.median(other["rate"])
        ratios.append(pair[0] / pair[1])
        rates.append(pair)
        ours.append(one)
    mine, theirs = (statistics.median(rate[side] for rate in rates) for side in (0, 1))
    peak = f"its peak {other['peak_bytes'] / 1e6:.0f} MB, {other['bare_bytes'] / 1e6:.0f} before the model"
    return at_least(title, statistics.median(ratios), peer.share, "x", f"({mine:.1f} / {theirs:.1f}; {peak})")


def _memory(run: dict[str, Any], size: int) -> list[Figure]:
    """What the process held at most over the file's bytes, with and without what Python and the runtime need."""
    peak, bare = run["peak_bytes"], run["bare_bytes"]
    detail = f"({peak / 1e6:.0f} MB, of it {bare / 1e6:.0f} before the model / {size / 1e6:.0f} MB)"
    before, loaded, after = run["memory"]
    parts = {
        "Python and the runtime": bare,
        "weights in the kernels' order": loaded[0] - before[0],
        "the file and more code, mapped": after[1] - before[1],
        "cache and activations": after[0] - loaded[0],
        "given back by the end": peak - sum(after),
    }
    return [
        at_most("int4 peak memory / file", peak / size, 1.3, "x", detail),
        Figure("int4 peak memory of the model / file", "", f"{(peak - bare) / size:.3g} x", None),
        *(Figure(f"  {name}", "", f"{part / size:.3g} x ({part / 1e6:.1f} MB)", None) for name, part in parts.items()),
    ]


def _run(python: str, script: str, model: Path, prompt: list[int]) -> dict[str, Any]:
    """One process of a worker.

    Raises:
        MissingError: it fails, or takes too long.
    """
    job = {"model": str(model), "threads": THREADS, "prompt": prompt, "new": NEW, "repeats": REPEATS}
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [python, str(_WORKERS / script), json.dumps(job)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False, env=environment)
    except subprocess.TimeoutExpired:
        raise MissingError(f"{script} did not end within {DEADLINE} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1][:200]
        raise MissingError(f"{script} failed: {last}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
