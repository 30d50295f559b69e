"""`edgepipe llm`: what 8 and 4 bits cost and buy a small language model on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgepipe.cli import console, options

if TYPE_CHECKING:
    from rich.table import Table

    from edgepipe.record import Bound

_FAILED = 4


def command(
    model: Annotated[str, typer.Argument(help="smollm2-135m, or the path of a GGUF of a Llama model.")] = (
        "smollm2-135m"
    ),
    weights: Annotated[
        str,
        typer.Option("--weights", help="Forms: fp32, int8, int4, int4-g128 (groups), int4-kv8 (cache in 8 bits)."),
    ] = "fp32,int8,int4",
    text: Annotated[str, typer.Option("--text", help="Text to judge by: lee, dostoyevsky, or a UTF-8 file.")] = "lee",
    tokens: Annotated[int, typer.Option("--tokens", min=3, max=1 << 20, help="Tokens of the text to judge by.")] = 2048,
    window: Annotated[int, typer.Option("--window", min=2, max=8192, help="Tokens seen at once.")] = 256,
    stride: Annotated[int, typer.Option("--stride", min=1, max=8192, help="How far apart windows begin.")] = 128,
    prompt: Annotated[int, typer.Option("--prompt", min=1, max=4096, help="Tokens of the timed prompt.")] = 64,
    new: Annotated[int, typer.Option("--new", min=2, max=4096, help="Tokens of each timed answer.")] = 33,
    threads: options.Threads = 1,
    ask: Annotated[str, typer.Option("--ask", help="A question that each form answers.")] = (
        "What is the capital of France?"
    ),
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write llm.json to.")] = "",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Export a small language model with a key-value cache, in 8 and 4 bits, and measure it here token by token.

    Of each form: bytes, perplexity, time to the first token, tokens a second, peak memory, an answer.
    """
    from edgepipe.llm import measure

    named = options.names(weights, "--weights")
    plan = measure.Plan(model, named, text, tokens, window, stride, prompt, new, threads=threads, ask=ask)
    with console.open_progress(quiet=quiet) as progress:
        found = measure.measure(plan, progress)
    if output:
        path = Path(output) / "llm.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(options.text(found), encoding="utf-8")
    if not quiet:
        _show(found)
    if json:
        options.emit(found)
    if any(form["error"] for form in found["forms"]):
        raise typer.Exit(_FAILED)


def _show(found: dict[str, Any]) -> None:
    screen = console.stderr()
    screen.print(_table(found["forms"]))
    plan = found["plan"]
    screen.print(
        f"perplexity: {plan['tokens']} tokens of {plan['text']}, windows of {plan['window']}, stride {plan['stride']}; "
        f"times: a prompt of {plan['prompt']} tokens and {plan['new']} after it, {plan['processes']} processes, "
        f"{plan['threads']} thread(s); every interval is at 95 %",
        markup=False,
    )
    for line in _remarks(found):
        screen.print(line, markup=False)


def _table(forms: list[dict[str, Any]]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from edgepipe.report.rows import plain

    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold dim")
    for name in (
        "weights",
        "bytes",
        "perplexity",
        "to first",
        "agrees",
        "first token ms",
        "prefill/s",
        "tokens/s",
        "peak",
    ):
        table.add_column(name, overflow="fold")
    for form in forms:
        if form["error"]:
            table.add_row(form["name"], plain(form["error"]["what"]))
            continue
        table.add_row(
            form["name"],
            console.size(form["bytes"]),
            _bound(form["perplexity"]),
            _bound(form["to_first"]),
            "-" if form["agreement"] is None else f"{form['agreement']:.0%}",
            _bound(form["first_ms"]),
            _bound(form["prefill_rate"]),
            _bound(form["decode_rate"]),
            console.size(form["peak_bytes"]),
        )
    return table


def _bound(bound: Bound | None) -> str:
    if bound is None or bound.value is None:
        return "-"
    between = f" [{bound.low:.3g}, {bound.high:.3g}]" if bound.low is not None and bound.high is not None else ""
    return f"{bound.value:.3g}{between}"


def _remarks(found: dict[str, Any]) -> list[str]:
    """What a reader must know beside the table, and the answers."""
    lines = [f"note: {found['note']}"] if found["note"] else []
    caches = [f"{console.size(f['cache_bytes'])} ({f['name']})" for f in found["forms"] if f["cache_bytes"]]
    if len({form["cache_bytes"] for form in found["forms"]} - {None}) > 1:
        lines.append(f"cache of a token: {', '.join(caches)}")
    answers = [(form["name"], " ".join(form["answer"].split())) for form in found["forms"]]
    return lines + [f"{name} answers: {answer!r}" for name, answer in answers if answer]
