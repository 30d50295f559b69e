"""`edgepipe verify`: is this file still that model?"""

from __future__ import annotations

from typing import Annotated

import typer

from edgepipe.cli import console, options


def command(
    file: Annotated[str, typer.Argument(help="An exported file: .onnx, .tflite or .xml.")],
    against: Annotated[
        str, typer.Option("--against", help="The model it was made from.", autocompletion=options.complete_model)
    ],
    max_drop: options.MaxDrop = "",
    evaluation: options.Samples = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Hold a file against the model it came from: parity of the outputs, and accuracy. Exit 5 or 6 if it fails."""
    from edgepipe import convert
    from edgepipe.report import tables

    limit = options.fraction(max_drop, "--max-drop")
    with console.open_progress(quiet=quiet) as progress:
        result = convert.verify_file(file, against, limit, evaluation, progress)
    if not quiet:
        tables.show_exports([result], console.stderr())
    if json:
        options.emit({"schema": "edgepipe.verify/1", "model": result.model, **result.row()})
