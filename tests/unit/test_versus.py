"""Comparisons of made-up runs: what is comparable, what the ratio's interval holds, what is a regression."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from edgepipe import codec, measurement, ratios, versus
from edgepipe.errors import UsageError
from edgepipe.journal import Journal
from edgepipe.record import Report
from edgepipe.schema import RunOptions
from tests.unit import report_samples as made


def report(slower: float = 1.0, seed: int = 1, **changes) -> Report:
    raw = made.raw(made.steady(random.Random(seed), slower))
    run = measurement.conclude(raw, made.PLAN, RunOptions(**changes))
    return replace(made.report(run=run), id=f"20261122-160005-{seed:08x}")


def compared(a: Report, b: Report, force: bool = False):
    (found,) = versus.pairs([a], [b], force, versus.MAX_SLOWDOWN)
    return found


def test_the_same_run_twice_shows_no_regression_and_a_slower_one_does():
    same = compared(report(seed=1), report(seed=2))
    assert same.verdict != versus.REGRESSION and versus.gate([same]) is None
    assert same.ratios["p50"].low < 1 < same.ratios["p50"].high
    slow = compared(report(seed=1), report(1.08, seed=2))
    assert slow.verdict == versus.REGRESSION and not slow.interleaved
    error = versus.gate([same, slow])
    assert error is not None and error.exit_code == 6 and "1.08" in error.what
    assert compared(report(1.2), report(1.0, seed=2)).verdict == versus.FASTER


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"runtime_version": "1.30.0"}, "runtime"),
        ({"name": "another"}, "board"),
        ({"cpu": "Cortex-A76", "model": ""}, "machine"),
        ({"kernel": "6.12"}, "kernel"),
        ({"governor": "performance"}, "governor"),
        ({"clocks": {"max_khz": [2_400_000]}}, "highest clock"),
    ],
)
def test_another_board_or_state_is_refused_by_name_and_shown_with_force(change, word):
    a, b = report(), report(seed=2)
    b = replace(b, board=replace(b.board, **change))
    with pytest.raises(UsageError, match=word):
        compared(a, b)
    found = compared(a, b, force=True)
    assert any(each.what.startswith(word) for each in found.differs)


def test_other_options_shapes_and_statuses_are_refused():
    a = report()
    with pytest.raises(UsageError, match="threads: 1 / 2"):
        compared(a, report(threads=2))
    with pytest.raises(UsageError, match="cores"):
        compared(a, report(cpus=[1]))
    other = replace(a, artifact=replace(a.artifact, inputs=[replace(a.artifact.inputs[0], shape=[1, 3, 224, 224])]))
    with pytest.raises(UsageError, match="input shapes"):
        compared(a, other)
    with pytest.raises(UsageError, match="status: ok / throttled"):
        compared(a, replace(a, measurement=replace(a.measurement, status="throttled")))
    failed = replace(a, measurement=measurement.failed("failed", "it crashed", made.PLAN, RunOptions()))
    assert compared(a, failed, force=True).verdict == versus.UNKNOWN


def test_an_emulated_board_is_never_compared_with_a_real_one():
    a = report()
    b = replace(a, board=replace(a.board, emulated="qemu"))
    with pytest.raises(UsageError, match="emulated"):
        compared(a, b, force=True)


def test_runs_come_from_the_journal_and_from_files(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPIPE_HOME", str(tmp_path / "home"))
    kept = Journal().append_report(report())
    assert versus.load(kept.id)[0].id == kept.id
    document = tmp_path / "out.json"
    document.write_text(json.dumps({"schema": "edgepipe.deploy/1", "reports": [codec.to_dict(kept)] * 2}))
    assert [each.id for each in versus.load(str(document))] == [kept.id] * 2
    with pytest.raises(UsageError, match="1 reports against 2"):
        versus.pairs([kept], versus.load(str(document)), False, 0.02)
    for text in ("", "{", '{"reports": []}', '{"reports": 5}'):
        document.write_text(text)
        with pytest.raises(UsageError):
            versus.load(str(document))
    with pytest.raises(UsageError, match="no such run"):
        versus.load("2099")


def turns(
    rng: random.Random, count: int, slower: float, calls: int = 150
) -> tuple[list[list[float]], list[list[float]]]:
    """Turns that share a level of the machine, and sides that scatter by 1 % from process to process."""
    sides: tuple[list[list[float]], list[list[float]]] = ([], [])
    for _ in range(count):
        shared = rng.gauss(1, 0.05)
        for side, factor in zip(sides, (1.0, slower), strict=True):
            level = 1e6 * shared * factor * rng.gauss(1, 0.01)
            side.append([level * (1 + abs(rng.gauss(0, 0.02))) for _ in range(calls)])
    return sides


def test_the_bootstrap_over_turns_holds_the_true_ratio():
    rng = random.Random(5)
    found = [ratios.ratio_of_turns(*turns(rng, 8, 1.05, 60), 0.5, tries=300) for _ in range(150)]
    held = sum(each.low <= 1.05 <= each.high for each in found)
    assert held >= 135, held
    assert sum(each.low > 1 for each in found) >= 140


def test_too_few_turns_or_samples_have_no_interval():
    rng = random.Random(6)
    few = ratios.ratio_of_turns(*turns(rng, 3, 1.0), 0.5)
    assert few.value is not None and few.low is None and "turns" in few.reason
    assert ratios.ratio_of_turns(*turns(rng, 8, 1.0, 10), 0.99).value is None
