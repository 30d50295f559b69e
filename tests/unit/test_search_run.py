"""Real searches of the tiny network on this machine: results, resuming, interruption, a budget that can't be met."""

import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgepipe import artifact, bench, data, export, recipe, search
from edgepipe.errors import GateError, LinkError, UsageError
from edgepipe.journal import Journal
from edgepipe.search import trials
from tests.unit import formats_kit as kit
from tests.unit import search_kit

TRIALS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A home of its own for the journal; the work cache is shared."""
    return tmp_path_factory.mktemp("search")


@pytest.fixture(autouse=True)
def home(folder, monkeypatch):
    kit.tiny()
    monkeypatch.setenv("EDGEPIPE_CACHE", str(kit.home() / "cache"))
    monkeypatch.setenv("EDGEPIPE_HOME", str(folder))


@pytest.fixture
def measured(monkeypatch):
    """The names of all that is measured."""
    found = []
    real = bench.measure

    def measure(client, manifest, *rest):
        found.append((manifest.artifact.recipe, rest[0].profile))
        return real(client, manifest, *rest)

    monkeypatch.setattr(bench, "measure", measure)
    return found


def model():
    return kit.tiny().folder


@pytest.mark.slow
def test_a_search_ends_with_a_recipe_that_keeps_the_budget(folder, measured):
    limits = "p90<=1s,drop<=50%,bytes<=500k"
    outcome = search_kit.run(model(), folder / "out", limits, TRIALS)
    found = outcome.document
    assert outcome.error is None
    assert not outcome.interrupted
    assert found["schema"] == "edgepipe.search/1"
    assert found["budget"]["limits"][0] == {"name": "p90", "most": 1000.0}
    assert found["chosen_on"]["dataset"] == "calibration"  # it has no validation set, and never the evaluation set
    assert len(found["trials"]) == TRIALS
    assert {trial["status"] for trial in found["trials"]} <= {"final", "measured", "skipped"}
    for trial in found["trials"]:
        assert trial["bytes"] > 0
        assert trial["accuracy"] is not None
        assert trial["energy"] is None
        if trial["status"] != "skipped":
            assert trial["measurement"]["samples"] >= 64
            assert trial["p90"] > 0
            assert trial["reasons"]["energy"]
    assert found["front_basis"] == "final"
    best = found["recommended"]
    assert best["status"] == "final"
    assert best["keeps_budget"]
    assert found["reason"].startswith(f"{best['recipe']} onnx: keeps")
    finals = [trial for trial in found["trials"] if trial["final"]]
    for trial in finals:
        report = Journal().find(trial["final"]["report"])
        assert report.recipe == trial["recipe"]
        assert report.accuracy.dataset == "evaluation"
        assert report.release is None
        assert report.measurement.latency_ms.p90.value == trial["final"]["p90"]
    assert len(measured) == sum("measurement" in t and t["measurement"] is not None for t in found["trials"]) + len(
        finals
    )
    placed = artifact.load(Path(best["artifact"]["path"]).parent)
    artifact.check(placed)
    assert placed.recipe == best["recipe"]
    assert str(recipe.parse(best["toml"]))
    assert "<svg" in (folder / "out" / "search.html").read_text()
    json.dumps(found, allow_nan=False)


def test_the_board_keeps_its_release_and_the_same_search_again_repeats_nothing(folder, measured):
    limits = "p90<=1s,drop<=50%,bytes<=500k"
    first = search_kit.run(model(), folder / "out", limits, TRIALS).document
    measured.clear()
    again = search_kit.run(model(), folder / "out", limits, TRIALS).document
    assert measured == []
    assert [t["id"] for t in again["trials"]] == [t["id"] for t in first["trials"]]
    assert again["recommended"] == first["recommended"]
    from edgepipe import board, targets
    from edgepipe.progress import Silent

    with board.connect(targets.load("local"), "test", Silent()) as client:
        assert client.status().current is None


def test_more_trials_go_on_from_those_known(folder, measured):
    limits = "p90<=1s,drop<=50%,bytes<=500k"
    known = [trial["id"] for trial in search_kit.run(model(), folder / "out", limits, TRIALS).document["trials"]]
    measured.clear()
    more = search_kit.run(model(), folder / "out", limits, TRIALS + 1).document
    assert [trial["id"] for trial in more["trials"]][:TRIALS] == known
    assert {name for name, _ in measured} <= {more["trials"][TRIALS]["recipe"]}


def test_a_budget_that_cant_be_met_names_the_limit_and_the_nearest_point(folder, measured):
    outcome = search_kit.run(model(), folder / "small", "p90<=1s,bytes<=1k", TRIALS)
    assert isinstance(outcome.error, GateError)
    assert outcome.error.exit_code == 6
    assert "bytes <= 1 kB" in outcome.error.what
    assert "p90" not in outcome.error.what
    found = outcome.document
    assert found["recommended"] is None
    nearest = found["nearest"]
    assert f"nearest is {nearest['recipe']} onnx: bytes" in outcome.error.what
    assert nearest["bytes"] == min(trial["bytes"] for trial in found["trials"])
    assert nearest["p90"] > 0  # measured although it is over the budget: what could be had
    assert found["front"]
    assert not any(point["keeps_budget"] for point in found["front"])
    assert not (folder / "small" / "recipe.toml").exists()


def test_what_breaks_the_budget_on_the_host_never_sees_the_board(folder, measured, monkeypatch):
    monkeypatch.setenv("EDGEPIPE_HOME", str(folder / "fresh"))
    outcome = search_kit.run(model(), folder / "none", "bytes<=1", 2)
    assert isinstance(outcome.error, GateError)
    assert [trial["status"] for trial in outcome.document["trials"]].count("skipped") >= 1
    assert len(measured) == 1  # the nearest, at last
    assert outcome.document["front_basis"] == "host"


def test_energy_without_a_meter_ends_the_search_at_once(folder, measured, monkeypatch):
    monkeypatch.setenv("EDGEPIPE_HOME", str(folder / "energy"))
    outcome = search_kit.run(model(), folder / "out", "energy<=5mJ", 10)
    assert isinstance(outcome.error, GateError)
    assert "energy is not known" in outcome.error.what
    assert len(outcome.document["trials"]) == 1


@pytest.mark.slow
def test_ctrl_c_shows_the_front_and_the_same_search_goes_on(folder, monkeypatch):
    monkeypatch.setenv("EDGEPIPE_HOME", str(folder / "interrupted"))
    real, seen = bench.measure, []

    def measure(client, manifest, *rest):
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(manifest.artifact.recipe)
        return real(client, manifest, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(bench, "measure", measure)
        outcome = search_kit.run(model(), folder / "out", "", TRIALS)
    assert outcome.interrupted
    assert [point["recipe"] for point in outcome.document["front"]] == ["none"]
    assert outcome.document["recommended"] is None
    assert "interrupted" in outcome.document["reason"]
    again = search_kit.run(model(), folder / "out", "", TRIALS)
    assert again.document["recommended"]
    assert _measurements()[again.document["trials"][0]["id"]] == 1


@pytest.mark.slow
def test_a_search_killed_at_any_moment_loses_nothing(folder, monkeypatch):
    home = folder / "killed"
    monkeypatch.setenv("EDGEPIPE_HOME", str(home))
    command = [sys.executable, "-m", "tests.unit.search_kit", str(model()), str(folder / "out"), "4"]
    root, quiet = Path(__file__).parents[2], subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=root, start_new_session=True, stdout=quiet, stderr=quiet)
    try:
        until = time.monotonic() + 120
        while len(_measurements()) < 2 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = _measurements()
    assert len(before) >= 2
    found = search_kit.run(model(), folder / "out", "", 4)
    assert found.document["recommended"]
    assert before.items() <= _measurements().items()
    assert set(_measurements().values()) == {1}
    assert set(before) <= {trial["id"] for trial in found.document["trials"]}


def _measurements():
    """How many different measurements the journal holds of each trial."""
    found = collections.defaultdict(set)
    for record in Journal().records(trials.KIND):
        if record.value["measurement"]:
            found[record.id].add(json.dumps(record.value["measurement"], sort_keys=True))
    return {name: len(values) for name, values in found.items()}


def test_a_candidate_that_fails_stays_with_its_reason_and_the_search_goes_on(folder, monkeypatch):
    monkeypatch.setenv("EDGEPIPE_HOME", str(folder / "failing"))
    real = export.make

    def make(source, text, *rest, **more):
        if text != "none":
            raise UsageError("no layer to treat", text, "")
        return real(source, text, *rest, **more)

    monkeypatch.setattr(export, "make", make)
    outcome = search_kit.run(model(), folder / "out", "", 2)
    failed = [trial for trial in outcome.document["trials"] if trial["status"] == "failed"]
    assert failed
    assert all("no layer to treat" in trial["reason"] for trial in failed)
    assert outcome.document["recommended"]["recipe"] == "none"


def test_a_board_that_goes_away_ends_the_search_with_all_that_is_known(folder, monkeypatch):
    monkeypatch.setenv("EDGEPIPE_HOME", str(folder / "away"))
    monkeypatch.setattr("edgepipe.search.work._WAITS", (0.0,))
    real, calls = bench.measure, []

    def measure(client, manifest, *rest):
        calls.append(manifest.artifact.recipe)
        if len(calls) > 1:
            raise LinkError("gone", "local")
        return real(client, manifest, *rest)

    monkeypatch.setattr(bench, "measure", measure)
    outcome = search_kit.run(model(), folder / "out", "", TRIALS)
    assert isinstance(outcome.error, LinkError)
    assert len(calls) == 3  # the one that broke was tried again
    assert [point["recipe"] for point in outcome.document["front"]] == ["none"]


def test_without_data_the_drop_cant_be_limited_and_the_rest_can(folder, monkeypatch):
    monkeypatch.setenv("EDGEPIPE_HOME", str(folder / "nodata"))
    plain = kit.made("onnx").artifact.path
    with pytest.raises(UsageError, match="the drop can't be seen"):
        search_kit.run(plain, folder / "out", "drop<=1%", 2)
    found = search_kit.run(plain, folder / "out", "bytes<=1M", 2).document
    assert found["recommended"]
    assert all(trial["accuracy"] is None and trial["reasons"]["accuracy"] for trial in found["trials"])


def test_the_evaluation_set_is_kept_for_the_last_word(folder, monkeypatch):
    monkeypatch.setenv("EDGEPIPE_HOME", str(folder / "sets"))
    real, asked = data.evaluation, []
    monkeypatch.setattr(data, "evaluation", lambda *given: asked.append(given) or real(*given))
    with monkeypatch.context() as patch:
        patch.setattr(search._Search, "finish", lambda self: None)
        patch.setattr(search._Search, "failure", lambda self: GateError("stopped", "", ""))
        search_kit.run(model(), folder / "out", "", 2)
    assert asked == []


def test_a_place_that_cant_be_written_is_refused_before_any_work(folder, tmp_path, measured):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="folder"):
        search_kit.run(model(), tmp_path / "file", "", 2)
    assert measured == []
