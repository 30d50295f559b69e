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
    layers: Annotated[bool, typer.Option("--layers", help="Find the first layer that departs. Exit 5.")] = False,
    target: Annotated[
        str,
        typer.Option(
            "--target", "-t", help="With --layers: a board to run it on too.", autocompletion=options.complete_target
        ),
    ] = "",
    host: options.Host = "",
    max_drop: options.MaxDrop = "",
    evaluation: options.Samples = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Hold a file against the model it came from: parity of the outputs, and accuracy. Exit 5 or 6 if it fails."""
    from edgepipe.errors import UsageError

    limit = options.fraction(max_drop, "--max-drop")
    if layers:
        _layers(file, against, target, host, evaluation, as_json=json, quiet=quiet)
        return
    if target or host:
        raise UsageError("verify runs on this host", "--target", "add --layers, or deploy: it verifies on the board")
    from edgepipe import convert
    from edgepipe.report import tables

    with console.open_progress(quiet=quiet) as progress:
        result = convert.verify_file(file, against, limit, evaluation, progress)
    if not quiet:
        tables.show_exports([result], console.stderr())
    if json:
        options.emit({"schema": "edgepipe.verify/1", "model": result.model, **result.row()})


def _layers(file: str, against: str, target: str, host: str, evaluation: str, *, as_json: bool, quiet: bool) -> None:
    """Compare layer by layer; one document even where a layer departs, then the error with its exit code."""
    from edgepipe import layers
    from edgepipe.cli import show
    from edgepipe.cli.comparison import show_comparison
    from edgepipe.errors import IntegrityError

    with console.open_progress(quiet=quiet) as progress:
        found = layers.compare(file, against, target, host, evaluation, progress)
    if not quiet:
        for each in found.comparisons:
            show_comparison(each, console.stderr())
    if as_json:
        options.emit({"schema": "edgepipe.layers/1", "comparisons": found.document()})
    try:
        found.check(file)
    except IntegrityError as error:
        show(error)
        raise typer.Exit(error.exit_code) from None
