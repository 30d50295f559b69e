"""What is set for a run is put back, whatever becomes of the agent; the board cools before; cores are kept to."""

import json
import os
import random
import signal
import threading
import time
from dataclasses import replace

import pytest

from edgepipe import measurement
from edgepipe.agent import lock, tuning
from edgepipe.codec import from_dict
from edgepipe.schema import Plan, RawRun, RunOptions
from tests.guarantees.figure import report, scale

CPU = "sys/devices/system/cpu"
BEFORE = {0: "ondemand", 1: "schedutil"}
RUN = Plan(
    processes=1, min_seconds=0.3, min_samples=5, warmup_seconds=0.1, warmup_cap_seconds=0.3, deadline_seconds=30,
    governor="performance",
)  # fmt: skip
KILLS = scale(6, 100)


def board(root):
    for core, governor in BEFORE.items():
        folder = root / CPU / f"cpu{core}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(f"{governor}\n")
        (folder / "scaling_available_governors").write_text("ondemand performance schedutil\n")
    (root / "proc/sys/kernel/random").mkdir(parents=True)
    (root / "proc/sys/kernel/random/boot_id").write_text("first\n")
    return root


def governors(root):
    return {core: (root / CPU / f"cpu{core}" / "cpufreq/scaling_governor").read_text().strip() for core in BEFORE}


@pytest.fixture
def tree(tmp_path):
    return board(tmp_path / "tree")


def pushed(agent, tools, sleep=0.005):
    manifest, content = tools.null(sleep=sleep)
    agent.push(content)
    return manifest


def test_the_governor_is_set_for_the_run_and_put_back(start, tools, tree):
    agent = start(sysfs_root=tree)
    raw = from_dict(RawRun, agent.bench(pushed(agent, tools), RUN))
    assert {state.governor for state in raw.states} == {"performance"}
    assert governors(tree) == BEFORE
    assert raw.cautions == []
    assert not (agent.root / "tuning.json").exists()
    run = measurement.conclude(raw, RUN, RunOptions())
    assert run.governor == "performance" and run.clocks["governors"] == ["performance"]


def test_an_unknown_governor_or_none_at_all_is_refused_before_anything_runs(start, tools, tree, tmp_path):
    agent = start(sysfs_root=tree)
    error = agent.bad("bench", manifest=pushed(agent, tools), plan=replace(RUN, governor="turbo"), options=RunOptions())
    assert error["kind"] == "UsageError" and "ondemand, performance" in error["fix"]
    bare = start(root=tmp_path / "bare", sysfs_root=tmp_path / "nothing")
    error = bare.bad("bench", manifest=pushed(bare, tools), plan=RUN, options=RunOptions())
    assert error["kind"] == "BoardError" and "no cpufreq" in error["what"]


def test_a_governor_that_takes_nothing_is_an_error_and_all_is_as_it_was(start, tools, tree):
    # A folder in its place: nobody can write it, not even root.
    path = tree / CPU / "cpu1/cpufreq/scaling_governor"
    path.unlink()
    path.mkdir()
    agent = start(sysfs_root=tree)
    error = agent.bad("bench", manifest=pushed(agent, tools), plan=RUN, options=RunOptions())
    assert error["kind"] == "BoardError" and "can't be set" in error["what"] and "ansible" in error["fix"]
    assert (tree / CPU / "cpu0/cpufreq/scaling_governor").read_text().strip() == BEFORE[0]
    assert agent.good("status")["lock"] is None


def test_a_run_that_fails_puts_back_too(start, tools, tree):
    agent = start(sysfs_root=tree)
    manifest = pushed(agent, tools)
    agent.bad("bench", manifest=manifest, plan=RUN, options=RunOptions(cpus=[4000]))
    assert governors(tree) == BEFORE


@pytest.mark.guarantee
def test_settings_are_put_back_however_the_agent_ends(start, tools, tree, tmp_path):
    source, restored = random.Random(20), 0
    for number in range(KILLS):
        agent = start(root=tmp_path / f"root{number}", sysfs_root=tree)
        manifest = pushed(agent, tools)
        agent.send("bench", manifest=manifest, plan=replace(RUN, min_seconds=20), options=RunOptions())
        time.sleep(source.uniform(0.05, 1.2))
        kind = number % 3
        if kind == 0:
            agent.process.stdin.close()  # the link went away
        elif kind == 1:
            os.kill(agent.process.pid, signal.SIGKILL)
        else:  # the agent and all it started, the keeper included
            for pid in [agent.process.pid, *agent.children()]:
                if tools.alive(pid):
                    os.kill(pid, signal.SIGKILL)
            agent.process.wait()
            again = start(root=tmp_path / f"root{number}", sysfs_root=tree)
            again.good("status")
        restored += tools.eventually(lambda: governors(tree) == BEFORE, 10)
    report(20, f"settings restored after {restored} of {KILLS} kills during tuning", ok=restored == KILLS)


