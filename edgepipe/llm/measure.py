"""Measure a language model in each form of its weights: bytes, perplexity, first token, tokens a second, memory."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepipe import cache, isolate, stats
from edgepipe.errors import EdgepipeError, UsageError
from edgepipe.llm import files, gguf, sizes, source
from edgepipe.llm.text import Text
from edgepipe.progress import Progress
from edgepipe.record import Bound

_LEAST_WINDOWS = 2  # an interval needs two
_LONGEST = 48  # tokens of an answer
_DECODE = "edgepipe.llm.decode"


@dataclass(frozen=True)
class Plan:
    """What to measure. ``tokens`` of the text are judged; a prompt of ``prompt`` tokens is answered with ``new``."""

    model: str = "smollm2-135m"
    weights: tuple[str, ...] = ("fp32", "int8", "int4")
    text: str = "lee"
    tokens: int = 2048
    window: int = 256
    stride: int = 128
    prompt: int = 64
    new: int = 33
    repeats: int = 4
    processes: int = 3
    threads: int = 1
    ask: str = "What is the capital of France?"

    @property
    def context(self) -> int:
        """Positions that the exported file must know."""
        return max(1024, self.window, self.prompt + self.new)


@dataclass(frozen=True)
class Form:
    """What was found of one form of the weights. Times are in ms, rates in tokens a second.

    ``perplexity`` and the ratio ``to_first`` to the first form of the table are means over windows with 95 % intervals;
    ``agreement`` is the share of the first form's answer that this form would choose too, token by token.
    ``error`` says why a form has no figures; ``cache_bytes`` is what the keys and values of one token take.
    """

    name: str
    bytes: int | None = None
    cache_bytes: int | None = None
    sha256: str = ""
    perplexity: Bound | None = None
    to_first: Bound | None = None
    load_ms: list[float] = field(default_factory=list)
    cold_ms: list[float] = field(default_factory=list)
    first_ms: Bound | None = None
    prefill_rate: Bound | None = None
    next_ms: Bound | None = None
    decode_rate: Bound | None = None
    peak_bytes: int | None = None
    answer: str = ""
    answer_tokens: list[int] = field(default_factory=list)
    agreement: float | None = None
    losses: list[float] = field(default_factory=list)
    error: dict[str, str] | None = None


def check(plan: Plan) -> None:
    """Hold the numbers of a plan against each other.

    Raises:
        UsageError: they don't fit.
    """
    if not 1 <= plan.stride <= plan.window or plan.window < 2:  # noqa: PLR2004  one to predict the other
        raise UsageError("the stride must lie between 1 and the window", "--stride", "e.g. --window 256 --stride 128")
    if (plan.tokens - plan.window) // plan.stride + 1 < _LEAST_WINDOWS or plan.tokens < plan.window:
        raise UsageError("fewer than two windows: no interval", "--tokens", f"at least {plan.window + plan.stride}")
    for name in plan.weights:
        files.variant(name)


def measure(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Make each form of the weights and measure it, one after another; a form that fails keeps its reason.

    Raises:
        UsageError: the plan, the model or the text is wrong.
        EdgepipeError: the model or the text can't be had.
    """
    check(plan)
    path = source.model(plan.model, progress)
    header = gguf.read(path)
    text = Text(header)
    tokens = text.encode(source.text(plan.text, progress))[: plan.tokens]
    if len(tokens) < plan.window + plan.stride:
        fix = f"give a longer text, or --window below {len(tokens) // 2}"
        raise UsageError(f"the text has {len(tokens)} tokens: fewer than two windows", plan.text, fix)
    forms: list[Form] = []
    for name in plan.weights:
        try:
            forms.append(_form(plan, path, name, text, tokens, forms, progress))
        except EdgepipeError as error:
            forms.append(Form(name, error=error.to_wire()))
    return {
        "schema": "edgepipe.llm/1",
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": {"ref": plan.model, "file": path.name, "sha256": cache.hash_file(path), "stored": _stored(header)},
        "plan": {**plan.__dict__, "tokens": len(tokens)},
        "versions": cache.versions(("onnxruntime", "torch", "onnx")),
        "note": NOTE if quantised(header) else "",
        "forms": [form.__dict__ for form in forms],
    }


