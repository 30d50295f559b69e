import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from edgepipe import fleet, inventory, lines
from edgepipe.cli import options
from edgepipe.errors import BoardError, BusyError, EdgepipeError, IntegrityError, LinkError, UsageError
from edgepipe.fleet import plan, schedule, work
from edgepipe.fleet.breaker import Breaker, Patience
from edgepipe.fleet.lane import Limits
from edgepipe.fleet.leases import Leases
from edgepipe.fleet.plan import Member
from edgepipe.journal import Journal
from edgepipe.link import null
from edgepipe.targets import Target
from tests import fleet_kit as kit


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    kit.home(monkeypatch, tmp_path / "home")
    kit.infect(monkeypatch, {})


def statuses(outcome):
    return Counter(report.measurement.status for report in outcome.document["reports"])


# Pure parts


def test_candidates_are_interleaved_and_each_board_begins_at_another():
    wanted = kit.request(kit.members(3), recipes=("none", "fp16", "int8"), rounds=2)
    found = plan.trials("run", wanted)
    orders = {board: [str(trial.cell).split()[1] for trial in trials] for board, trials in found.items()}
    assert orders["b00000"] == ["none", "fp16", "int8", "fp16", "int8", "none"]
    assert orders["b00001"][:3] == ["fp16", "int8", "none"]
    assert orders["b00002"][0] == "int8"


def test_a_trial_has_the_same_key_in_each_run_and_an_id_of_its_own():
    wanted = kit.request(kit.members(2), recipes=("none", "fp16"), rounds=2)
    one, other = (plan.trials(run, wanted) for run in ("a", "b"))
    pairs = [(x, y) for board in one for x, y in zip(one[board], other[board], strict=True)]
    assert all(x.key == y.key and x.id != y.id for x, y in pairs)
    assert len({x.key for x, _ in pairs}) == len({x.id for x, _ in pairs}) == 8
    assert plan.trials("a", wanted) == one


def test_a_matrix_file_says_it_all():
    text = 'models=["a","b"]\nrecipes=["none","int4"]\nformats=["onnx"]\nrounds=3\n[priority]\nb=5\n'
    text += '[[exclude]]\nmodel="a"\nrecipe="int4"\n'
    found = plan.matrix(text, "m.toml")
    assert list(map(str, found.cells())) == ["b none onnx", "b int4 onnx", "a none onnx"]
    assert found.rounds == 3


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("models = [", "not a TOML"),
        ("model = ['a']", "no such key of a matrix"),
        ("recipes = ['a']", "no models"),
        ("models = 'a'", "must be a list"),
        ("models = ['a']\nrounds = 0", "rounds"),
        ("models = ['a']\nlimit = 3", "limit must be a text"),
        ("models = ['a']\n[priority]\na = 'x'", "priority"),
        ("models = ['a']\n[[exclude]]\nboard = 'x'", "no such key"),
        ("models = ['a']\n[[exclude]]\nmodel = 'a'", "nothing to measure"),
    ],
)
def test_a_mistake_in_a_matrix_is_named(text, what):
    with pytest.raises(UsageError, match=what):
        plan.matrix(text, "m.toml").cells()


def test_two_names_at_one_address_are_refused():
    boards = [Member(Target(name, host="pi@10.0.0.1")) for name in ("a", "b")]
    with pytest.raises(UsageError, match="a and b are one board"):
        plan.check(boards)


def test_a_breaker_opens_asks_once_more_and_gives_up():
    breaker = Breaker(Patience(limit=3, openings=2, backoff=1.0, cooldown=10.0))
    waits = [breaker.fault("x") for _ in range(3)]
    assert 0.5 <= waits[0] <= 1.5
    assert 1.0 <= waits[1] <= 3.0
    assert 5.0 <= waits[2] <= 15.0
    assert breaker.state == "open"
    breaker.fault("y")
    assert (breaker.state, breaker.reason) == ("gone", "y")


def test_a_success_closes_a_breaker():
    breaker = Breaker(Patience(limit=2))
    breaker.fault("x")
    breaker.success()
    assert breaker.fault("x") <= 1.5
    assert breaker.state == "closed"
    assert breaker.total == 2


def test_leases_are_exclusive_and_bounded():
    leases = Leases(parallel=2, transfers=1)
    assert leases.take("a")
    assert not leases.take("a")
    assert leases.take("b")
    assert not leases.take("c")
    leases.give_back("a")
    assert leases.take("c")
    assert leases.send("x")
    assert not leases.send("x")
    assert leases.send("y")
    leases.sent("x")
    assert leases.send("x")


# Runs


