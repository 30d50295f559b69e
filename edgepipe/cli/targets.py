"""`edgepipe targets`: the boards edgepipe knows, where they are, and whether they are who they say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepipe.cli import console, options

if TYPE_CHECKING:
    from edgepipe.board import BoardClient

group = typer.Typer(help="The boards edgepipe knows: list, show, add, pin, re-pin, signers.", no_args_is_help=True)
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
    identity: Annotated[
        str, typer.Option("--identity", help="The private key to log in with; else those ~/.ssh/config names.")
    ] = "",
) -> None:
    """Add a board of your own: a name for one of the known kinds at an address."""
    from edgepipe import targets

    path = targets.add(name, like, host, identity)
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


@group.command()
def signers(
    name: Name,
    host: options.Host = "",
    key: Annotated[str, typer.Option("--key", help="Your SSH key (FILE, with FILE.pub beside it) to sign with.")] = "",
    allowed: Annotated[
        str, typer.Option("--allowed", help="An allowed-signers file to pin; without it, --key alone is trusted.")
    ] = "",
    remove: Annotated[bool, typer.Option("--remove", help="Take unsigned orders again.")] = False,
    json: options.Json = False,
) -> None:
    """Pin whose signatures a board takes; from then on it refuses releases and runtimes that are not signed.

    Without options, show what is pinned. Keys may live in an ssh-agent or on a FIDO2 token.
    """
    from edgepipe import bench, board, targets

    place = targets.load(name, host or None)
    with console.open_progress(quiet=True) as progress, board.connect(place, bench.owner(), progress) as client:
        if key or allowed or remove:
            _pin_signers(client, name, key, allowed, remove=remove)
        trust = client.hello().trust
    if json:
        options.emit({"schema": "edgepipe.signers/1", "target": name, "trust": trust})
    elif trust:
        typer.echo(f"{name} takes signed orders only; allowed signers {trust.signers}, counter {trust.counter}")
    else:
        typer.echo(f"{name} takes UNSIGNED orders from anyone who can log in there")


def _pin_signers(client: BoardClient, name: str, key: str, allowed: str, *, remove: bool) -> None:
    from edgepipe import bench, signing
    from edgepipe.errors import UsageError

    if remove and (key or allowed):
        raise UsageError("--remove stands alone", "targets signers", "leave --key and --allowed away")
    path = Path(key) if key else signing.key_of(name)
    text = ""
    if allowed:
        try:
            text = Path(allowed).expanduser().read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"can't read the allowed signers: {error}", allowed, "see man ssh-keygen") from None
    elif path and not remove:
        text = signing.allowed_line(path, bench.owner())
    # An order to a board that trusts somebody already is signed with the key it knows, so the new one is kept after.
    if client.hello().trust and signing.key_of(name) is None and path:
        signing.remember(name, path)
    client.signers(text)
    if path and not remove:
        signing.remember(name, path)
