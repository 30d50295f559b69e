"""`edgepipe compress`: apply a recipe and say after each step what it cost; or list the recipes there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from edgepipe.cli import console, export, options
from edgepipe.cli import search as search_options
from edgepipe.errors import UsageError

TimedOn = Annotated[
    str,
    typer.Option(
        "--target",
        "-t",
        help="Where a search measures, and a changed network is timed against the unchanged one.",
        autocompletion=options.complete_target,
    ),
]


def command(
    model: Annotated[str, typer.Argument(help="A name under models/, a path, or package.module:function.")] = "",
    recipe: options.Recipe = "",
    output: options.Output = "out",
    to: Annotated[str, typer.Option("--to", help="Formats, comma separated: onnx, tflite, openvino.")] = "onnx",
    target: TimedOn = "local",
    search: Annotated[bool, typer.Option("--search", help="Find a recipe, with the target in the loop.")] = False,
    budget: search_options.Budget = "",
    trials: search_options.Trials = 30,
    minutes: search_options.Minutes = 0.0,
    profile: search_options.Profile = "quick",
    host: options.Host = "",
    threads: options.Threads = 1,
    batch: options.Batch = 1,
    max_drop: options.MaxDrop = "",
    evaluation: options.Samples = "auto",
    input_shape: options.InputShape = None,
    synthetic: options.Synthetic = False,
    listing: Annotated[bool, typer.Option("--list", help="List the steps a recipe can have.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compress a model by a recipe such as prune:0.5+int8, say what each step cost and bought, and write the files."""
    if listing:
        _list(json)
        return
    _check(model, recipe, max_drop, budget, search=search)
    if search:
        how = search_options.how(model, target, host, to, profile, threads, batch, evaluation, input_shape, synthetic)
        search_options.run(how, budget, output, trials, minutes, as_json=json, quiet=quiet)
        return
    from edgepipe import convert, given, honesty

    request = convert.Request(
        model=model,
        formats=options.names(to, "--to"),
        recipe=recipe,
        folder=Path(output),
        max_drop=options.fraction(max_drop, "--max-drop"),
        evaluation=evaluation,
        said=given.Said(options.shapes(input_shape)),
        synthetic=synthetic,
        weigh=True,
    )
    with console.open_progress(quiet=quiet) as progress:
        result = convert.convert(request, progress)
        result = replace(result, exports=honesty.weigh(result.exports, target, progress))
    export.show(result, as_json=json, quiet=quiet)


def _check(model: str, recipe: str, max_drop: str, budget: str, *, search: bool) -> None:
    """Hold the flags against each other."""
    where, example = "edgepipe compress", "edgepipe compress fashion-resnet8 --recipe int8 -o out"
    if search and (recipe or max_drop):
        what = "a search finds the recipe, and its budget says the drop"
        raise UsageError(what, f"{where} --search", "leave out --recipe and --max-drop")
    if search and not model:
        fix = 'edgepipe compress fashion-resnet8 --search --budget "p90<=5ms,drop<=1%" -o out'
        raise UsageError("which model?", f"{where} --search", fix)
    if budget and not search:
        raise UsageError("a budget is for a search", f"{where} --budget", "add --search, or use --max-drop")
    if not search and (not model or not recipe):
        raise UsageError("which model, and by which recipe?", where, example)


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
    typer.echo(f"{'search':<10} {'all of them':<26} no step: --search finds the recipe for a --budget, on the board")


def _parameter(item: dict[str, Any]) -> str:
    """A parameter with its default, or with its choices, the default first."""
    others = [word for word in item["choices"] if word != item["default"]]
    return f"{item['name']}={'|'.join([str(item['default']), *others])}"