def test_every_board_measures_every_candidate_and_the_files_are_made_once(monkeypatch):
    made = []
    real = schedule.builds.Builds._build
    monkeypatch.setattr(schedule.builds.Builds, "_build", lambda self, *args: made.append(args) or real(self, *args))
    outcome = kit.run(kit.request(kit.members(12), recipes=("none", "fp16"), rounds=2))
    assert outcome.error is None
    assert (outcome.document["trials"], outcome.document["done"]) == (48, 48)
    assert len(made) == 2
    assert len({report.id for report in outcome.document["reports"]}) == 48
    assert {report.board.emulated for report in outcome.document["reports"]} == {null.EMULATED}
    assert all(report.measurement.latency_ms.p50.value > 0 for report in outcome.document["reports"])
    left = [memory for held in null._boards.values() for memory in held if memory.runs()]
    assert not left  # each board was told that its runs are safe


def test_at_no_time_are_two_jobs_on_one_board_or_too_many_on_an_uplink(monkeypatch):
    at_work, sending, most = Counter(), Counter(), Counter()

    def watched(name, real):
        def act(where, *rest):
            at_work[where.target.name] += 1
            sending[name] += 1
            most["board"] = max(most["board"], at_work[where.target.name])
            most[name] = max(most[name], sending[name])
            most["boards"] = max(most["boards"], sum(at_work.values()))
            try:
                time.sleep(0.01)
                return real(where, *rest)
            finally:
                at_work[where.target.name] -= 1
                sending[name] -= 1

        return act

    monkeypatch.setattr(work, "deliver", watched("deliver", work.deliver))
    monkeypatch.setattr(work, "measure", watched("measure", work.measure))
    with kit._no_data():
        limits = Limits(parallel=6, transfers=2, patience=kit.HASTY)
        outcome = fleet.run(kit.request(kit.members(20)), kit.Silent(), lambda _: None, limits)
    assert outcome.document["done"] == 20
    assert most["board"] == 1
    assert most["deliver"] <= 2
    assert 2 < most["boards"] <= 6


def test_boards_of_high_priority_go_first():
    boards = [Member(one.target, one.site, at) for at, one in enumerate(kit.members(6))]
    begun = []
    with kit._no_data():
        limits = Limits(1, 1, kit.HASTY)
        watch = lambda lane: begun.append(lane.name) if lane.state == "greet" else None  # noqa: E731
        fleet.run(kit.request(boards), kit.Silent(), watch, limits)
    assert begun == [f"b{at:05}" for at in reversed(range(6))]


@pytest.mark.parametrize(
    ("ill", "reason"),
    [
        ("down", "connection refused"),
        ("changed", "HAS CHANGED"),
        ("bare", "no python3"),
        ("lie", "not as agreed"),
        ("hang", "no answer"),
    ],
)
def test_a_sick_board_is_given_up_with_its_reason_and_the_others_are_done(monkeypatch, ill, reason):
    kit.infect(monkeypatch, {"b00003": ill})
    outcome = kit.run(kit.request(kit.members(8)))
    assert isinstance(outcome.error, BoardError)
    assert "1 of 8 boards were given up: b00003" in outcome.error.what
    states = {board["name"]: board for board in outcome.document["boards"]}
    assert states["b00003"]["state"] == "given up"
    assert reason in states["b00003"]["reason"]
    assert sum(board["state"] == "done" for board in states.values()) == 7
    sick = next(report for report in outcome.document["reports"] if report.board.target == "b00003")
    assert (sick.measurement.status, sick.measurement.latency_ms) == ("unreachable", None)


def test_a_run_measured_before_the_agent_died_is_fetched_and_not_measured_again(monkeypatch):
    kit.infect(monkeypatch, {"b00001": "crash"})
    outcome = kit.run(kit.request(kit.members(4)))
    assert outcome.error is None
    assert outcome.document["done"] == 4
    assert Counter(name for name, _ in kit.BENCHED)["b00001"] == 1


def test_a_board_in_use_is_waited_for_then_given_up(monkeypatch):
    real, tries = work.measure, Counter()

    def measure(where, *rest):
        tries[where.target.name] += 1
        if where.target.name == "b00000" and tries["b00000"] < 3:
            raise BusyError("the board is in use by other@host", "lock", "")
        if where.target.name == "b00001":
            raise BusyError("the board is in use by another fleet", "lock", "")
        return real(where, *rest)

    monkeypatch.setattr(work, "measure", measure)
    outcome = kit.run(kit.request(kit.members(3)))
    states = {board["name"]: board for board in outcome.document["boards"]}
    assert states["b00000"]["state"] == "done"
    assert "in use by another fleet" in states["b00001"]["reason"]


