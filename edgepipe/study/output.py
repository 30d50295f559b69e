"""What a study leaves behind: its document, the page, tables for other programs (CSV, Parquet), plots as SVG files."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe import codec
from edgepipe.errors import UsageError
from edgepipe.study import findings, page
from edgepipe.study.results import TO_DO, UNFIT, figures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepipe.progress import Progress
    from edgepipe.study.plan import Study
    from edgepipe.study.results import Row

SCHEMA = "edgepipe.study/1"
DOCUMENT, PAGE = "study.json", "report.html"
_PLOT = re.compile(r"<figcaption>(.*?)</figcaption>(<svg .*?</svg>)", re.DOTALL)


def planned(study: Study, rows: Sequence[Row]) -> dict[str, Any]:
    """The plan as a document: each cell, whether it is known from before, or why it can't be measured."""
    cells = [
        {
            "model": row.cell.model,
            "family": row.cell.family,
            "recipe": row.cell.recipe,
            "format": row.cell.format,
            "target": row.cell.target,
            "done": row.status not in {TO_DO, UNFIT},
            "problem": row.cell.problem,
        }
        for row in rows
    ]
    left = sum(row.status == TO_DO for row in rows)
    return {
        **_head(study),
        "dry_run": True,
        "cells": cells,
        "to_measure": left,
        "least_measuring_seconds": left * study.plan.min_seconds,
    }


def document(study: Study, rows: Sequence[Row], *, interrupted: bool = False) -> dict[str, Any]:
    """All figures of a study and what they show, as plain values."""
    found = list(rows)
    return {
        **_head(study),
        "dry_run": False,
        "interrupted": interrupted,
        "cells": [figures(found, row) for row in found],
        "thresholds": [codec.to_dict(each) for each in findings.thresholds(found, study.max_drop)],
        "conclusions": findings.conclusions(found, study.max_drop),
    }


def _head(study: Study) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "study": {
            "name": study.name,
            "title": study.title,
            "file_sha256": study.sha256,
            "profile": study.plan.profile,
            "threads": study.options.threads,
            "batch": study.options.batch,
            "evaluation": study.evaluation,
            "max_drop": study.max_drop,
        },
    }


def write(study: Study, rows: Sequence[Row], folder: Path, progress: Progress, *, interrupted: bool = False) -> Path:
    """Write everything below ``folder``; returns the path of the page.

    Raises:
        UsageError: the folder can't be written.
    """
    made = document(study, rows, interrupted=interrupted)
    text = page.page(study, rows)
    try:
        (folder / "plots").mkdir(parents=True, exist_ok=True)
        (folder / DOCUMENT).write_text(json.dumps(made, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (folder / PAGE).write_text(text, encoding="utf-8")
        _csv(made["cells"], folder / "cells.csv")
        for old in (folder / "plots").glob("*.svg"):
            old.unlink()
        for at, (title, plot) in enumerate(_PLOT.findall(text), 1):
            name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60]
            (folder / "plots" / f"{at:02}-{name}.svg").write_text(page.standalone(plot), encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"the report can't be written: {error.strerror}", str(folder), "choose another -o DIR"
        ) from error
    _parquet(made["cells"], folder / "cells.parquet", progress)
    return folder / PAGE


def _csv(cells: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(cells[0]) if cells else [])
        writer.writeheader()
        writer.writerows(cells)


def _parquet(cells: list[dict[str, Any]], path: Path, progress: Progress) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        path.unlink(missing_ok=True)
        progress.note("no Parquet was written: it needs pip install 'edgepipe[study]'")
        return
    whole = {"bytes", "bytes_gzip", "parameters", "macs", "samples", "memory_peak_bytes", "calls"}
    texts = {name for row in cells for name, value in row.items() if isinstance(value, str)}
    kinds = {name: pa.string() if name in texts else pa.int64() if name in whole else pa.float64() for name in cells[0]}
    schema = pa.schema([pa.field(name, kind) for name, kind in kinds.items()])
    parquet.write_table(pa.Table.from_pylist(cells, schema=schema), path)


def read(path: Path) -> dict[str, Any]:
    """The document of a study written earlier: the file, or its folder.

    Raises:
        UsageError: there is none, or it is something else.
    """
    place = path / DOCUMENT if path.is_dir() else path
    fix = f"name the folder a study wrote, or its {DOCUMENT}"
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"no study can be read: {error.strerror}", str(place), fix) from None
    except (ValueError, RecursionError):
        raise UsageError("not the document of a study", str(place), fix) from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not isinstance(found.get("cells"), list):
        raise UsageError("not the document of a study", str(place), fix)
    if found.get("dry_run"):
        raise UsageError("that is a plan, nothing was measured", str(place), fix)
    return found
