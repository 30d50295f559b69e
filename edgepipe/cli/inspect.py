"""`edgepipe inspect`: what is in a model file, and which boards can run it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.cli import console, options

if TYPE_CHECKING:
    from rich.table import Table

_MOST_OPS = 15


def command(
    file: options.Model,
    input_shape: options.InputShape = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Say what is in a model file: inputs, outputs, operators, parameters, precision, and which boards can run it."""
    from edgepipe import inspection

    with console.open_progress(quiet=quiet) as progress, progress.task(f"read {file}", "s"):
        found = inspection.inspect(file, options.shapes(input_shape))
    if not quiet:
        _show(found)
    if json:
        options.emit(found)


def _show(found: dict[str, Any]) -> None:
    from rich.text import Text

    from edgepipe.report.rows import DASH, plain

    screen = console.stderr()
    macs = f"{found['macs']:,}" if found["macs"] is not None else f"{DASH} ({found['reason']})"
    parameters = f"{found['parameters']:,}" if found["parameters"] is not None else DASH
    ops = [f"{name} {count}" for name, count in found["ops"].items()]
    left = [f"and {len(ops) - _MOST_OPS} kinds more"] if len(ops) > _MOST_OPS else []
    size = f"{console.size(found['bytes'])}, {console.size(found['bytes_gzip'])} gzipped"
    lines = [
        ("model", f"{found['name']}, {found['format']}, {size}"),
        *(("input", _spec(spec)) for spec in found["inputs"]),
        *(("output", _spec(spec)) for spec in found["outputs"]),
        ("free", ", ".join(found["dynamic"]) or "no size"),
        ("parameters", parameters),
        ("MACs", macs),
        ("precision", f"{found['precision']['text']} ({console.inline(found['precision']['by_dtype'])})"),
        ("operators", ", ".join(ops[:_MOST_OPS] + left) or DASH),
        ("metadata", console.inline(found["metadata"])),
        *((f"to {name}", _way(way)) for name, way in found["exports"].items()),
    ]
    for word, text in lines:
        screen.print(Text(f"{word:<12}", "dim") + Text(plain(text)))
    screen.print(_boards(found["targets"]))


def _spec(spec: dict[str, Any]) -> str:
    shape = ", ".join("?" if size < 0 else str(size) for size in spec["shape"])
    return f"{spec['name']}  {spec['dtype']} [{shape}]  {spec['layout']}".strip()


def _way(way: dict[str, Any]) -> str:
    return "by " + " -> ".join(way["path"]) if way["path"] else way["reason"]


def _boards(rows: list[dict[str, Any]]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from edgepipe.report.rows import plain

    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold dim")
    for name in ("target", "runtime", "runs", "why"):
        table.add_column(name, overflow="fold")
    for row in rows:
        word, style = {True: ("yes", "green"), False: ("no", "red"), None: ("?", "dim")}[row["runs"]]
        why = "; ".join(filter(None, (row["reason"], *row["cautions"])))
        table.add_row(Text(plain(row["target"])), Text(plain(row["runtime"])), Text(word, style), Text(plain(why)))
    return table