def test_one_board_under_two_names_is_found_by_its_host_key(monkeypatch):
    class Same(kit.Link):
        def __init__(self, endpoint):
            super().__init__(endpoint)
            if self.name == "b00002":
                self.fingerprint = null.NullLink(type(endpoint)("b00001", root=endpoint.root)).fingerprint

    monkeypatch.setattr(null, "open_link", Same)
    outcome = kit.run(kit.request(kit.members(4)))
    gone = [board for board in outcome.document["boards"] if board["state"] != "done"]
    assert len(gone) == 1
    assert gone[0]["name"] in {"b00001", "b00002"}
    assert "two names for one board" in gone[0]["reason"]


def test_a_site_that_is_cut_off_is_not_waited_for_board_by_board(monkeypatch):
    boards = [*kit.members(300), Member(Target("near", link="null"), "near")]
    kit.infect(monkeypatch, {one.name: "down" for one in boards[:-1]})
    limits = Limits(8, 4, kit.HASTY)
    opened = []
    real = kit.Link.open
    monkeypatch.setattr(kit.Link, "open", lambda self, argv: opened.append(self.name) or real(self, argv))
    with kit._no_data():
        outcome = fleet.run(kit.request(boards), kit.Silent(), lambda _: None, limits)
    assert outcome.document["done"] == 1
    assert any("none could be reached" in board["reason"] for board in outcome.document["boards"])
    assert len(set(opened)) < 150
    assert {report.measurement.status for report in outcome.document["reports"] if report.board.target != "near"} == {
        "unreachable"
    }


def test_a_board_whose_clock_is_wrong_by_years_changes_no_date(monkeypatch):
    monkeypatch.setattr(null.time, "time", lambda: 4102444800.0 if sys._getframe(1).f_code.co_name == "_bench" else 0.0)
    outcome = kit.run(kit.request(kit.members(2)))
    year = str(time.gmtime().tm_year)
    assert all(report.created[:3] == year[:3] for report in outcome.document["reports"])


def test_what_fails_on_the_host_is_that_candidates_result_on_each_board(monkeypatch):
    real = schedule.builds.Builds._build

    def build(self, cell, wanted):
        if cell.recipe == "fp16":
            raise UsageError("no layer to treat", cell.recipe, "")
        return real(self, cell, wanted)

    monkeypatch.setattr(schedule.builds.Builds, "_build", build)
    outcome = kit.run(kit.request(kit.members(3), recipes=("none", "fp16")))
    assert outcome.error is None
    failed = [report for report in outcome.document["reports"] if report.recipe == "fp16"]
    assert {report.measurement.status for report in failed} == {"failed"}
    assert all("no layer to treat" in report.measurement.reason for report in failed)


# The journal


def test_resume_measures_only_what_is_not_recorded_and_asks_the_sick_again(monkeypatch):
    kit.infect(monkeypatch, {"b00002": "down"})
    first = kit.run(kit.request(kit.members(5), recipes=("none", "fp16")))
    assert first.document["done"] == 8
    kit.BENCHED.clear()
    kit.ILL.clear()
    again = kit.resume(first.document["run"])
    assert again.error is None
    assert again.document["done"] == 10
    assert {name for name, _ in kit.BENCHED} == {"b00002"}
    kit.BENCHED.clear()
    assert kit.resume("").document["done"] == 10
    assert not kit.BENCHED


def test_what_the_journal_has_of_a_run_is_read_once_then_only_what_is_new(monkeypatch):
    first = kit.run(kit.request(kit.members(5)))
    read = []
    real = lines.parse
    monkeypatch.setattr(lines, "parse", lambda line: read.append(line) or real(line))
    again = kit.resume(first.document["run"])
    assert len(read) == 1 + 5  # the run, and each result
    assert again.document["done"] == 5
    kept = again.document["reports"]
    assert [report.board.target for report in kept[1:3]] == ["b00001", "b00002"]
    assert kept[-1].id == list(kept)[4].id
    document = json.loads(options.text(again.document))
    assert [report["id"] for report in document["reports"]] == [report.id for report in kept]
    Journal().path.unlink()
    with pytest.raises(IntegrityError, match="changed by somebody else"):
        list(kept)


def test_a_full_disk_ends_the_run_and_what_was_measured_waits_on_the_boards(monkeypatch):
    real, calls = Journal.append_all, []

    def full(self, found):
        calls.append(list(found))
        if len(calls) > 1:
            raise EdgepipeError("the result can't be kept: No space left on device", "journal")
        return real(self, calls[-1])

    monkeypatch.setattr(Journal, "append_all", full)
    with pytest.raises(EdgepipeError, match="No space left"):
        kit.run(kit.request(kit.members(6)), parallel=1)
    measured = [name for name, _ in kit.BENCHED]
    monkeypatch.setattr(Journal, "append_all", real)
    kit.BENCHED.clear()
    assert kit.resume("").document["done"] == 6
    assert not set(measured) & {name for name, _ in kit.BENCHED}  # fetched, not measured again


