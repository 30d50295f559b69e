"""Tables of files held against each other layer by layer, and of runtimes against each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from edgepipe.layerwise import Comparison
    from edgepipe.matrix import Matrix

_SHOWN = 40  # layers of a table; of a longer file those around the first that departs


def show_comparison(found: Comparison, console: Console) -> None:
    """Print one comparison: what was fed, how tensors were matched, and a line for each layer."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from edgepipe.report.rows import DASH, number, plain

    console.print(Text(plain(f"{found.other} against {found.one}"), "bold"))
    how = "by name" if found.matched_by == "name" else "by order, shape and values: the names did not stay"
    apart = f"; {found.unmatched} tensors without a like" if found.unmatched else ""
    console.print(Text(plain(f"on {found.inputs}; matched {how}{apart}; held to {found.limit}"), "dim"))
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold dim")
    for at, column in enumerate(("layer", "op", "against", "max abs", "mean abs", "cosine", "")):
        table.add_column(column, justify="right" if at in (3, 4, 5) else "left", overflow="fold")
    departed = next((at for at, row in enumerate(found.layers) if row.departs), len(found.layers))
    start = max(0, min(departed - _SHOWN // 2, len(found.layers) - _SHOWN))
    for row in found.layers[start : start + _SHOWN]:
        cosine = DASH if row.cosine is None else f"{row.cosine:.6f}"
        cells = (row.layer, row.op, row.like_layer, number(row.max_abs), number(row.mean_abs), cosine)
        word = "departs" if row.departs else row.layout
        table.add_row(*(Text(plain(cell)) for cell in cells), Text(word, "red" if row.departs else "dim"))
    console.print(table)
    left = len(found.layers) - min(len(found.layers), _SHOWN)
    if left:
        console.print(Text(f"{left} more layers: --json has all", "dim"))
    console.print(Text(plain(found.first.text if found.first else "no layer departs"), "red" if found.first else ""))


def show_matrix(found: Matrix, console: Console) -> None:
    """Print each cell against the reference, then the share of answers in which each two differ."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from edgepipe.report.rows import DASH, number, plain

    def share(value: float | None) -> str:
        return DASH if value is None else f"{value:.2%}"

    def table(*columns: str) -> Table:
        made = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold dim")
        for column in columns:
            made.add_column(column, overflow="fold")
        return made

    console.print(Text(plain(f"{found.model} on {found.inputs}, against {found.reference}"), "bold"))
    cells = table("", "format", "recipe", "board", "max abs", "mean abs", "cosine", "disagree", "")
    pairs = table("differ in", *(str(place) for place in range(1, len(found.cells) + 1)))
    for place, (cell, row) in enumerate(zip(found.cells, found.disagreement, strict=True), 1):
        cosine = DASH if cell.cosine is None else f"{cell.cosine:.6f}"
        texts = (str(place), cell.format, cell.recipe, cell.board, number(cell.max_abs), number(cell.mean_abs), cosine)
        cells.add_row(*(Text(plain(text)) for text in (*texts, share(cell.disagreement), cell.reason)))
        pairs.add_row(str(place), *(share(value) for value in row))
    console.print(cells)
    console.print(pairs)
