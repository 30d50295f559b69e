"""The boards of a run as a section of the HTML report: how much they differ, and which of them stand out."""

from __future__ import annotations

from edgepipe.fleet.analysis.variation import Spread, Variation
from edgepipe.report.rows import DASH
from edgepipe.report.svg import escape

_COLUMNS = ("candidate", "boards", "rounds", "median ms", "between boards", "between rounds")
_SHOWN = 100


def section(found: Variation) -> str:
    """The section, as HTML text; empty where no candidate was measured on two boards."""
    spreads = [each for each in found.spreads if each.boards > 1]
    if not spreads:
        return ""
    heads = "".join(f'<th scope="col"{" class=num" if at else ""}>{name}</th>' for at, name in enumerate(_COLUMNS))
    body = "".join(f"<tr>{_cells(each)}</tr>" for each in spreads)
    odd = [each for each in found.boards if each.odd]
    told = "".join(
        f"<li>{escape(each.told)} [{each.ratio.low:.3f}, {each.ratio.high:.3f}] of the others&#x27; time</li>"
        for each in odd[:_SHOWN]
    )
    none = "<p>No board stands out from the others of its kind.</p>"
    reasons = "".join(
        f'<p class="soft">{escape(each)}</p>' for each in dict.fromkeys(s.reason for s in spreads) if each
    )
    about = (
        "Standard deviations of the median time, as shares of it: what boards of a kind differ by, apart from what "
        "rounds on one board differ by."
    )
    table = f"<table class='runs'><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return (
        f'<section><h2>Boards against each other</h2><p class="soft">{about}</p>'
        f'<div class="card scroll">{table}</div>{reasons}{f"<ul>{told}</ul>" if told else none}</section>'
    )


def _cells(each: Spread) -> str:
    numbers = (str(each.boards), str(each.rounds), f"{each.median_ms:.3g}", _share(each.between), _share(each.within))
    first = f"<td>{escape(each.candidate)}{f'<small>{escape(each.kind)}</small>' if each.kind else ''}</td>"
    named = zip(_COLUMNS[1:], numbers, strict=True)
    return first + "".join(f'<td class="num" data-name="{name}">{number}</td>' for name, number in named)


def _share(value: float | None) -> str:
    return DASH if value is None else f"{value:.1%}"
