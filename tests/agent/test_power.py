"""Power read by the agent while it measures: the zipapp over pipes, on a built tree whose sensor moves."""

import os
import random
import threading
import time

import pytest

from edgepipe import energy, measurement
from edgepipe.agent import power
from edgepipe.codec import from_dict
from edgepipe.schema import Plan, RawRun, RunOptions
from tests.agent import boards_kit as kit

PLAN = Plan(
    processes=2, min_seconds=1.2, min_samples=20, warmup_seconds=0.1, warmup_cap_seconds=0.5, deadline_seconds=30,
    idle_seconds=0.8,
)  # fmt: skip


class Load(threading.Thread):
    """Writes a Jetson's current: 0.4 A, with noise."""

    def __init__(self, tree):
        super().__init__(daemon=True)
        self.tree, self.on, self.random = tree, True, random.Random(1)
        self.says = str

    def run(self):
        while self.on:
            self.tree.write(f"{self.tree.hwmon}/curr1_input", self.says(int(self.random.gauss(400, 12))))
            time.sleep(0.02)

    def end(self):
        self.on = False
        self.join()


@pytest.fixture
def load(tmp_path):
    thread = Load(kit.jetson(tmp_path / "board"))
    thread.start()
    yield thread
    thread.end()


def measured(agent, tools, plan=PLAN, **more):
    manifest, content = tools.null(sleep=0.005)
    agent.push(content)
    return from_dict(RawRun, agent.bench(manifest, plan, **more))


def once_measuring(agent, tools, act):
    """Act as soon as the agent says that it measures."""

    def wait():
        assert tools.eventually(lambda: any(event["phase"] != "idle" for event in agent.events), 60)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_readings_before_and_during_the_run_are_kept(start, tools, load):
    agent = start(sysfs_root=load.tree)
    raw = measured(agent, tools)
    assert raw.power.source == "ina3221" and raw.power.rail == "VDD_IN" and raw.power.boundary == "board"
    assert raw.power.mean_w is None and not raw.power.reason
    assert raw.idle.start >= 1.0 and raw.idle.end - raw.idle.start == pytest.approx(0.8, abs=0.3)
    windows = [process.timed for process in raw.processes]
    assert windows[0].start > raw.idle.end and windows[1].start > windows[0].end
    for process in raw.processes:
        timed = process.timed.end - process.timed.start
        assert sum(process.samples_ns) / 1e9 == pytest.approx(timed, rel=0.05)
    at = raw.power_samples.at
    assert at == sorted(at) and at[0] < raw.idle.start and at[-1] > windows[1].end - 0.5
    assert all(1.5 < watts < 2.6 for watts in raw.power_samples.watts) and not raw.power_samples.faults
    outcome = energy.conclude(raw)
    assert outcome.power.mean_w == pytest.approx(5.072 * 0.4, rel=0.05)
    assert outcome.energy.gross == pytest.approx(outcome.power.mean_w * 5, rel=0.3)
    assert any(event["phase"] == "idle" for event in agent.events)
    assert agent.children() == [] and load.is_alive()


def test_a_meter_that_vanishes_ends_nothing_but_the_figure(start, tools, load):
    agent = start(sysfs_root=load.tree)
    file = load.tree.root / load.tree.hwmon / "in1_input"
    gone = once_measuring(agent, tools, file.unlink)
    raw = measured(agent, tools)
    gone.join()
    outcome = energy.conclude(raw)
    assert len(raw.processes) == 2 and not raw.failures
    assert outcome.power.mean_w is None and "readings failed" in outcome.power.reason
    assert "No such file" in outcome.power.reason and outcome.energy.reason == outcome.power.reason


LIES = {
    "no number": (lambda ma: "nan", "talks nonsense"),
    "less than nothing": (lambda ma: str(-ma), "no board gives power back"),
    "another unit": (lambda ma: str(1000 * ma), "too much for a whole board: a wrong unit"),
    # A reading or two of them, far from the next: several side by side would be a load that comes and goes.
    "an impossible jump": (lambda ma: str(30 * ma if time.monotonic() % 0.5 < 0.06 else ma), "an impossible jump"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_meter_that_lies_from_some_moment_on_costs_its_figure_alone(name, start, tools, load):
    lie, reason = LIES[name]
    agent = start(sysfs_root=load.tree)
    told = once_measuring(agent, tools, lambda: setattr(load, "says", lie))
    raw = measured(agent, tools)
    told.join()
    found = measurement.conclude(raw, PLAN, RunOptions())
    assert found.status in {"ok", "unstable"} and found.latency_ms.p50.value > 5
    assert found.power.mean_w is None and reason in found.power.reason and found.power.source == "ina3221"
    assert found.energy_mj.gross is None and found.energy_mj.reason == found.power.reason


def test_a_meter_that_hangs_holds_nobody_up(start, tools, load):
    """A read that never comes back, as of an I2C bus that is stuck."""
    agent = start(sysfs_root=load.tree)
    file = load.tree.root / load.tree.hwmon / "in1_input"

    def hang():
        os.mkfifo(file.with_name("fifo"))
        file.with_name("fifo").rename(file)

    stuck = once_measuring(agent, tools, hang)
    raw = measured(agent, tools)
    stuck.join()
    outcome = energy.conclude(raw)
    assert outcome.power.mean_w is None and "silent" in outcome.power.reason
    assert tools.eventually(lambda: agent.children() == [])


def test_a_meter_that_hangs_from_the_start(start, tools, load, monkeypatch):
    (load.tree.root / load.tree.hwmon / "in1_input").unlink()
    os.mkfifo(load.tree.root / load.tree.hwmon / "in1_input")
    monkeypatch.setattr(power, "_FIND_SECONDS", 0.3)
    with power.Watch("", "", str(load.tree)) as watch:
        assert watch.rest(5.0, 0.0, lambda: False, lambda *_: None) is None
    assert watch.power.reason == "the meter gave no answer in time" and watch.samples(0.0).at == []


def test_a_board_without_a_meter_is_not_kept_waiting(start, tools, tmp_path):
    raw = measured(start(sysfs_root=kit.pi(tmp_path / "pi", "Raspberry Pi 4 Model B Rev 1.4")), tools)
    assert raw.power.reason == "no meter: a Raspberry Pi 4 has no current sensor"
    assert raw.idle is None and raw.power_samples.at == []


def test_a_named_meter_is_not_replaced_by_another(start, tools, load):
    kit.rapl(load.tree.root)
    agent = start(sysfs_root=load.tree)
    assert measured(agent, tools, meter="rapl").power.source == "rapl"
    assert measured(agent, tools, meter="hwmon").power.reason.startswith("no INA219")
    assert measured(agent, tools, meter="nothing").power.reason.startswith("no such power meter")
    raw = measured(agent, tools, meter=power.ON_HOST)
    assert raw.idle is not None and raw.power_samples.at == [] and raw.power.reason == "the host reads the meter"


def test_the_host_may_leave_while_the_board_rests(start, tools, load):
    agent = start(sysfs_root=load.tree)
    manifest, content = tools.null()
    agent.push(content)
    agent.send("bench", manifest=manifest, plan=Plan(idle_seconds=60.0), options={})
    assert tools.eventually(agent.children)
    children = agent.children()
    assert agent.end() == 1
    assert tools.eventually(lambda: not any(tools.alive(pid) for pid in children))


def test_the_boards_clock_can_be_asked(agent):
    before = time.monotonic()
    board = agent.good("clock")["monotonic"]
    assert before <= board <= time.monotonic()
