"""`edgepipe compress`: apply a recipe and say after each step what it cost; or list the recipes there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

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

    steps = [entry for entry in recipe.catalogue() if entry["name"] != "null"]
    if as_json:
        options.emit({"schema": "edgepipe.steps/1", "steps": steps})
        return
    for entry in steps:
        where = "network" if entry["changes"] == "network" else ", ".join(entry["formats"])
        typer.echo(f"{entry['name']:<10} {where:<26} {entry['help']}")
        if entry["params"]:
            typer.echo(f"{'':<37} {' '.join(_parameter(item) for item in entry['params'])}")


def _parameter(item: dict[str, Any]) -> str:
    """A parameter with its default, or with its choices, the default first."""
    others = [word for word in item["choices"] if word != item["default"]]
    return f"{item['name']}={'|'.join([str(item['default']), *others])}"