def test_a_run_that_still_goes_on_is_not_resumed():
    outcome = kit.run(kit.request(kit.members(1)))
    with fleet.alone(outcome.document["run"]), pytest.raises(BusyError, match="still going on"):
        kit.resume(outcome.document["run"])


def test_a_run_nobody_knows_is_refused():
    with pytest.raises(UsageError, match="no such fleet run"):
        kit.resume("2020")


def test_ctrl_c_keeps_what_was_measured(monkeypatch):
    real, seen = Journal.append_all, []

    def keep(self, found):
        real(self, found)
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "append_all", keep)
    with pytest.raises(KeyboardInterrupt):
        kit.run(kit.request(kit.members(6)), parallel=1)
    monkeypatch.setattr(Journal, "append_all", real)
    assert fleet.document(*fleet.find())["done"] >= 2


@pytest.mark.slow
def test_killed_at_any_moment_nothing_recorded_is_lost_or_done_twice(tmp_path):
    """The host is killed, a fleet whose boards keep their runs on disk goes on."""
    root = tmp_path / "boards"
    script = (
        "import sys; from tests import fleet_kit as kit\n"
        f"kit.run(kit.request(kit.members(30, {str(root)!r}), ('none', 'fp16'), plan=kit.short(0.05)), parallel=4)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    journal = Path(os.environ["EDGEPIPE_HOME"]) / "journal.jsonl"
    until = time.monotonic() + 180
    while time.monotonic() < until and (not journal.exists() or journal.read_bytes().count(b"\n") < 12):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {record.id: json.dumps(record.value["measurement"]) for record in Journal().records("report")}
    assert len(before) >= 10
    outcome = kit.resume("")
    assert outcome.document["done"] == 60
    after = Counter(record.id for record in Journal().records("report"))
    assert set(after.values()) == {1}
    kept = {record.id: json.dumps(record.value["measurement"]) for record in Journal().records("report")}
    assert before.items() <= kept.items()
    left = {path.name for path in root.glob("*/trial-*")}
    assert left <= set(before)  # of boards that had nothing more to do, and were not asked again


def test_members_come_from_the_inventory(tmp_path):
    path = tmp_path / "i.yml"
    path.write_text("lab: {vars: {edgepipe_site: hall}, hosts: {a: {edgepipe_priority: 3}, b: {edgepipe_priority: x}}}")
    found = inventory.load(path)
    one = plan.member(found.hosts["a"])
    assert (one.name, one.site, one.priority) == ("a", "hall", 3)
    with pytest.raises(UsageError, match="not a whole number"):
        plan.member(found.hosts["b"])


def test_a_dry_run_counts_trials_bytes_and_seconds():
    wanted = kit.request(kit.members(70), recipes=("none", "fp16"), rounds=3, plan=kit.short(2.0))
    sizes = dict.fromkeys(wanted.cells, 1000)
    found = plan.dry_run(wanted, sizes, 32)
    assert (found["trials"], found["bytes"]["in_all"]) == (420, 140_000)
    assert found["seconds"] == {"per_board": 12.0, "in_all": 36.0}
    unknown = plan.dry_run(wanted, {wanted.cells[0]: None}, 32)["bytes"]
    assert unknown["in_all"] is None
    assert unknown["reason"]


def test_cells_without_a_runtime_fail_without_asking_the_board(monkeypatch):
    monkeypatch.setattr(null, "_RUNTIMES", ("onnxruntime",))
    outcome = kit.run(kit.request(kit.members(2)))
    assert statuses(outcome) == {"failed": 2}
    assert not kit.BENCHED


def test_an_unexpected_fault_of_ours_is_told_and_stops_only_that_board(monkeypatch):
    real = work.deliver

    def deliver(where, package):
        if where.target.name == "b00001":
            raise ZeroDivisionError("oops")
        return real(where, package)

    monkeypatch.setattr(work, "deliver", deliver)
    outcome = kit.run(kit.request(kit.members(3)))
    gone = [board for board in outcome.document["boards"] if board["state"] != "done"]
    assert [board["name"] for board in gone] == ["b00001"]
    assert "ZeroDivisionError: oops" in gone[0]["reason"]


def test_a_flapping_link_is_tried_again(monkeypatch):
    real, cut = work.deliver, Counter()

    def deliver(where, package):
        cut[where.target.name] += 1
        if cut[where.target.name] <= 2:
            raise LinkError("cut off", where.target.name)
        return real(where, package)

    monkeypatch.setattr(work, "deliver", deliver)
    outcome = kit.run(kit.request(kit.members(3)))
    assert outcome.error is None
    assert outcome.document["done"] == 3
