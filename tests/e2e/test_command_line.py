"""What the command line promises before any board is involved."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.e2e.conftest import ROOT, Cli

HEAVY = ("torch", "numpy", "onnx", "onnxruntime", "openvino", "paramiko", "rich", "tensorflow", "litert_torch", "nncf")
VERBS = (
    "compress",
    "export",
    "verify",
    "deploy",
    "bench",
    "status",
    "rollback",
    "gc",
    "doctor",
    "provision",
    "targets",
    "report",
    "runs",
)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['edgepipe', '--help']\n"
        "from edgepipe.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr.strip() == "[]"
    for verb in VERBS:
        assert verb in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself(cli: Cli, verb: str) -> None:
    assert "Usage: edgepipe " + verb in cli(verb, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["deploy", "fashion-resnet9", "--target", "local"], ["no such model: fashion-resnet9", "fashion-resnet8"]),
        (["deploy", "fashion-resnet8", "--target", "locl"], ["no such target: locl", "local"]),
        (["deploy", "fashion-resnet8", "--target", "local", "--recipe", "int9"], ["int9", "int8"]),
        (["deploy", "fashion-resnet8", "--target", "local", "--to", "onxx"], ["onxx", "onnx"]),
        (["deploy", "fashion-resnet8", "--target", "local", "--profile", "quik"], ["no such profile: quik", "quick"]),
        (["deploy", "fashion-resnet8", "--target", "rpi4"], ["rpi4", "--host"]),
        (["deploy", "fashion-resnet8", "--target", "local", "--max-drop", "much"], ["not a share: much", "1%"]),
        (
            ["deploy", "fashion-resnet8", "--target", "local", "--max-latency", "30"],
            ["not a latency limit", "p90=30ms"],
        ),
        (["deploy", "fashion-resnet8", "--target", "local", "--recipe", "fp16+int8"], ["fp16"]),
        (["deploy"], ["which model?", "edgepipe deploy fashion-resnet8"]),
        (["deploy", "--no-such-flag"], ["--no-such-flag"]),
        (["depoy"], ["depoy"]),
        (["export", "nothing.onnx"], ["no such model file", "nothing.onnx"]),
        (["verify", "nothing.onnx", "--against", "fashion-resnet8"], ["nothing.onnx"]),
        (["compress"], ["which model"]),
        (["runs", "show", "nothing"], ["nothing"]),
    ],
)
def test_wrong_words_give_three_lines_and_exit_2(cli: Cli, arguments: list[str], says: list[str]) -> None:
    done = cli(*arguments, code=2)
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 3, done.stderr
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("  where: ")
    assert lines[2].startswith("  fix: ")
    for words in says:
        assert words in done.stderr


def test_json_of_an_error_is_one_document(cli: Cli) -> None:
    document = cli.json("deploy", "no-such-model", "--target", "local", code=2)
    assert document["schema"] == "edgepipe.error/1"
    assert document["exit_code"] == 2
    assert "no-such-model" in document["error"]["what"]


def test_defaults_come_from_edgepipe_toml(cli: Cli) -> None:
    (cli.cwd / "edgepipe.toml").write_text(
        '[deploy]\nmodel = "fashion-mbv2"\nto = ["onnx", "tflite"]\nrecipe = "int8"\n'
    )
    plan = cli.json("deploy", "--target", "local", "--dry-run")
    assert (plan["model"]["name"], plan["formats"], plan["recipe"]) == ("fashion-mbv2", ["onnx", "tflite"], "int8")


@pytest.mark.parametrize("text", ["[deploy", '[deploy]\nmodle = "x"\n', "[deploy]\nmodel = 1\n"])
def test_a_wrong_edgepipe_toml_is_exit_2(cli: Cli, text: str) -> None:
    (cli.cwd / "edgepipe.toml").write_text(text)
    assert "edgepipe.toml" in cli("deploy", "--target", "local", code=2).stderr or "modle" in text


def test_output_without_a_terminal_has_no_control_characters(cli: Cli) -> None:
    done = cli("targets", "list")
    assert "rpi4" in done.stdout
    assert not any(ord(character) < 32 and character != "\n" for character in done.stdout + done.stderr)
