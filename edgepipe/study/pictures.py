"""What a generative model's files make of the same samples, side by side in the report, as images inside the page."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path
from typing import Any

from edgepipe import data, given, plugins, verify
from edgepipe.errors import EdgepipeError
from edgepipe.given import Said
from edgepipe.report.svg import escape
from edgepipe.study.results import Row, sort_key

_COLUMNS = 8  # samples shown
_MOST = 40  # files shown of a model
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY = (8, 0, 0, 0, 0)  # bits, colour type, compression, filter, interlace


def section(own: list[Row], evaluation: str) -> str:
    """The samples of each model of a family in every format and recipe; empty for tasks that make no images."""
    if not own or not hasattr(plugins.task(own[0].cell.family), "pictures"):
        return ""
    models = dict.fromkeys((row.cell.model, row.cell.ref) for row in own)
    return "".join(
        _model(name, ref, [row for row in own if row.cell.model == name], evaluation) for name, ref in models
    )


def _model(name: str, ref: str, own: list[Row], evaluation: str) -> str:
    try:
        source = given.load(ref, Said())
        dataset = data.evaluation(source, evaluation)
    except EdgepipeError as error:
        return f'<p class="soft">No samples of {escape(name)}: {escape(error.what)}</p>'
    if dataset is None or dataset.labels is None:
        return ""
    task, few = plugins.task(source.task), dataset.first(_COLUMNS)
    body = _line("the images themselves", [few.labels], task)
    for row in sorted(own, key=lambda row: (row.cell.format, sort_key(row.cell.recipe)))[:_MOST]:
        body += _file(row, task, few)
    head = "<tr><th scope=col>file</th><th scope=col>decoded</th><th scope=col>drawn from noise</th></tr>"
    note = "Computed on this machine by the files that were measured, from the same samples and the same noise."
    return (
        f"<h4>{escape(name)}: samples</h4><p class='soft'>{note}</p>"
        f"<div class='card scroll'><table><thead>{head}</thead><tbody>{body}</tbody></table></div>"
    )


def _file(row: Row, task: Any, few: Any) -> str:
    name = f"{row.cell.recipe}, {row.cell.format}"
    if row.report is None or not Path(row.report.artifact.path).exists():
        return ""
    try:
        return _line(name, task.pictures(verify.outputs_of(row.report.artifact, few)), task)
    except EdgepipeError as error:
        return f"<tr><th scope=row>{escape(name)}</th><td colspan=2>{escape(error.what)}</td></tr>"


def _line(name: str, lines: list[Any], task: Any) -> str:
    cells = ""
    for images in lines:
        uri = base64.b64encode(png(task.grid([images], _COLUMNS))).decode()
        cells += f'<td><img alt="{escape(name)}" src="data:image/png;base64,{uri}"></td>'
    return f"<tr><th scope=row>{escape(name)}</th>{cells}</tr>"


def png(canvas: Any) -> bytes:
    """A grey image, uint8 [height, width], as a PNG file (W3C's Portable Network Graphics, third edition)."""
    height, width = canvas.shape
    lines = b"".join(b"\0" + line.tobytes() for line in canvas)
    header = struct.pack(">II5B", width, height, *_GREY)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )
