"""`edgepipe export`: a model to ONNX, TFLite or OpenVINO files, with or without a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepipe.cli import console, options

if TYPE_CHECKING:
    from edgepipe.convert import Result


def command(
    model: options.Model,
    to: Annotated[str, typer.Option("--to", help="Formats, comma separated: onnx, tflite, openvino.")] = "onnx",
    recipe: options.Recipe = "none",
    output: options.Output = "out",
    max_drop: options.MaxDrop = "",
    opset: options.Opset = 0,
    dynamic: options.Dynamic = None,
    batch: options.OwnBatch = None,
    layout: options.Layout = "",
    fold: options.Fold = False,
    target: options.MadeFor = "",
    evaluation: options.Samples = "auto",
    input_shape: options.InputShape = None,
    calibration: options.Calibration = "",
    preprocessing: options.Preprocessing = "",
    task: options.Task = "",
    synthetic: options.Synthetic = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Export a model: compress by the recipe, convert, verify, and write the files and their manifests."""
    from edgepipe import convert, given

    request = convert.Request(
        model=model,
        formats=options.names(to, "--to"),
        recipe=recipe,
        folder=Path(output),
        max_drop=options.fraction(max_drop, "--max-drop"),
        opset=opset or None,
        dynamic=options.axes(dynamic),
        batch=batch,
        layout=layout.upper(),
        fold=fold,
        evaluation=evaluation,
        target=target,
        said=given.Said(options.shapes(input_shape), calibration, preprocessing, task),
        synthetic=synthetic,
    )
    with console.open_progress(quiet=quiet) as progress:
        result = convert.convert(request, progress)
    show(result, as_json=json, quiet=quiet)


def show(result: Result, *, as_json: bool, quiet: bool) -> None:
    """Show what was made: the table for people, the document for scripts."""
    from edgepipe.report import tables

    if not quiet:
        tables.show_exports(result.exports, console.stderr())
    if as_json:
        options.emit(result.document())
