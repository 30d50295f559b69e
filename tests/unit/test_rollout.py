"""Staged roll-outs over boards that are not there, some of them sick."""

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from edgepipe import model
from edgepipe.errors import BoardError, GateError, UsageError
from edgepipe.fleet import builds, rollout
from edgepipe.fleet.lane import Limits
from edgepipe.fleet.plan import Cell, Member
from edgepipe.fleet.rollout import waves
from edgepipe.fleet.rollout.waves import Gates, Standing
from edgepipe.journal import Journal
from edgepipe.link import null
from edgepipe.record import Bound
from edgepipe.targets import Target
from tests import fleet_kit as kit

NEW, OLD = Cell(kit.MODEL, "none", "null"), Cell(kit.MODEL, "fp16", "null")
LOADED = functools.cache(model.load)
LIMITS = Limits(50, 16, kit.HASTY)


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    kit.home(monkeypatch, tmp_path / "home")
    kit.infect(monkeypatch, {})
    monkeypatch.setattr("edgepipe.fleet.rollout.drive._LISTEN", 0.0)
    monkeypatch.setattr(builds.model, "load", LOADED)


def request(boards, waves_="1,50%,all", cell=NEW, **more):
    counts = waves.counts(waves_, len(boards))
    gates = more.pop("gates", Gates())
    return rollout.Request(boards, cell, counts, gates, plan=kit.SHORT, **more)


def begin(wanted):
    with kit._no_data():
        return rollout.begin(wanted, kit.Silent(), LIMITS)


def resume(name="rollout"):
    with kit._no_data():
        return rollout.resume(name, kit.Silent(), LIMITS)


def states(outcome):
    return {board["board"]: board["state"] for board in outcome.document["boards"]}


def on(name):
    """What a board has: its active release and the one before."""
    return [*null._boards["~", name][0].active, None, None][:2]


@pytest.fixture
def eight():
    """Eight boards that have an older release."""
    boards = kit.members(8)
    old = begin(request(boards, "all", OLD))
    assert old.error is None
    return boards


# Pure parts


@pytest.mark.parametrize(
    ("text", "boards", "totals"),
    [
        ("1,5%,25%,all", 200, [1, 10, 50, 200]),
        ("1,5%,25%,all", 8, [1, 2, 8]),
        ("1,5%,25%,all", 1, [1]),
        ("3", 2, [2]),
        ("10%", 25, [3]),
        ("100%", 7, [7]),
    ],
)
def test_waves_are_totals_and_none_is_empty(text, boards, totals):
    assert waves.counts(text, boards) == totals


@pytest.mark.parametrize("text", ["", "0", "a", "5%,1%", "all,1", "-1", "1.5", "1,,all", "0%"])
def test_what_is_no_row_of_waves_is_refused(text):
    with pytest.raises(UsageError, match="wave"):
        waves.counts(text, 100)


def test_the_first_waves_see_each_kind_and_site_and_high_priorities_first():
    boards = [
        Member(Target(f"b{at}", link="null", like="pi4" if at < 6 else "orin"), "hall" if at % 2 else "lab", at == 7)
        for at in range(8)
    ]
    first, rest = waves.split(boards, [5, 8])
    assert first[0].name == "b7"
    assert {(one.target.like, one.site) for one in first} == {(x, y) for x in ("pi4", "orin") for y in ("hall", "lab")}
    assert sorted(one.name for one in first + rest) == [one.name for one in boards]


def test_only_a_sure_slowdown_refuses_a_board():
    gates, fine = Gates(max_slowdown=0.1, max_energy=0.1), Bound(1.0, 0.9, 1.05)
    ok = type("Run", (), {"status": "ok", "reason": ""})
    assert waves.refusal(gates, ok, fine, fine) == ""
    assert waves.refusal(gates, ok, Bound(1.4, 1.05, 1.6), fine) == ""
    assert "of the time of the release before" in waves.refusal(gates, ok, Bound(1.4, 1.2, 1.6), fine)
    assert "of the energy of" in waves.refusal(gates, ok, fine, Bound(1.4, 1.2, 1.6))
    assert waves.refusal(gates, ok, Bound(None, reason="none before"), Bound(None)) == ""
    assert waves.refusal(replace(gates, max_energy=None), ok, fine, Bound(1.4, 1.2, 1.6)) == ""


def test_a_wave_bears_as_many_failures_as_it_may_and_needs_its_quorum():
    found = [Standing("a", 1, waves.FAILED, reason="x"), Standing("b", 1, waves.PASSED), Standing("c", 1, waves.MISSED)]
    assert "a: x" in waves.broken(found, Gates())
    assert waves.broken(found, Gates(tolerate=1)) == ""
    assert "only 1 of 3" in waves.too_few(found, 3, Gates())
    assert waves.too_few(found, 3, Gates(quorum=0.3)) == ""


