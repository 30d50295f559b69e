"""Sweeps and comparisons through the host's half, on the local board, with the null runtime."""

import json
from dataclasses import replace

import pytest

from edgepipe import bench, deploy, sweep, versus
from edgepipe.errors import BoardError
from edgepipe.journal import Journal
from edgepipe.progress import Silent
from edgepipe.schema import Plan, RunOptions

SHORT = Plan(
    "quick", processes=1, min_seconds=0.4, min_samples=20, warmup_seconds=0.1, warmup_cap_seconds=0.5,
    deadline_seconds=30,
)  # fmt: skip


@pytest.fixture
def request_for(tmp_path, monkeypatch, tools):
    monkeypatch.setenv("EDGEPIPE_HOME", str(tmp_path / "home"))

    def make(sleep, **more):
        manifest, content = tools.null(sleep=sleep, name=f"m{sleep}")
        folder = tmp_path / f"file-{sleep}"
        folder.mkdir(exist_ok=True)
        (folder / "model.json").write_bytes(content)
        artifact = replace(manifest.artifact, path=str(folder / "model.json"), model=f"m{sleep}")
        monkeypatch.setattr(sweep.convert, "artifact_of", lambda path: known[path])
        known[artifact.path] = artifact
        return deploy.Request(artifact.path, "local", plan=SHORT, **more)

    known = {}
    return make


def test_a_sweep_is_one_report_for_each_combination(request_for):
    runs = [RunOptions(threads, batch) for threads in (1, 2) for batch in (1, 4)]
    outcome = sweep.run(request_for(0.004), runs, Silent())
    assert outcome.error is None
    seen = [(each.measurement.threads, each.measurement.batch) for each in outcome.reports]
    assert seen == [(1, 1), (1, 4), (2, 1), (2, 4)]
    assert len({each.id for each in outcome.reports}) == len(Journal().all()) == 4
    one, four = (outcome.reports[at].measurement.throughput_per_s for at in (0, 1))
    assert 3 < four / one < 5


def test_a_combination_that_fails_stays_with_its_reason_and_the_others_are_measured(request_for, monkeypatch):
    own = sweep.measure

    def measure(found, request, client, progress):
        if request.options.threads == 2:
            found.report = replace(found.report, measurement=bench.measurement.failed(
                "failed", "out of memory", request.plan, request.options))  # fmt: skip
            raise BoardError("out of memory")
        own(found, request, client, progress)

    monkeypatch.setattr(sweep, "measure", measure)
    outcome = sweep.run(request_for(0.004), [RunOptions(1), RunOptions(2), RunOptions(3)], Silent())
    assert [each.measurement.threads for each in outcome.reports] == [1, 2, 3]
    assert [each.measurement.status == "failed" for each in outcome.reports] == [False, True, False]
    assert isinstance(outcome.error, BoardError)


def test_a_and_b_run_in_turns_and_the_slower_one_is_found(request_for):
    a, b = request_for(0.004), request_for(0.005)
    outcome, found = sweep.in_turns(a, b.model, versus.MAX_SLOWDOWN, Silent())
    assert found.interleaved and found.rounds == sweep.ROUNDS["quick"] == outcome.reports[0].measurement.processes
    assert found.ratios["p50"].value == pytest.approx(1.25, rel=0.1)
    assert found.verdict == versus.REGRESSION and outcome.error.exit_code == 6
    assert [each.id for each in outcome.reports] == [found.a, found.b]
    (kept,) = Journal().records("comparison")
    assert kept.value["verdict"] == versus.REGRESSION
    json.dumps(kept.value)


def test_a_side_that_cannot_run_is_a_failed_record_and_no_comparison(request_for):
    a = request_for(0.004)
    b = request_for("x")
    outcome, found = sweep.in_turns(a, b.model, versus.MAX_SLOWDOWN, Silent())
    assert found is None and isinstance(outcome.error, BoardError)
    assert [each.measurement.status for each in outcome.reports] == ["failed", "failed"]
