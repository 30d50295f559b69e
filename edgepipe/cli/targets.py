"""`edgepipe targets`: the boards edgepipe knows, where they are, and whether they are who they say."""

from __future__ import annotations

from typing import Annotated

import typer

from edgepipe.cli import console, options

group = typer.Typer(help="The boards edgepipe knows: list, show, add, pin, re-pin.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="A target's name.", autocompletion=options.complete_target)]
Fingerprint = Annotated[str, typer.Option("--fingerprint", help="Pin only if the board shows this one: SHA256:...")]


@group.command("list")
def list_(json: options.Json = False) -> None:
    """List the targets: yours first, then the shipped ones."""
    from edgepipe import targets

    found = [targets.load(name) for name in targets.listing()]
    if json:
        options.emit({"schema": "edgepipe.targets/1", "targets": found})
        return
    for target in found:
        typer.echo(f"{target.name:<18} {target.arch:<8} {target.description}")


@group.command()
def show(name: Name, json: options.Json = False) -> None:
    """Show all that is known of a target, with sources."""
    from edgepipe import targets

    target = targets.load(name)
    if json:
        options.emit({"schema": "edgepipe.target/1", **options.plain(target)})
        return
    for key, value in options.plain(target).items():
        if value not in ("", None, [], {}):
            typer.echo(f"{key:<16} {console.inline(value)}")


@group.command()
def add(
    name: Annotated[str, typer.Argument(help="The new target's name.")],
    like: Annotated[
        str, typer.Option("--like", help="The shipped target it is one of.", autocompletion=options.complete_target)
    ],
    host: options.Host,
) -> None:
    """Add a board of your own: a name for one of the known kinds at an address."""
    from edgepipe import targets

    path = targets.add(name, like, host)
    typer.echo(f"{path}\nnext: edgepipe targets pin {name}", err=True)


@group.command()
def pin(name: Name, host: options.Host = "", fingerprint: Fingerprint = "") -> None:
    """Trust the host key a board shows now. Compare the fingerprint with the board's own first."""
    from edgepipe import targets
    from edgepipe.link import pins

    pinned = pins.pin(targets.load(name, host or None), fingerprint or None)
    typer.echo(f"pinned {name}: {pinned}", err=True)


@group.command("re-pin")
def re_pin(name: Name, host: options.Host = "", fingerprint: Fingerprint = "") -> None:
    """Replace the pinned host key, after a board was set up anew. Shows the old and the new fingerprint."""
    from edgepipe import targets
    from edgepipe.link import pins

    old, new = pins.re_pin(targets.load(name, host or None), fingerprint or None)
    typer.echo(f"was: {old}\nnow: {new}", err=True)