# Forward


def test_all_boards_have_the_release_after_the_last_wave_and_can_go_back(eight):
    outcome = begin(request(eight))
    assert outcome.error is None
    assert set(states(outcome).values()) == {waves.PASSED}
    assert Counter(board["wave"] for board in outcome.document["boards"]) == {1: 1, 2: 3, 3: 4}
    found = {tuple(on(one.name)) for one in eight}
    assert len(found) == 1
    assert None not in found.pop()
    board = outcome.document["boards"][0]
    assert board["latency"]["low"] <= board["latency"]["value"] <= board["latency"]["high"]
    report = Journal().find(board["report"])
    assert (report.board.target, report.measurement.status) == (board["board"], "ok")


def test_a_release_that_is_active_already_is_not_activated_again(eight):
    outcome = begin(request(eight, cell=OLD))
    assert {board["changed"] for board in outcome.document["boards"]} == {False}
    assert all("active already" in board["reason"] for board in outcome.document["boards"])


# Stops


@pytest.mark.parametrize(
    ("ill", "reason"),
    [("slow", "of the time of the release before"), ("selftest", "golden"), ("forgets", "active now"),
     ("mute", "cut off")],
)  # fmt: skip
def test_a_board_that_fails_stops_its_wave_and_the_wave_goes_back(monkeypatch, eight, ill, reason):
    before = {one.name: on(one.name)[0] for one in eight}
    wanted = request(eight)
    sick = wanted.split()[1][0].name
    kit.infect(monkeypatch, {sick: ill}, keep=True)
    outcome = begin(wanted)
    assert isinstance(outcome.error, GateError)
    found = {board["board"]: board for board in outcome.document["boards"]}
    first, second, third = ([one.name for one in group] for group in wanted.split())
    assert found[sick]["state"] in {waves.FAILED, waves.RETURNED, waves.STAYS}
    assert reason in outcome.document["reason"]
    assert [found[name]["state"] for name in first] == [waves.PASSED]
    assert {found[name]["state"] for name in third} == {"not asked"}
    for name in [name for name in second if name != sick] + third:
        assert on(name)[0] == before[name]
    assert on(first[0])[0] != before[first[0]]
    with pytest.raises(UsageError, match="was stopped"):
        resume()


def test_all_boards_go_back_where_that_was_chosen(monkeypatch, eight):
    before = {one.name: on(one.name)[0] for one in eight}
    wanted = request(eight, roll_back="all")
    kit.infect(monkeypatch, {wanted.split()[2][0].name: "selftest"}, keep=True)
    outcome = begin(wanted)
    assert isinstance(outcome.error, GateError)
    assert {one.name: on(one.name)[0] for one in eight} == before
    assert Counter(states(outcome).values())[waves.RETURNED] >= 4


def test_a_board_that_may_fail_stops_nothing(monkeypatch, eight):
    kit.infect(monkeypatch, {"b00003": "selftest"}, keep=True)
    outcome = begin(request(eight, gates=Gates(tolerate=1)))
    assert outcome.document["state"] == rollout.DONE
    assert isinstance(outcome.error, BoardError)
    assert Counter(states(outcome).values()) == {waves.PASSED: 7, waves.FAILED: 1}


def test_boards_that_are_away_are_missed_and_asked_again_by_resume(monkeypatch, eight):
    kit.infect(monkeypatch, {"b00005": "down"}, keep=True)
    outcome = begin(request(eight))
    assert outcome.document["state"] == rollout.DONE
    assert states(outcome)["b00005"] == waves.MISSED
    kit.ILL.clear()
    kit.BENCHED.clear()
    again = resume()
    assert again.error is None
    assert set(states(again).values()) == {waves.PASSED}
    assert {name for name, _ in kit.BENCHED} == {"b00005"}


def test_without_its_first_board_a_roll_out_waits(monkeypatch, eight):
    kit.infect(monkeypatch, {request(eight).split()[0][0].name: "down"}, keep=True)
    outcome = begin(request(eight))
    assert outcome.document["state"] == rollout.PAUSED
    assert "only 0 of 1" in outcome.error.what
    assert Counter(states(outcome).values()) == {"not asked": 7, waves.MISSED: 1}


def test_a_board_that_falls_ill_while_the_wave_soaks_stops_it(monkeypatch, eight):
    wanted = request(eight, soak=0.05)
    first = wanted.split()[0][0].name
    monkeypatch.setattr(rollout.drive.time, "sleep", lambda _: kit.ILL.update({first: "down"}))
    outcome = begin(wanted)
    assert isinstance(outcome.error, GateError)
    assert states(outcome)[first] in {waves.STAYS, waves.RETURNED}
    assert "connection refused" in outcome.document["reason"]


