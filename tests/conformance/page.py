"""The page `make conformance` writes: what was tried, what came of it, and every case that is not right, with why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgepipe.cache import versions

if TYPE_CHECKING:
    from tests.conformance.faults import Case
    from tests.conformance.run import Tally

_HEAD = """# Conformance

Written by `make conformance`; do not edit. Public ONNX files go the way `edgepipe export` goes; what comes out is run
and held against ONNX Runtime with its optimiser off, on each case's own inputs (seeded ones where it has none).

* **right**: every output within 0.2 % (plus 0.01 % of the largest value) of the source's runtime
  (8-bit integers: within one step, since a tie may be rounded either way)
* **refused**: one clear error with the reason; nothing was written
* **wrong**: another answer. The aim is 0.
* **unexplained**: a crash, or an error that names no reason. The aim is 0.

Files that ONNX Runtime itself does not run, or whose inputs or outputs are not tensors of numbers, are not counted as
attempted; nor are those whose answer is not determined: a softmax of values of 1e9, where one step of float32 decides,
and operators that draw at random.
"""


def text(tallies: Sequence[Tally], cases: Sequence[Case]) -> str:
    """The page in Markdown."""
    rows = "".join(
        f"| {tally.kind} | {tally.format} | {sum(tally.counts.values())} | {tally.attempted} | {_share(tally)} |"
        f" {tally.counts['refused']} | {tally.counts['wrong']} | {tally.counts['unexplained']} |\n"
        for tally in tallies
    )
    used = ", ".join(f"{name} {version}" for name, version in _versions().items() if version)
    return "\n".join(
        [
            _HEAD,
            "## Conversions\n",
            "| files | to | all | attempted | right | refused | wrong | unexplained |",
            "|---|---|---|---|---|---|---|---|",
            rows,
            _faults(cases),
            *(_details(tally) for tally in tallies if tally.reasons or tally.bad),
            f"Made with {used}.",
            "",
        ]
    )


def _share(tally: Tally) -> str:
    right = tally.counts["right"]
    return f"{right} ({right / tally.attempted:.1%})" if tally.attempted else "0"


def _faults(cases: Sequence[Case]) -> str:
    tried = Counter((case.kind, case.format) for case in cases)
    found = Counter((case.kind, case.format) for case in cases if case.found)
    formats = sorted({case.format for case in cases})
    lines = [
        "## Planted faults\n",
        f"{sum(found.values())} of {len(cases)} faults, each drawn by its seed, were named in their layer by the search"
        " that `edgepipe verify --layers` makes.\n",
        f"| fault | {' | '.join(formats)} |",
        "|---" * (len(formats) + 1) + "|",
    ]
    for kind in sorted({case.kind for case in cases}):
        cells = " | ".join(f"{found[kind, name]} of {tried[kind, name]}" for name in formats)
        lines.append(f"| {kind} | {cells} |")
    missed = [
        f"* seed {case.seed}: {case.kind} in {case.layer}, named {case.named}" for case in cases if not case.found
    ]
    return "\n".join([*lines, *missed, ""])


def _details(tally: Tally) -> str:
    lines = [f"## {tally.kind}, to {tally.format}\n"]
    lines += [f"* {count} x refused: {_cell(why)}" for why, count in tally.reasons.most_common()]
    lines += [f"* `{name}` {verdict}: {_cell(why)}" for name, verdict, why in tally.bad]
    return "\n".join([*lines, ""])


def _cell(words: str) -> str:
    return words.replace("|", "/").replace("<", "(").replace(">", ")")


def _versions() -> dict[str, str | None]:
    return versions(("onnx", "onnxruntime", "openvino", "ai-edge-litert"))
