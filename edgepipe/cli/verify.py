"""`edgepipe verify`: is this file still that model?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgepipe.cli import console, options

if TYPE_CHECKING:
    from edgepipe.matrix import Request


def command(
    against: Annotated[
        str, typer.Option("--against", help="The model it was made from.", autocompletion=options.complete_model)
    ],
    file: Annotated[str, typer.Argument(help="An exported file: .onnx, .tflite or .xml.")] = "",
    layers: Annotated[bool, typer.Option("--layers", help="Find the first layer that departs. Exit 5.")] = False,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="No FILE: every recipe in every format, here and on the targets.")
    ] = False,
    to: options.Formats = "onnx,openvino,tflite",
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="With --matrix: recipes, comma separated.")
    ] = "none,int8",
    target: Annotated[
        str,
        typer.Option(
            *("--target", "-t"),
            help="With --layers or --matrix: a board to run it on too; for --matrix several, comma separated.",
            autocompletion=options.complete_target,
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
    from edgepipe.matrix import Request as Matrix

    if bool(file) == matrix:
        fix = "edgepipe verify FILE --against MODEL, or edgepipe verify --matrix --against MODEL"
        raise UsageError("give a FILE, or --matrix", "edgepipe verify", fix)
    if matrix:
        boards = options.names(target, "--target") if target else ()
        forms, recipes = options.names(to, "--to"), options.names(recipe, "--recipe")
        _matrix(Matrix(against, forms, recipes, boards, evaluation), as_json=json, quiet=quiet)
        return
    if layers:
        _layers(file, against, target, host, evaluation, as_json=json, quiet=quiet)
        return
    if target or host:
        raise UsageError("verify runs on this host", "--target", "add --layers, or deploy: it verifies on the board")
    _outputs(file, against, options.fraction(max_drop, "--max-drop"), evaluation, as_json=json, quiet=quiet)


def _outputs(file: str, against: str, limit: float | None, evaluation: str, *, as_json: bool, quiet: bool) -> None:
    from edgepipe import convert
    from edgepipe.report import tables

    with console.open_progress(quiet=quiet) as progress:
        result = convert.verify_file(file, against, limit, evaluation, progress)
    if not quiet:
        tables.show_exports([result], console.stderr())
    if as_json:
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


def _matrix(request: Request, *, as_json: bool, quiet: bool) -> None:
    from edgepipe import matrix
    from edgepipe.cli.comparison import show_matrix

    with console.open_progress(quiet=quiet) as progress:
        found = matrix.measure(request, progress)
    if not quiet:
        show_matrix(found, console.stderr())
    if as_json:
        options.emit(found.document())