def test_what_was_noted_before_a_restart_of_the_board_is_forgotten(tree, tmp_path):
    root = tmp_path / "agent"
    root.mkdir()
    note = {"boot": "another", "governors": {"cpu0": "powersave"}}
    (root / "tuning.json").write_text(json.dumps(note))
    assert tuning.restore(str(root), str(tree)) == []
    assert governors(tree) == BEFORE and not (root / "tuning.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"boot": 1, "governors": {"../../x": "a", "cpu0": "a/../b"}}'])
def test_a_damaged_note_sets_nothing(tree, tmp_path, text):
    root = tmp_path / "agent"
    root.mkdir()
    (root / "tuning.json").write_text(text)
    assert tuning.restore(str(root), str(tree)) == []
    assert governors(tree) == BEFORE and not (root / "tuning.json").exists()


def test_nobody_puts_back_what_another_agent_has_set(tree, tmp_path):
    root = tmp_path / "agent"
    root.mkdir()
    (root / "tuning.json").write_text(json.dumps({"boot": "first", "governors": {"cpu0": "performance"}}))
    with lock.Lock(str(root / "lock"), "me"):
        tuning.recover(str(root), str(tree))
        assert governors(tree) == BEFORE
    tuning.recover(str(root), str(tree))
    assert governors(tree)[0] == "performance"


def test_the_board_cools_before_the_run_or_the_record_says_that_it_did_not(start, tools, tmp_path):
    zone = tmp_path / "tree/sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("cpu-thermal\n")
    (zone / "temp").write_text("71000\n")
    agent = start(sysfs_root=tmp_path / "tree")
    manifest = pushed(agent, tools)
    plan = replace(RUN, governor="", cool_to_c=50.0, cool_seconds=0.6)
    hot = measurement.conclude(from_dict(RawRun, agent.bench(manifest, plan)), plan, RunOptions())
    assert [warning.code for warning in hot.warnings].count("not_cool") == 1
    assert hot.thermal.cooling.after_c == 71 and hot.thermal.cooling.seconds >= 0.6

    def fan():
        time.sleep(1.0)
        (zone / "temp").write_text("49000\n")

    thread = threading.Thread(target=fan)
    thread.start()
    plan = replace(plan, cool_seconds=60.0)
    cool = measurement.conclude(from_dict(RawRun, agent.bench(manifest, plan)), plan, RunOptions())
    thread.join()
    assert (cool.thermal.cooling.before_c, cool.thermal.cooling.after_c) == (71, 49)
    assert "not_cool" not in [warning.code for warning in cool.warnings]
    assert any("cool from 71 to 50" in event["phase"] for event in agent.events)


def test_without_a_sensor_nobody_waits_to_cool(start, tools, tmp_path):
    agent = start(sysfs_root=tmp_path / "nothing")
    plan = replace(RUN, governor="", cool_to_c=50.0)
    run = measurement.conclude(from_dict(RawRun, agent.bench(pushed(agent, tools), plan)), plan, RunOptions())
    assert "no temperature sensor" in next(w.text for w in run.warnings if w.code == "not_cool")


def test_the_timed_process_is_kept_to_its_cores(agent, tools):
    own = sorted(os.sched_getaffinity(0))
    manifest = pushed(agent, tools)
    raw = from_dict(RawRun, agent.bench(manifest, replace(RUN, governor=""), RunOptions(cpus=own[-1:])))
    assert raw.processes[0].cpus == own[-1:]
    raw = from_dict(RawRun, agent.bench(manifest, replace(RUN, governor="")))
    assert raw.processes[0].cpus == own
    error = agent.bad("bench", manifest=manifest, plan=replace(RUN, governor=""), options=RunOptions(cpus=[4000]))
    assert error["kind"] == "UsageError" and "4000" in error["what"]


def test_a_sustained_run_keeps_samples_of_every_second(agent, tools):
    plan = replace(RUN, governor="", sustain_seconds=3.0, min_seconds=3.0)
    raw = from_dict(RawRun, agent.bench(pushed(agent, tools, 0.002), plan))
    (process,) = raw.processes
    assert len(process.kept) == 3 and sum(process.kept) == len(process.samples_ns)
    assert all(count > 50 for count in process.kept)
    run = measurement.conclude(raw, plan, RunOptions())
    assert run.sustained.seconds == 3 and run.sustained.burst_ms.value == pytest.approx(2.1, rel=0.3)