NOTE = (
    "the source's own weights are quantised: fp32 is what they stand for, and a form that keeps them costs nothing more"
)


def quantised(header: gguf.File) -> bool:
    """Whether any of its weights are stored in fewer bits than a half float."""
    return any(tensor.kind > 1 for tensor in header.tensors.values())


def _stored(header: gguf.File) -> dict[str, int]:
    """How many tensors are stored in which type."""
    names = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 8: "Q8_0"}
    found: dict[str, int] = {}
    for tensor in header.tensors.values():
        name = names.get(tensor.kind, str(tensor.kind))
        found[name] = found.get(name, 0) + 1
    return found


def _form(
    plan: Plan, path: Path, name: str, text: Text, tokens: list[int], before: list[Form], progress: Progress
) -> Form:
    form = files.variant(name)
    file = files.made(path, form, plan.context, progress)
    common = {"path": str(file), "threads": plan.threads}

    def call(title: str, function: str, **kwargs: Any) -> Any:
        with progress.task(f"{name}: {title}") as task:
            return isolate.call(f"{_DECODE}:{function}", {**common, **kwargs}, tick=task.update)

    losses = call("perplexity", "perplexity", tokens=tokens, window=plan.window, stride=plan.stride)
    prompt = tokens[: plan.prompt]
    kwargs = {"prompt": prompt, "new": plan.new, "repeats": plan.repeats}
    runs = [call(f"process {turn + 1} of {plan.processes}", "timed", **kwargs) for turn in range(plan.processes)]
    base = next((form for form in before if not form.error), None)
    question = text.turn(plan.ask) if plan.ask else []
    answer: list[int] = []
    if question:
        answer = call("answer", "generate", tokens=question, most=_LONGEST, end=text.end)
    agreed = None
    if base and base.answer_tokens:
        agreed = call("agreement", "agreement", question=question, answer=base.answer_tokens)
    rates = _rates(runs, len(prompt))
    return Form(
        name=name,
        bytes=files.size(file),
        cache_bytes=sizes.sizes(gguf.read(path), plan.context).cached * form.cache // 8,
        sha256=cache.hash_file(file),
        perplexity=_perplexity(losses),
        to_first=against(losses, base.losses) if base else None,
        load_ms=[run["load"] for run in runs],
        cold_ms=[run["cold"] for run in runs],
        first_ms=rates["first"],
        prefill_rate=rates["prefill"],
        next_ms=rates["next"],
        decode_rate=rates["decode"],
        peak_bytes=max(run["peak_bytes"] for run in runs),
        answer=text.decode(answer).strip(),
        answer_tokens=answer,
        agreement=agreed,
        losses=losses,
    )


def _perplexity(losses: list[float]) -> Bound:
    """The exponential of the mean loss of the windows, which count alike, with the 95 % interval over them."""
    return stats.ratio([math.exp(loss) for loss in losses])


def against(losses: list[float], base: list[float]) -> Bound:
    """The ratio of two perplexities, window by window, so that what makes a text hard falls out of it."""
    return stats.ratio([math.exp(one - other) for one, other in zip(losses, base, strict=True)])


def _rates(runs: list[dict[str, Any]], prompt: int) -> dict[str, Bound]:
    """Medians with their intervals. A group of samples is what one process saw."""
    first = stats.quantile_interval([run["first"] for run in runs], 0.5)
    following = stats.quantile_interval([[each for turn in run["next"] for each in turn] for run in runs], 0.5)
    return {
        "first": first,
        "prefill": _rate(first, prompt),
        "next": following,
        "decode": _rate(following, 1),
    }


def _rate(span: Bound, tokens: int) -> Bound:
    """Tokens a second of a span in ms: the slow end of one is the low end of the other."""
    value, low, high = (tokens * 1e3 / each if each else None for each in (span.value, span.high, span.low))
    return Bound(value, low, high, span.reason)
