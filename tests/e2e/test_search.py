"""`compress --search` as a user runs it: what is refused, an impossible budget, Ctrl-C and going on."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.e2e.conftest import Cli
from tests.unit import formats_kit as kit


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A file: its recipes are made in a second, and none of them trains."""
    return kit.made("onnx").artifact.path


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("m", "--search", "--recipe", "int8"), "a search finds the recipe"),
        (("m", "--search", "--max-drop", "1%"), "a search finds the recipe"),
        (("m", "--recipe", "int8", "--budget", "p90<=1ms"), "a budget is for a search"),
        (("--search",), "which model?"),
        (("m", "--search", "--budget", "p90<=1"), "needs a unit"),
        (("m", "--search", "--profile", "long"), "no such profile"),
        (("m", "--search", "--trials", "0"), "--trials"),
        (("no-such-model", "--search"), "no such model"),
    ],
)
def test_what_makes_no_sense_is_refused(cli: Cli, flags: tuple[str, ...], said: str) -> None:
    assert said in cli("compress", *flags, code=2).stderr


def test_a_board_without_the_runtime_is_told_before_any_work(cli: Cli, model: str) -> None:
    done = cli("compress", model, "--search", "--target", "nowhere", code=2)
    assert "no such target" in done.stderr


@pytest.mark.slow
def test_an_impossible_budget_ends_with_6_and_the_nearest_point(cli: Cli, model: str) -> None:
    flags = ("--search", "--budget", "bytes<=1", "--trials", "2", "-o", "out")
    done = cli("compress", model, *flags, "--json", code=6)
    found = json.loads(done.stdout)
    assert found["recommended"] is None
    assert found["nearest"]["bytes"] > 1
    assert found["front"]
    assert "error: no candidate keeps bytes <= 1 B; the nearest is" in done.stderr
    assert (cli.cwd / "out" / "search.html").is_file()


@pytest.mark.slow
def test_ctrl_c_prints_the_front_and_the_same_command_goes_on(cli: Cli, model: str) -> None:
    command = ("compress", model, "--search", "--trials", "2", "-o", "out", "--json")
    process = cli.start(*command)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("1/2"):
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, "".join(lines) + err
    found = json.loads(out)
    assert [point["recipe"] for point in found["front"]] == ["none"]
    assert "interrupted" in found["reason"]
    assert "not beaten" in err
    done = cli(*command)
    again = json.loads(done.stdout)
    verdict = {"status", "final"}  # of the two trials whichever beats the other is looked at once more, and is final
    same = [{k: v for k, v in trials[0].items() if k not in verdict} for trials in (again["trials"], found["trials"])]
    assert same[0] == same[1]
    assert "final" in [trial["status"] for trial in again["trials"]]
    assert again["recommended"]
    assert Path(again["recommended"]["toml"]).is_file()
    assert cli("compress", model, "--recipe", again["recommended"]["toml"], "-o", "again").returncode == 0
