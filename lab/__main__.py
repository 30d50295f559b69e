"""``python -m lab up [BOARD...] | down [BOARD...] | status | prepare [TIER]``: what `make lab` and its like call."""

from __future__ import annotations

import sys

from edgepipe import paths
from lab import control, host
from lab.boards import KINDS, USUAL, kind_of
from lab.host import LabError


def main(arguments: list[str]) -> int:
    """Do what is asked; returns the exit code."""
    verb, *names = arguments or ["help"]
    try:
        if verb == "up":
            _up(names or list(USUAL))
        elif verb == "down":
            _down(names or control.leftovers())
        elif verb == "prepare":
            host.prepare(*names or ["user"])
        elif verb == "status":
            for board in control.running().values():
                print(f"lab-{board.name}  127.0.0.1:{board.port}  {board.kind.text}")
        else:
            print(__doc__)
            for name, kind in KINDS.items():
                print(f"  {name:<10} {kind.text}")
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


def _up(names: list[str]) -> None:
    for tier in dict.fromkeys(kind_of(name).tier for name in names):
        host.prepare(tier)
    for name in names:
        board = control.up(name)
        target = control.announce(board, paths.config_home())
        print(f"{target} is up at 127.0.0.1:{board.port}: {board.kind.text}", flush=True)
    print(f"try: edgepipe doctor --target lab-{names[-1]}; end them with: make lab-down")


def _down(names: list[str]) -> None:
    for name in names:
        control.down(name)
        control.forget(name, paths.config_home())
        print(f"lab-{name} is gone")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
