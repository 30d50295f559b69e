"""End-to-end tests use the installed command as a user would, in a home of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EDGEPIPE = [sys.executable, "-c", "from edgepipe.cli import main; main()"]


@dataclass
class Cli:
    """Runs edgepipe in a home of its own."""

    home: Path
    cwd: Path

    @property
    def environment(self) -> dict[str, str]:
        # The work cache is shared between tests: it is keyed by content, and refilling it takes minutes.
        cache = os.environ.get("EDGEPIPE_CACHE") or str(self.home.parent / "cache")
        return {**os.environ, "EDGEPIPE_HOME": str(self.home), "EDGEPIPE_CACHE": cache, "PYTHONPATH": str(ROOT)}

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*EDGEPIPE, *arguments], cwd=self.cwd, env=self.environment, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more,
        )  # fmt: skip

    def __call__(self, *arguments: str, code: int = 0, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        assert process.returncode == code, f"exit {process.returncode}, not {code}\n{out}\n{err}"
        assert "Traceback" not in err
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def json(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        found = json.loads(self(*arguments, "--json", code=code).stdout)
        assert isinstance(found, dict)
        return found


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("edgepipe")


@pytest.fixture
def cli(shared: Path, tmp_path: Path) -> Cli:
    """A command line with a home of its own and a work cache shared by the session."""
    return Cli(shared / tmp_path.name, tmp_path)