def test_two_names_for_one_board_fail(monkeypatch, eight):
    class Same(kit.Link):
        def __init__(self, endpoint):
            super().__init__(endpoint)
            self.fingerprint = "null:all the same"

    monkeypatch.setattr(null, "open_link", Same)
    outcome = begin(request(eight, "2,all"))
    assert "two names for one board" in outcome.document["reason"]


# Orders


def test_pause_then_resume_goes_on_with_what_is_left(monkeypatch, eight):
    real = rollout.drive._Drive._keep

    def keep(self, at):
        real(self, at)
        if at.wave == 2 and at.state == waves.PASSED:
            rollout.pause(self.name)

    monkeypatch.setattr(rollout.drive._Drive, "_keep", keep)
    outcome = begin(request(eight))
    assert (outcome.document["state"], outcome.error) == (rollout.PAUSED, None)
    assert Counter(states(outcome).values())["not asked"] == 4
    monkeypatch.setattr(rollout.drive._Drive, "_keep", real)
    again = resume(outcome.document["rollout"])
    assert set(states(again).values()) == {waves.PASSED}


@pytest.mark.parametrize(("choice", "stay"), [("all", 0), ("wave", 4), ("none", 8)])
def test_abort_brings_back_the_boards_that_were_chosen(eight, choice, stay):
    before = {one.name: on(one.name)[0] for one in eight}
    name = begin(request(eight)).document["rollout"]
    with kit._no_data():
        outcome = rollout.abort(name, choice, kit.Silent(), LIMITS)
    assert outcome.document["state"] == rollout.ABORTED
    assert sum(on(board)[0] != release for board, release in before.items()) == stay


def test_an_abort_from_beside_reaches_the_one_who_works(monkeypatch, eight):
    real, told = rollout.drive._Drive._keep, []

    def keep(self, at):
        real(self, at)
        if at.wave == 2 and at.state == waves.PASSED and not told:
            aborting = threading.Thread(
                target=lambda: told.append(rollout.abort(self.name, "all", kit.Silent(), LIMITS))
            )
            aborting.start()
            aborting.join()

    monkeypatch.setattr(rollout.drive._Drive, "_keep", keep)
    outcome = begin(request(eight))
    assert told == [None]
    assert outcome.document["state"] == rollout.ABORTED
    assert waves.PASSED not in states(outcome).values()


def test_a_first_release_that_is_aborted_stays_and_says_why():
    boards = kit.members(2)
    name = begin(request(boards, "all")).document["rollout"]
    with kit._no_data():
        outcome = rollout.abort(name, "all", kit.Silent(), LIMITS)
    assert set(states(outcome).values()) == {waves.STAYS}
    assert all("no release was active before" in board["reason"] for board in outcome.document["boards"])


def test_a_roll_out_nobody_knows_and_a_choice_nobody_has():
    with pytest.raises(UsageError, match="no such roll-out"):
        resume("rollout-2020")
    with pytest.raises(UsageError, match="no such choice"):
        rollout.abort("", "some", kit.Silent(), LIMITS)


# Killed anywhere


@pytest.mark.slow
@pytest.mark.parametrize("lines", [4, 9])
def test_killed_anywhere_resume_goes_on(tmp_path, lines):
    """The host is killed; boards keep their links on disk; each is activated once, and can go back to what it had."""
    root = tmp_path / "boards"
    script = (
        "from tests import fleet_kit as kit\nfrom tests.unit import test_rollout as t\n"
        f"boards = kit.members(6, {str(root)!r})\n"
        "t.begin(t.request(boards, 'all', t.OLD))\nprint('old', flush=True)\n"
        "t.begin(t.request(boards, '1,50%,all'))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "old\n"
    journal = Path(os.environ["EDGEPIPE_HOME"]) / "journal.jsonl"
    start = journal.read_bytes().count(b"\n")
    until = time.monotonic() + 60
    while time.monotonic() < until and journal.read_bytes().count(b"\n") < start + lines and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    outcome = resume()
    assert outcome.document["state"] == rollout.DONE
    assert set(states(outcome).values()) == {waves.PASSED}
    begun = next(Journal().records(rollout.KIND)).id
    kept = [record for record in Journal().records(rollout.BOARD) if record.id.startswith(begun)]
    had = {record.value["board"]: record.value["release"] for record in kept}
    for board in outcome.document["boards"]:
        assert board["previous"] == had[board["board"]], "the way back leads to the release before"
