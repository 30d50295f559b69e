"""What a fleet run shows. The rows of most tests are made up, so that the truth is known."""

import csv
import json
import math
import random
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats as scipy_stats

from edgepipe import fleet, versus
from edgepipe.cli import _fleet_analysis, outcomes
from edgepipe.errors import GateError, UsageError
from edgepipe.fleet.analysis import chances, compare, section, table, variation
from edgepipe.record import Bound
from tests import fleet_kit as kit


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    kit.home(monkeypatch, tmp_path / "home")
    kit.infect(monkeypatch, {})


def row(board, p50, cell=0, turn=1, **more):
    low, high = p50 * 0.995, p50 * 1.005
    made = {
        "board": board, "kind": "pi4", "model": f"m{cell}", "recipe": "none", "format": "onnx", "round": turn,
        "status": "ok", "p50_ms": p50, "p50_low_ms": low, "p50_high_ms": high, "throttled": False, "max_c": 50.0,
        "clock_khz": 1_500_000, "runtime": "onnxruntime", "runtime_version": "1", "emulated": None,
    }  # fmt: skip
    return {**made, **more}


def fleet_of(rng, boards=8, cells=3, rounds=3, between=0.0, within=0.01, slower=None, factor=1.0, **of_slower):
    own = {f"pi-{at:02}": math.exp(rng.gauss(0, between)) for at in range(boards)}
    return [
        row(
            board, (cell + 1) * speed * math.exp(rng.gauss(0, within)) * (factor if board == slower else 1.0), cell,
            turn, **(of_slower if board == slower else {}),
        )
        for board, speed in own.items() for cell in range(cells) for turn in range(1, rounds + 1)
    ]  # fmt: skip


# Chances


@pytest.mark.parametrize("degrees", [1, 2, 3, 7, 30, 400])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 2.5, 6.0, 40.0])
def test_students_t_is_that_of_scipy(t, degrees):
    assert chances.two_sided(t, degrees) == pytest.approx(2 * scipy_stats.t.sf(t, degrees), rel=1e-5, abs=1e-12)


def test_holm_steps_down_and_keeps_the_order():
    assert chances.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert chances.holm([None, 0.9, 0.6]) == [None, 1.0, 1.0]
    assert chances.holm([]) == []


def test_a_ratio_by_its_interval_is_as_likely_as_the_interval_says():
    error = 0.01
    bound = Bound(math.exp(1.959964 * error), 1.0, math.exp(2 * 1.959964 * error))
    assert chances.of_bounds(bound) == pytest.approx(0.05, abs=1e-6)
    assert chances.of_bounds(Bound(1.1, reason="no interval")) is None


# Boards against each other


def test_the_odd_board_is_named_with_its_causes():
    found = variation.of(
        fleet_of(random.Random(1), slower="pi-07", factor=1.09, throttled=True, status="throttled", clock_khz=1_300_000)
    )
    odd = [each for each in found.boards if each.odd]
    assert [each.board for each in odd] == ["pi-07"]
    assert odd[0].told.startswith("board pi-07 is 9% slow, it throttles and runs at 1300 MHz where others run at 1500")
    assert odd[0].ratio.low < 1.09 < odd[0].ratio.high


def test_a_board_that_is_odd_for_no_measured_cause_says_so():
    found = variation.of(fleet_of(random.Random(1), slower="pi-03", factor=0.8))
    assert found.boards[0].told == "board pi-03 is 20% fast, and nothing measured says why"


def test_boards_that_are_alike_are_odd_in_less_than_one_of_twenty_runs():
    rng = random.Random(5)
    false = sum(any(each.odd for each in variation.of(fleet_of(rng, within=0.1)).boards) for _ in range(60))
    assert false <= 6  # 3 are expected; more than 6 has a chance of 3 % by Poisson


def test_what_boards_differ_by_is_apart_from_what_rounds_differ_by():
    rng = random.Random(2)
    found = [variation.of(fleet_of(rng, 40, 1, 4, between=0.05, within=0.02)).spreads[0] for _ in range(10)]
    assert statistics.fmean(each.between for each in found) == pytest.approx(0.05, rel=0.15)
    assert statistics.fmean(each.within for each in found) == pytest.approx(0.02, rel=0.15)
    noise = variation.of(fleet_of(rng, 40, 1, 4, within=0.05)).spreads[0]
    assert noise.between < 0.025


def test_one_round_or_one_board_says_what_it_can_not_tell():
    one_round = variation.of(fleet_of(random.Random(1), rounds=1)).spreads[0]
    assert one_round.within is None
    assert "one round" in one_round.reason
    one_board = variation.of(fleet_of(random.Random(1), boards=1))
    assert one_board.spreads[0].reason == "one board of this kind"
    assert one_board.boards == []


def test_failed_and_unmeasured_trials_are_no_evidence():
    rows = [*fleet_of(random.Random(1)), row("pi-08", 99.0, status="failed"), row("pi-09", 1.0) | {"p50_ms": None}]
    assert {each.board for each in variation.of(rows).boards} == {f"pi-{at:02}" for at in range(8)}


# Two runs


def compared(first, second, limit=0.02, force=False, plans=(kit.SHORT, kit.SHORT)):
    sides = [
        (name, kit.request(kit.members(1), plan=plan), rows)
        for name, plan, rows in zip("ab", plans, (first, second), strict=True)
    ]
    return compare.runs(*sides, limit, force)


