"""Compression as a user meets it: chains, gates, resuming, refusals, and the plain verdict."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, Cli


@pytest.fixture
def small(cli: Cli) -> str:
    """The shipped ResNet-8 with the shipped 6,000 training images, whatever else is installed."""
    folder = cli.cwd / "models" / "small"
    shutil.copytree(ROOT / "models" / "fashion-resnet8", folder)
    card = (folder / "model.toml").read_text().replace('name = "fashion-resnet8"', 'name = "small"')
    card = card.replace("../_fashion_mnist", str(ROOT / "models" / "_fashion_mnist"))
    start, end = card.index("[data.full_training]"), card.index("[accuracy]")
    (folder / "model.toml").write_text(card[:start] + card[end:])
    return "small"


def test_the_list_names_every_family(cli: Cli) -> None:
    listed = cli.json("compress", "--list")
    assert listed["schema"] == "edgepipe.steps/1"
    steps = {entry["name"]: entry for entry in listed["steps"]}
    assert {"none", "fp16", "dynamic", "int8", "int8w", "int4", "mixed", "prune", "sparse"} <= set(steps)
    assert {"lowrank", "cluster", "distill", "qat", "equalize", "smooth"} <= set(steps)
    assert steps["prune"]["changes"] == "network"
    assert steps["int8"]["changes"] == "file"
    assert all(entry["help"] for entry in steps.values())
    assert {"name": "importance", "default": "l1", "choices": ["l1", "l2", "taylor", "bn"]} in steps["prune"]["params"]
    people = cli("compress", "--list").stdout
    assert all(name in people for name in (*steps, "search"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_chain_says_what_each_step_cost_and_resumes(cli: Cli, small: str) -> None:
    request = ("compress", small, "--recipe", "prune:0.5,epochs=1+int8", "--eval", "shipped", "-o", "out")
    document = cli.json(*request)
    export, prune, int8 = document["steps"]
    assert [step["name"] for step in document["steps"]] == ["export", "prune", "int8"]
    assert prune["macs"] <= 0.55 * export["macs"]
    assert prune["parameters"] < export["parameters"]
    assert int8["bytes"] < prune["bytes"] < export["bytes"]
    assert prune["accuracy"] > 0.7
    for step in document["steps"]:
        assert step["bytes_gzip"] > 0
        assert step["bytes_zstd"] > 0
        assert step["seconds"] >= 0
    assert export["weights"] > 0
    (artifact,) = document["artifacts"]
    assert artifact["pruning"]["against"] == "int8"
    assert artifact["pruning"]["verdict"]
    assert Path(artifact["path"]).stat().st_size == artifact["bytes"]
    started = time.monotonic()
    again = cli.json(*request[:3], "prune:0.5,epochs=1+fp16", *request[4:])
    assert again["steps"][1] == prune  # taken from the cache, not made again
    assert time.monotonic() - started < 120


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_training(cli: Cli, small: str) -> None:
    """The child that trains tells its progress in a file: once it trains, the interruption comes."""
    cache = cli.cwd / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPIPE_CACHE", str(cache))
        process = cli.start("compress", small, "--recipe", "sparse:0.5,epochs=50", "-o", "out")
    deadline = time.monotonic() + 120
    while not any("epoch" in file.read_text() for file in cache.rglob("progress*.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert not [*cache.rglob("jobs/*")]
    assert not [*cache.rglob("weights.safetensors")]  # nothing half-made is kept
    assert not (cli.cwd / "out").exists()


@pytest.mark.slow
def test_sparse_weights_are_no_faster_and_it_says_so(cli: Cli, small: str) -> None:
    done = cli("compress", small, "--recipe", "sparse:0.5,epochs=0", "--eval", "shipped", "-o", "out", "--json")
    (artifact,) = json.loads(done.stdout)["artifacts"]
    bought = artifact["pruning"]
    assert bought["sparsity"] == 0.5
    assert bought["zeros"] / bought["weights"] == pytest.approx(0.5, abs=0.02)
    assert bought["after"]["bytes"] == pytest.approx(bought["before"]["bytes"], rel=0.01)
    assert bought["after"]["bytes_gzip"] < 0.8 * bought["before"]["bytes_gzip"]
    assert bought["latency_ratio"]["low"] < bought["latency_ratio"]["value"] < bought["latency_ratio"]["high"]
    assert "no speed-up on this runtime" in bought["verdict"]
    assert "no speed-up on this runtime" in done.stderr


def test_the_gate_names_the_step_that_lost_it(cli: Cli, small: str) -> None:
    request = ("--eval", "shipped", "--max-drop", "1%", "-o", "out")
    done = cli("compress", small, "--recipe", "sparse:0.97,epochs=0+int8", *request, code=6)
    assert "at sparse:0.97" in done.stderr
    assert "int8 small" not in done.stderr  # the step after it was not begun
    assert not (cli.cwd / "out").exists()


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("fp16+prune:0.5", "prune changes the network, but fp16"),
        ("sparse:0.5+lowrank:0.5", "lowrank would undo sparse"),
        ("prune:1.5", "amount must lie between"),
        ("prune:0.5,importance=l3", "no such importance of prune: l3"),
        ("sparse:0.5,pattern=3:7", "no such pattern of sparse: 3:7"),
        ("prune", None),
        ("int8:w8a32", "w8a32"),
        ("cluster:1", "clusters must lie between"),
        ("int4:group=-1", "group must be 1 or more"),
    ],
)
def test_recipes_that_can_not_be(cli: Cli, small: str, recipe: str, says: str | None) -> None:
    if says is None:  # all defaults: a recipe like any other
        cli("export", small, "--recipe", recipe, "--to", "onxx", code=2)
        return
    done = cli("compress", small, "--recipe", recipe, "-o", "out", code=2)
    assert says in done.stderr
    assert not (cli.cwd / "out").exists()


def test_without_data_it_says_what_works(cli: Cli) -> None:
    folder = cli.cwd / "models" / "bare"
    shutil.copytree(ROOT / "models" / "fashion-resnet8", folder)
    card = (folder / "model.toml").read_text()
    (folder / "model.toml").write_text(card[: card.index("[data]")] + card[card.index("[accuracy]") :])
    done = cli("compress", "bare", "--recipe", "int8", "-o", "out", code=2)
    for word in ("fp16", "dynamic", "int8w", "int4", "--synthetic-calibration"):
        assert word in done.stderr
    done = cli("compress", "bare", "--recipe", "prune:0.5,epochs=1", "-o", "out", code=2)
    assert "has no training data" in done.stderr
    assert "epochs=0" in done.stderr
    document = cli.json("compress", "bare", "--recipe", "int8", "--synthetic-calibration", "-o", "out")
    assert "synthetic" in document["steps"][-1]["note"]
