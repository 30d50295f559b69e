"""`edgepipe compress`: apply a recipe and say after each step what it cost; or list the recipes there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from edgepipe.cli import console, export, options
from edgepipe.errors import UsageError


def command(
    model: Annotated[str, typer.Argument(help="A name under models/, a path, or package.module:function.")] = "",
    recipe: options.Recipe = "",
    output: options.Output = "out",
    to: Annotated[str, typer.Option("--to", help="Formats, comma separated: onnx, tflite, openvino.")] = "onnx",
    target: Annotated[
        str,
        typer.Option(
            "--target",
            "-t",
            help="Where a changed network is timed against the unchanged one.",
            autocompletion=options.complete_target,
        ),
    ] = "local",
    max_drop: options.MaxDrop = "",
    evaluation: options.Samples = "auto",
    input_shape: options.InputShape = "",
    synthetic: options.Synthetic = False,
    listing: Annotated[bool, typer.Option("--list", help="List the steps a recipe can have.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compress a model by a recipe such as prune:0.5+int8, say what each step cost and bought, and write the files."""
    if listing:
        _list(json)
        return
    if not model or not recipe:
        raise UsageError(
            "which model, and by which recipe?",
            "edgepipe compress",
            "edgepipe compress fashion-resnet8 --recipe int8 -o out",
        )
    from edgepipe import convert, honesty

    request = convert.Request(
        model=model,
        formats=options.names(to, "--to"),
        recipe=recipe,
        folder=Path(output),
        max_drop=options.fraction(max_drop, "--max-drop"),
        evaluation=evaluation,
        input_shape=options.shape(input_shape),
        synthetic=synthetic,
    )
    with console.open_progress(quiet=quiet) as progress:
        result = convert.convert(request, progress)
        result = replace(result, exports=honesty.weigh(result.exports, target, progress))
    export.show(result, as_json=json, quiet=quiet)


def _list(as_json: bool) -> None:
    from edgepipe import recipe

    known = {name: text for name, text in recipe.known().items() if name != "null"}
    steps = [{"name": name, "help": text, "formats": _formats(name)} for name, text in known.items()]
    if as_json:
        options.emit({"schema": "edgepipe.steps/1", "steps": steps})
        return
    for step in steps:
        typer.echo(f"{step['name']:<10} {', '.join(step['formats']):<26} {step['help']}")


def _formats(step: str) -> list[str]:
    """The formats a step works for; one that acts on the network, or does nothing, works for all."""
    from edgepipe import export, recipe

    return sorted(set(recipe.file_steps().get(step, export.formats())) - {"null"})