def test_a_slower_candidate_is_found_among_many_and_ends_in_a_gate():
    rng = random.Random(3)
    first, second = fleet_of(rng, cells=6), fleet_of(rng, cells=6)
    second = [{**each, "p50_ms": each["p50_ms"] * (1.08 if each["model"] == "m2" else 1.0)} for each in second]
    found = compared(first, second)
    assert {each.candidate: each.verdict for each in found.candidates if each.verdict != versus.SAME} == {
        "m2 none onnx": versus.REGRESSION
    }
    assert isinstance(compare.gate(found), GateError)
    assert compare.gate(compared(first, first)) is None


def test_among_many_equal_candidates_none_is_said_to_have_changed():
    rng = random.Random(4)
    alarms = 0
    for _ in range(40):
        found = compared(fleet_of(rng, 6, 12, 2), fleet_of(rng, 6, 12, 2), limit=0.0)
        alarms += any(each.verdict != versus.SAME for each in found.candidates)
    assert alarms <= 5  # 2 are expected; more than 5 has a chance of 2 % by Poisson


def test_one_board_that_has_changed_is_found_with_one_round_by_the_runs_own_intervals():
    first = fleet_of(random.Random(1), rounds=1, within=0.001)
    second = [{**each, "p50_ms": each["p50_ms"] * (1.2 if each["board"] == "pi-05" else 1)} for each in first]
    second = [{**each, "p50_low_ms": each["p50_ms"] * 0.995, "p50_high_ms": each["p50_ms"] * 1.005} for each in second]
    changed = [each for each in compared(first, second).boards if each.verdict == versus.REGRESSION]
    assert {each.board for each in changed} == {"pi-05"}
    assert all(each.p_holm >= each.p for each in changed)


def test_what_can_not_be_compared_is_refused_or_left_out():
    rows = fleet_of(random.Random(1))
    with pytest.raises(UsageError, match="not comparable: plan"):
        compared(rows, rows, plans=(kit.SHORT, kit.short(5.0)))
    assert compared(rows, rows, force=True, plans=(kit.SHORT, kit.short(5.0))).differs
    with pytest.raises(UsageError, match="share no board"):
        compared(rows, [{**each, "board": f"x{each['board']}"} for each in rows])
    with pytest.raises(UsageError, match="emulated"):
        compared(rows, [{**each, "emulated": "qemu"} for each in rows])
    throttled = [{**each, "status": "throttled"} if each["board"] == "pi-00" else each for each in rows]
    assert compared(rows, throttled).left_out == 9


# Tables


@pytest.fixture
def measured(monkeypatch):
    kit.infect(monkeypatch, {"b00002": "down"})
    return kit.run(kit.request(kit.members(4), recipes=("none", "fp16"), rounds=2)).document["run"]


def test_a_run_becomes_tables_with_one_row_for_each_trial(measured, tmp_path):
    _fleet_analysis.export(measured, tmp_path / "out", quiet=True)
    with (tmp_path / "out" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    assert {each["board"] for each in rows if each["status"] == "unreachable"} == {"b00002"}
    assert all((each["p50_ms"] == "") == (each["board"] == "b00002") for each in rows)
    parquet = pytest.importorskip("pyarrow.parquet")
    found = parquet.read_table(tmp_path / "out" / "trials.parquet")
    assert found.num_rows == 16
    kinds = {field.name: str(field.type) for field in found.schema}
    assert (kinds["power_w"], kinds["p50_ms"], kinds["round"], kinds["throttled"], kinds["board"]) == (
        "double", "double", "int64", "bool", "string"
    )  # fmt: skip
    assert found.column("board").to_pylist() == [each["board"] for each in rows]


def test_an_unwritable_folder_is_told(measured, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't be written"):
        _fleet_analysis.export(measured, tmp_path / "file", quiet=True)


def test_a_real_run_is_compared_with_itself_and_shown(measured, capsys):
    _fleet_analysis.compare(measured, measured, 0.02, force=False, as_json=True, quiet=False)
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "edgepipe.fleet-comparison/1"
    assert {each["ratio"]["value"] for each in found["candidates"]} == {1.0}
    assert found["left_out"] == sum(row["status"] != "ok" for row in _fleet_analysis.load(measured)[2])
    _fleet_analysis.compare(measured, measured, 0.02, force=False, as_json=False, quiet=False)
    assert "show no difference" in capsys.readouterr().out


def test_the_report_shows_boards_apart_from_rounds(measured, capsys):
    name, request = fleet.find(measured)
    found = variation.of(table.rows(name, request, fleet.reports(name, request)))
    _fleet_analysis.show_variation(found)
    assert "between boards" in capsys.readouterr().out
    assert Path(name).name == measured


def test_the_page_begins_with_the_boards_and_runs_nothing_they_have_said(measured, tmp_path):
    name, request = fleet.find(measured)
    found = fleet.reports(name, request)
    odd = variation.Odd("<b>7", "pi", Bound(1.1, 1.05, 1.15), 0.001, 0.01, odd=True, causes=["it is <i>hot"])
    boards = variation.of(table.rows(name, request, found))
    text = section.section(replace(boards, boards=[odd]))
    assert "board &lt;b&gt;7 is 10% slow, it it is &lt;i&gt;hot [1.050, 1.150] of the others" in text
    assert "No board stands out" in section.section(replace(boards, boards=[]))
    assert section.section(variation.Variation([], [])) == ""
    page = tmp_path / "report.html"
    outcomes.report(found, str(page), as_json=False, quiet=True, first=text)
    assert page.read_text().index("Boards against each other") < page.read_text().index("null")
