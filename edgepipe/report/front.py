"""A search for people: the front as a table for a terminal, and a page with plots. Both read its document."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.errors import UsageError
from edgepipe.report import svg
from edgepipe.report.html import resource
from edgepipe.report.rows import DASH, millis, number, plain, size
from edgepipe.report.svg import escape

if TYPE_CHECKING:
    from rich.console import Console

Document = dict[str, Any]

_BASIS = {
    "final": "measured by the profile asked for, accuracy on the evaluation set",
    "search": "measured shortly, accuracy on the data the search chose by",
    "host": "known on the host alone: nothing was measured on the board",
}
_FORMATS = ("onnx", "openvino", "tflite")
_OTHER = 3  # the colour of any other format
_HOLLOW = ("skipped", "made", "failed")


def show(document: Document, console: Console) -> None:
    """Print the front, what became of the trials, and the recommendation."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    columns = _columns(document)
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold dim")
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if at < 2 else "right", overflow="fold", no_wrap=at > 1)  # noqa: PLR2004
    table.add_column("")
    best = (document["recommended"] or {}).get("trial")
    listed = [point["trial"] for point in document["front"]]
    simpler = [document["recommended"]] if best is not None and best not in listed else []  # nearly on the front
    for point in [*document["front"], *simpler]:
        word = "recommended" if point["trial"] == best else "" if point["keeps_budget"] else "over budget"
        style = "green" if word == "recommended" else ""
        table.add_row(*(Text(plain(text), style) for text in _cells(point, columns)), Text(word, style or "yellow"))
    console.print()
    if document["front"]:
        console.print(table)
        console.print(Text(f"{len(document['front'])} not beaten, {_BASIS[document['front_basis']]}", "dim"))
    console.print(Text(_counted(document), "dim"))
    console.print(Text(plain(document["reason"]), "bold" if document["recommended"] else "yellow"))
    if document["recommended"]:
        console.print(Text(plain(f"recipe: {document['recommended']['toml']}"), "dim"))


def _columns(document: Document) -> list[str]:
    """The columns worth showing: what is limited beyond the usual, and energy where it was measured."""
    limited = [limit["name"] for limit in document["budget"]["limits"]]
    wanted = ["recipe", "format", "bytes", "accuracy", "drop", *document["objectives"][2:3], *limited]
    if any(point["energy"] is not None for point in document["front"]):
        wanted.append("energy")
    return list(dict.fromkeys([*wanted, "memory"]))


def _cells(point: dict[str, Any], columns: list[str]) -> list[str]:
    return [_said(name, point[name]) for name in columns]


def _said(name: str, value: Any) -> str:
    if value is None:
        return DASH
    if name in ("bytes", "gzip", "memory"):
        return size(value)
    if name in ("accuracy", "drop"):
        return f"{100 * value:.2f} %"
    if name.startswith("p") and name[1:].isdigit():
        return f"{millis(value)} ms"
    if name == "energy":
        return f"{number(value)} mJ"
    return number(value) if isinstance(value, (int, float)) else str(value)


def _counted(document: Document) -> str:
    count: dict[str, int] = {}
    for trial in document["trials"]:
        count[trial["status"]] = count.get(trial["status"], 0) + 1
    words = {
        "final": "finalists",
        "measured": "measured",
        "skipped": "not worth the board",
        "made": "made",
        "failed": "failed",
    }
    told = ", ".join(f"{count[status]} {word}" for status, word in words.items() if status in count)
    return f"{len(document['trials'])} trials: {told}" if document["trials"] else "no trials"


def write(document: Document, path: Path) -> None:
    """Write one page with plots and all trials. It asks nothing of any network and runs no script.

    Raises:
        UsageError: the file can't be written.
    """
    try:
        path.write_text(page(document), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"the page can't be written: {error.strerror}", str(path), "choose another -o DIR") from error


def page(document: Document) -> str:
    """The page as HTML text."""
    model, target = document["model"]["name"], document["target"]["name"]
    title = f"search: {model} on {target}"
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    chosen, columns = document["chosen_on"], _columns(document)
    data = f"{chosen['metric']} on {chosen['samples']:,} samples ({chosen['dataset']})" if chosen["dataset"] else DASH
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{resource("page.css")}</style></head>'
        f"<body><header><h1>{escape(title)}</h1>"
        f'<p class="soft">budget: {escape(document["budget"]["text"])}. {escape(_counted(document))}.'
        f" Plots and the table of trials show the search's own figures: {escape(data)}, short runs.</p></header>"
        f"<main><p><b>{escape(document['reason'])}</b></p>{_plots(document)}"
        f"<h2>The front</h2><p class=soft>{_BASIS[document['front_basis']]}</p>"
        f"{_table(document['front'], columns)}"
        f"<h2>All trials</h2>{_table(document['trials'], [*columns, 'status', 'reason'])}</main></body></html>"
    )


def _plots(document: Document) -> str:
    """Accuracy over size and over time, where at least two trials have both."""
    time = document["objectives"][2]
    up = (document["chosen_on"]["metric"] or "accuracy", lambda value: f"{100 * value:.6g} %")
    across = {"bytes": ("file size", size), time: (f"{time}, ms a call", lambda value: f"{value:.4g}")}
    plots = ""
    for name, axis in across.items():
        points = _points(document, name)
        if len(points) > 1:
            title = f"{axis[0]} against {up[0]}"
            plot = svg.scatter(points, title, axis, up)
            plots += f'<figure class="card"><figcaption>{escape(title)}</figcaption>{plot}</figure>'
    icons = "".join(_key(name, at) for at, name in enumerate(_FORMATS) if name in document["target"]["formats"])
    hollow = "<span>hollow: not deployed, or over the budget</span><span>dashed: no other is better in both</span>"
    return f'<div class="pair">{plots}</div><p class="legend">{icons}{hollow}</p>' if plots else ""


def _key(name: str, series: int) -> str:
    icon = f'<svg viewBox="0 0 14 14" aria-hidden="true">{svg.marker(7, 7, svg.Point(0, 0, "", name, series))}</svg>'
    return f"<span>{icon}{escape(name)}</span>"


def _points(document: Document, x: str) -> list[svg.Point]:
    """Trials by a figure and their accuracy, those with both."""
    found = []
    for trial in document["trials"]:
        if trial[x] is None or trial["accuracy"] is None:
            continue
        series = _FORMATS.index(trial["format"]) if trial["format"] in _FORMATS else _OTHER
        said = f"{_said(x, trial[x])}, {_said('accuracy', trial['accuracy'])}, {trial['status']}"
        solid = trial["status"] not in _HOLLOW and trial["keeps_budget"]
        title = f"{trial['recipe']} {trial['format']}: {said}"
        found.append(svg.Point(float(trial[x]), trial["accuracy"], trial["recipe"], title, series, solid=solid))
    return found


def _table(points: list[dict[str, Any]], columns: list[str]) -> str:
    heads = "".join(f"<th scope=col>{escape(name)}</th>" for name in columns)
    rows = ""
    for point in points:
        cells = "".join(f"<td>{escape(text)}</td>" for text in _cells(point, columns))
        rows += f"<tr>{cells}</tr>"
    return f'<div class="card scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
