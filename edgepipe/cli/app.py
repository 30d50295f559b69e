"""Gathers the verbs: each file of this folder that has a `command` function is one."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from edgepipe import __version__

# The order of the story, which is the order of --help.
VERBS = (
    "inspect",
    "compress", "export", "verify", "deploy", "bench", "compare", "status", "rollback", "gc", "doctor", "provision",
    "serve",
)  # fmt: skip
GROUPS = ("targets", "fleet", "study", "llm", "report", "runs")

app = typer.Typer(
    name="edgepipe",
    help="Compress a trained model, export it, prove it, push it to a small board and measure it there.",
    epilog="Add --debug to any command for the traceback of an error.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"edgepipe {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Compress a trained model, export it, prove it, push it to a small board and measure it there."""


for _verb in VERBS:
    _module = importlib.import_module(f"edgepipe.cli.{_verb}")
    app.command(_verb)(_module.command)
for _group in GROUPS:
    _module = importlib.import_module(f"edgepipe.cli.{_group}")
    if hasattr(_module, "group"):
        app.add_typer(_module.group, name=_group)
    else:
        app.command(_group)(_module.command)
