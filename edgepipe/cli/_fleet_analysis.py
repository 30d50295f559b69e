"""`edgepipe fleet export | compare`, and the part of `fleet report` that is about boards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgepipe.cli import console, options

if TYPE_CHECKING:
    from edgepipe.fleet.analysis.compare import Changed, Comparison
    from edgepipe.fleet.analysis.variation import Variation
    from edgepipe.record import Bound

_SHOWN = 20


def load(run: str) -> tuple[str, Any, list[dict[str, Any]]]:
    """A run with its rows."""
    from edgepipe import fleet
    from edgepipe.fleet.analysis import table

    name, request = fleet.find(run)
    return name, request, table.rows(name, request, fleet.reports(name, request))


def export(run: str, folder: Path, *, quiet: bool) -> None:
    """Write the trials of a run, and its boards, as tables."""
    from edgepipe import codec
    from edgepipe.errors import UsageError
    from edgepipe.fleet.analysis import table, variation

    name, _, rows = load(run)
    if not rows:
        raise UsageError("nothing was measured yet", f"fleet run {name}", f"edgepipe fleet resume {name}")
    boards = [
        {"run": name, "board": each.board, "kind": each.kind, "ratio": each.ratio.value, "ratio_low": each.ratio.low,
         "ratio_high": each.ratio.high, "p": each.p, "p_holm": each.p_holm, "odd": each.odd,
         "causes": "; ".join(each.causes)}
        for each in variation.of(rows).boards
    ]  # fmt: skip
    spreads = [{"run": name, **codec.to_dict(each)} for each in variation.of(rows).spreads]
    written = table.write(rows, folder, "trials")
    written += [path for found, kind in ((boards, "boards"), (spreads, "spreads")) for path in
                (table.write(found, folder, kind) if found else [])]  # fmt: skip
    if quiet:
        return
    for path in written:
        console.stderr().print(f"wrote {path}", markup=False)
    if all(path.suffix == ".csv" for path in written):
        note = "no Parquet was written: it needs pip install 'edgepipe[study]'"
        console.stderr().print(note, markup=False)


def show_variation(found: Variation) -> None:
    """Print how much boards differ, apart from rounds, and which of them stand out."""
    from rich.text import Text

    from edgepipe.report.rows import plain

    out = console.stdout()
    if any(each.boards > 1 for each in found.spreads):
        table = _table("kind", "candidate", "boards", "rounds", "median ms", "between boards", "between rounds", "")
        for each in found.spreads:
            cells = (each.kind, each.candidate, str(each.boards), str(each.rounds), f"{each.median_ms:.3g}")
            shares = (_share(each.between), _share(each.within))
            table.add_row(*(Text(plain(cell)) for cell in (*cells, *shares)), Text(plain(each.reason), "dim"))
        out.print(table)
    for odd in [each for each in found.boards if each.odd][:_SHOWN]:
        line = f"{odd.told} [{odd.ratio.low:.3f}, {odd.ratio.high:.3f}] of the others' time"
        out.print(Text(plain(line), "yellow"))


def compare(first: str, second: str, limit: float, *, force: bool, as_json: bool, quiet: bool) -> None:
    """Show two runs against each other; a regression ends with exit code 6."""
    from edgepipe.cli import show as show_error
    from edgepipe.fleet.analysis import compare as comparing

    found = comparing.runs(load(first), load(second), limit, force)
    if as_json:
        options.emit(found)
    elif not quiet:
        _show(found)
    if error := comparing.gate(found):
        show_error(error)
        raise typer.Exit(error.exit_code)


def _show(found: Comparison) -> None:
    from rich.text import Text

    from edgepipe import versus

    out = console.stdout()
    out.print(f"{found.second} over {found.first}: times, 95 % intervals, p by Holm over each list", markup=False)
    table = _table("candidate", "board", "trials", "ratio", "p", "")
    apart = [each for each in found.boards if each.verdict not in {versus.SAME, versus.UNKNOWN}]
    for each in [*found.candidates, *sorted(apart, key=lambda one: one.p_holm or 0.0)[:_SHOWN]]:
        table.add_row(*(Text(cell) for cell in _cells(each)), Text(each.verdict, _colour(each)))
    out.print(table)
    same = len(found.boards) - len(apart)
    out.print(f"{same} of {len(found.boards)} candidates on single boards show no difference", markup=False)
    if found.left_out:
        out.print(f"{found.left_out} trials were not ok in both runs, or are in one alone", markup=False)


def _cells(each: Changed) -> tuple[str, ...]:
    from edgepipe.report.rows import plain

    chance = "\N{EN DASH}" if each.p_holm is None else f"{each.p_holm:.2g}"
    return plain(each.candidate), plain(each.board) or "all", str(each.pairs), _span(each.ratio), chance


def _span(ratio: Bound) -> str:
    if ratio.value is None:
        return "\N{EN DASH}"
    return f"{ratio.value:.3f}" + (f" [{ratio.low:.3f}, {ratio.high:.3f}]" if ratio.low is not None else "")


def _colour(each: Changed) -> str:
    return {"regression": "red", "slower": "yellow", "faster": "green"}.get(each.verdict, "dim")


def _share(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.1%}"


def _table(*columns: str) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold dim")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table
