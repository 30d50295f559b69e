"""`edgepipe export`: a model to ONNX, TFLite or OpenVINO files, with or without a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepipe.cli import console, options


def command(
    model: options.Model,
    to: Annotated[str, typer.Option("--to", help="Formats, comma separated: onnx, tflite, openvino.")] = "onnx",
    recipe: options.Recipe = "none",
    output: options.Output = "out",
    max_drop: options.MaxDrop = "",
    opset: options.Opset = 0,
    dynamic: options.Dynamic = False,
    batch: options.Batch = 1,
    evaluation: options.Samples = "auto",
    input_shape: options.InputShape = "",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Export a model: compress by the recipe, convert, verify, and write the files and their manifests."""
    from edgepipe import convert
    from edgepipe.report import tables

    request = convert.Request(
        model=model,
        formats=options.names(to, "--to"),
        recipe=recipe,
        folder=Path(output),
        max_drop=options.fraction(max_drop, "--max-drop"),
        opset=opset or None,
        dynamic=dynamic,
        batch=batch,
        evaluation=evaluation,
        input_shape=options.shape(input_shape),
    )
    with console.open_progress(quiet=quiet) as progress:
        result = convert.convert(request, progress)
    if not quiet:
        tables.show_exports(result.exports, console.stderr())
    if json:
        options.emit(result.document())
