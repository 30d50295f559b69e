"""MLPerf's scenarios: what is asked when, what counts, and what it comes to by LoadGen's rules."""

import time
from dataclasses import replace

import pytest

from edgepipe import bench, measurement, scenarios
from edgepipe.agent import scenarios as agent_side
from edgepipe.codec import from_dict
from edgepipe.errors import UsageError
from edgepipe.schema import Plan, RawRun, RunOptions

SHORT = Plan("quick", processes=1, min_seconds=0.5, min_samples=20, warmup_seconds=0.05, deadline_seconds=30)
FAR = {"stop_at": 2**62, "most": 10**6}


def asked(name, **more):
    return scenarios.plan(SHORT, name, more.pop("rate", 0.0), RunOptions(**more))


def concluded(agent, tools, plan, options=None, sleep=0.005):
    options = options or RunOptions()
    manifest, content = tools.null(sleep=sleep)
    agent.push(content)
    raw = from_dict(RawRun, agent.bench(manifest, plan, options))
    return scenarios.stated(measurement.conclude(raw, plan, options), raw, plan)


def test_a_query_of_multi_stream_is_eight_samples(agent, tools):
    found = concluded(agent, tools, replace(asked("multi-stream"), min_samples=20))
    assert found.scenario.samples_per_query == 8 and found.scenario.queries >= 20
    assert found.latency_ms.p50.value > 8 * 5 and found.throughput_per_s < 200
    assert found.scenario.value is None and "662 are the least" in found.scenario.reason
    assert agent_side.calls_of_query(4) == 2
    with pytest.raises(UsageError, match="no whole number of batches of 3"):
        asked("multi-stream", batch=3)


def test_offline_is_one_query_of_all_and_its_figure_is_a_throughput(agent, tools):
    found = concluded(agent, tools, asked("offline", batch=4), RunOptions(batch=4))
    one = found.scenario
    assert one.queries == 1 and one.samples_per_query == found.samples * 4
    assert one.unit == "samples/s" and one.value == found.throughput_per_s
    assert 100 < one.value < 4 / 0.005


def test_the_time_of_a_servers_query_counts_from_when_it_came():
    """Calls of 10 ms that come 50 times a second wait for each other now and then; some find nobody before them."""
    plan = Plan(min_seconds=2.0, min_samples=1, scenario="server", rate=50.0)
    found = agent_side.run(lambda: time.sleep(0.01), plan, 1, **FAR)
    assert 60 <= len(found.samples_ns) <= 140 and found.waiting <= 3
    ordered = sorted(found.samples_ns)
    assert 10e6 <= ordered[0] < 13e6 and ordered[-1] > 14e6
    start, end = found.timed_ns
    assert 1.8e9 < end - start < 2.3e9


def test_a_server_that_cannot_keep_up_ends_all_the_same_and_says_so(agent, tools):
    plan = replace(asked("server", rate=1000.0), min_samples=20)
    found = concluded(agent, tools, plan)
    assert found.scenario.waiting > 300 and not found.scenario.valid
    (said,) = [each for each in found.warnings if each.code == "overload"]
    assert "does not keep up with 1000 queries a second" in said.text and "--rate" in said.hint
    assert not {each.code for each in found.warnings} & {"noisy", "outliers"}


def test_a_deadline_ends_a_server():
    plan = Plan(min_seconds=60.0, min_samples=10**6, scenario="server", rate=100.0)
    found = agent_side.run(lambda: None, plan, 1, stop_at=time.perf_counter_ns() + 300_000_000, most=10**6)
    assert 5 < len(found.samples_ns) < 90


def test_the_plans_are_as_long_as_the_rules_ask():
    full = bench.plan("mlperf")
    for name, least in (("single-stream", 1024), ("multi-stream", 662), ("offline", 24_576), ("server", 662)):
        plan = scenarios.plan(full, name, 10.0 if name == "server" else 0.0, RunOptions())
        assert (plan.min_samples, plan.processes, plan.min_seconds) == (least, 1, 600.0)
    assert scenarios.plan(full, "offline", 0.0, RunOptions(batch=32)).min_samples == 768
    assert scenarios.plan(full, "", 0.0, RunOptions()) is full


@pytest.mark.parametrize(
    ("name", "rate", "says"),
    [("served", 0.0, "no such scenario"), ("server", 0.0, "needs to know"), ("", 5.0, "for a server"),
     ("offline", 5.0, "for a server")],
)  # fmt: skip
def test_what_is_no_scenario(name, rate, says):
    with pytest.raises(UsageError, match=says):
        scenarios.plan(SHORT, name, rate, RunOptions())


def test_the_agent_refuses_what_is_no_scenario():
    with pytest.raises(UsageError, match="no such scenario"):
        agent_side.run(lambda: None, Plan(scenario="all-day"), 1, **FAR)


@pytest.mark.parametrize(
    ("queries", "quantile", "discarded"),
    [(429, 0.9, 27), (64, 0.9, 0), (662, 0.99, 0)],  # as LoadGen 6.0.17 says in its summaries
)
def test_early_stopping_discards_what_loadgen_discards(queries, quantile, discarded):
    samples = list(range(queries))
    assert scenarios.early_stopping(samples, quantile) == queries - 1 - discarded
    assert scenarios.early_stopping(samples[:63], 0.9) is None
