"""Boards of the lab for tests: brought up under names of their own, and gone afterwards."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab import control, host
from lab.boards import kind_of
from tests.e2e.conftest import Cli

# Numbers of the boards of one test process, so that those a person brought up are left alone.
_NUMBERS = itertools.count(1000 + os.getpid() % 1000 * 100)


@dataclass
class LabBoard:
    """A board that is up, and a command line that knows it as the target `name`."""

    running: control.Running
    cli: Cli
    name: str

    def run(self, verb: str, *arguments: str, code: int = 0, timeout: float = 900) -> Any:
        """Run a verb on this board."""
        return self.cli(verb, *arguments, "--target", self.name, code=code, timeout=timeout)

    def json(self, verb: str, *arguments: str, code: int = 0, timeout: float = 900) -> dict[str, Any]:
        """Run a verb on this board, and return its document."""
        return dict(json.loads(self.run(verb, *arguments, "--quiet", "--json", code=code, timeout=timeout).stdout))


@pytest.fixture(scope="session")
def bring_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., LabBoard]]:
    """``bring_up("pi4")`` starts a board of that kind; skips, with the reason, where this machine can't."""
    names: list[str] = []
    folder = tmp_path_factory.mktemp("lab")
    patch = pytest.MonkeyPatch()
    # Targets and pins of these boards go where the command line under test looks, and nowhere else.
    patch.setenv("EDGEPIPE_HOME", str(folder / "home"))

    def make(kind: str, disk_mb: int = 0) -> LabBoard:
        if why := host.missing(kind_of(kind).tier):
            pytest.skip(why)
        name = f"{kind}-{next(_NUMBERS)}"
        names.append(name)
        board = control.up(name, disk_mb)
        target = control.announce(board, folder / "config" / "edgepipe")
        return LabBoard(board, LabCli(folder / "home", folder), target)

    try:
        yield make
    finally:
        for name in names:
            control.down(name)
        patch.undo()


class LabCli(Cli):
    """A command line that finds the targets of `bring_up`."""

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "XDG_CONFIG_HOME": str(Path(self.home).parent / "config")}
