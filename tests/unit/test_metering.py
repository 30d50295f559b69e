"""A meter of the host read while a board measures: clocks, a known truth, and plugs that go away."""

import hashlib
import json
from dataclasses import replace

import pytest

from edgepipe import bench, board, energy, measurement, metering, targets
from edgepipe.agent.meters import Meter as Found
from edgepipe.errors import LinkError, UsageError
from edgepipe.metering import Offset, Watch, offset
from edgepipe.meters import replay
from edgepipe.progress import Silent
from edgepipe.schema import Artifact, FileRef, Manifest, Plan, Power, Preprocessing, RawRun, RunOptions, TensorSpec
from tests.unit import meter_servers as servers
from tests.unit import power_kit as kit

PLAN = Plan(
    processes=2, min_seconds=2.0, min_samples=20, warmup_seconds=0.1, warmup_cap_seconds=0.5, deadline_seconds=30,
    idle_seconds=1.5,
)  # fmt: skip


def test_the_shortest_answer_tells_the_offset():
    """A board whose clock is 500 s ahead, over a link that is slow one way and by chance quick."""
    now, ways = [100.0], iter([0.4, 0.3, 0.01, 0.3, 0.5, 0.2, 0.3, 0.4])

    def ask():
        now[0] += next(ways)
        said = now[0] + 500
        now[0] += 0.01
        return said

    found = offset(ask, lambda: now[0])
    assert found.seconds == pytest.approx(500, abs=1e-9) and found.error == pytest.approx(0.01)


def test_readings_are_put_on_the_boards_clock():
    watch = Watch(targets.Meter(name="replay"))
    watch._power = Power(source="replay", rail="recording", boundary="board")
    for at in (1000.0, 1000.5, 1001.0):
        watch._trace.add(metering.power.Reading(at, 4.0))
    raw = replace(kit.run(), began=1500.2)
    placed = watch.into(raw, Offset(500.0, 0.01), Offset(500.1, 0.02))
    assert placed.power_samples.at == pytest.approx([-0.15, 0.35, 0.85])
    assert placed.power.clock_error_s == pytest.approx(0.02 + 0.05) and placed.power.source == "replay"


def release():
    """A release of the null runtime whose call takes 5 ms."""
    content = json.dumps({"outputs": [[10]], "sleep_s": 0.005, "note": "x"}).encode()
    sha = hashlib.sha256(content).hexdigest()
    artifact = Artifact(
        "null", "model.json", len(content), 0, sha, [FileRef("model.json", sha, len(content))],
        [TensorSpec("x", [-1, 4])], [TensorSpec("y", [-1, 10])], Preprocessing(),
    )  # fmt: skip
    return Manifest(name="m", artifact=artifact, runtime="null"), content


def measured(meter, monkeypatch, tmp_path, plan=PLAN):
    """Measure on this machine with a meter of the host; returns the measurement and its raw run."""
    monkeypatch.setenv("EDGEPIPE_HOME", str(tmp_path / "home"))
    target = replace(targets.load("local"), meter=meter, root=str(tmp_path / "board"))
    manifest, content = release()
    with board.connect(target, "me@here", Silent()) as client:
        client.push([(content, manifest.artifact.sha256)])
        result = bench.measure(client, manifest, plan, RunOptions(), None, Silent())
    return result, measurement.read_raw(result.raw)


def test_a_recording_with_a_known_truth(monkeypatch, tmp_path):
    """Power rises by half a watt a second: so the mean tells both the figure and the clock."""
    rows = "".join(f"{i / 50:.2f},{2 + i / 100:.4f}\n" for i in range(50 * 60))
    (tmp_path / "truth.csv").write_text("seconds,watts\n" + rows)
    players = []
    own = replay._Player
    monkeypatch.setattr(replay, "_Player", lambda *args: players.append(own(*args)) or players[-1])
    meter = targets.Meter(name="replay", address=str(tmp_path / "truth.csv"), rail="supply")
    result, raw = measured(meter, monkeypatch, tmp_path)
    lead = raw.began - players[0]._began
    windows = [process.timed for process in raw.processes]
    seconds = sum(window.end - window.start for window in windows)
    truth = sum((2 + (lead + (w.start + w.end) / 2) / 2) * (w.end - w.start) for w in windows) / seconds
    rest = 2 + (lead + (raw.idle.start + raw.idle.end) / 2) / 2
    assert result.power.mean_w == pytest.approx(truth, rel=0.01)
    assert result.power.mean_w - result.power.idle_w == pytest.approx(truth - rest, rel=0.02)
    calls = sum(len(process.samples_ns) for process in raw.processes)
    assert result.energy_mj.gross == pytest.approx(truth * seconds / calls * 1e3, rel=0.01)
    assert result.energy_mj.net == pytest.approx((truth - rest) * seconds / calls * 1e3, rel=0.02)
    assert (result.power.source, result.power.rail, result.power.boundary) == ("replay", "supply", "board")
    assert result.power.clock_error_s < 0.05 and result.power.rate_hz == pytest.approx(20, rel=0.15)


def test_a_plug_that_goes_away_costs_its_figure_alone(monkeypatch, tmp_path):
    asked = []

    def answer(path, query):
        asked.append(path)
        if path == "/shelly":
            return 200, {"gen": 2}
        return (200, {"apower": 4.0 + len(asked) % 7 / 10}) if len(asked) < 25 else (500, {})

    plug = servers.Plug(answer)
    options = {"rate_hz": 20, "resolution_w": 0.05}
    result, raw = measured(targets.Meter(name="shelly", address=plug.address, options=options), monkeypatch, tmp_path)
    plug.close()
    assert result.latency_ms.p50.value and result.status != "failed"
    assert result.power.mean_w is None and "HTTP status 500" in result.power.reason
    assert result.power.resolution_w == 0.05 and raw.power_samples.at


@pytest.mark.parametrize(
    ("meter", "reason"),
    [
        (targets.Meter(name="shelly", address="127.0.0.1:1"), "shelly at 127.0.0.1:1: it can't be reached"),
        (targets.Meter(name="replay", address="/nonexistent.csv"), "No such file"),
    ],
)
def test_a_meter_that_is_not_there(meter, reason, monkeypatch, tmp_path):
    with Watch(meter) as watch:
        pass
    placed = watch.into(kit.run(), Offset(0, 0), Offset(0, 0))
    assert reason in placed.power.reason
    assert energy.conclude(placed).energy.reason == placed.power.reason


def test_a_wrong_meter_stops_before_anything_is_measured(monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="no address"), Watch(targets.Meter(name="shelly")):
        pass


def test_a_link_that_breaks_after_the_run_loses_nothing():
    class Client:
        target = replace(targets.load("local"), meter=targets.Meter(name="replay", address="/none.csv"))
        asked, plans = 0, []

        def clock(self):
            self.asked += 1
            if self.asked > metering._ASKS:
                raise LinkError("gone", "here")
            return 0.0

        def bench(self, manifest, plan, *_) -> RawRun:
            self.plans.append(plan)
            return kit.run()

    raw = bench._timed(Client(), release()[0], PLAN, RunOptions(), None, lambda *_: None)
    assert "No such file" in raw.power.reason and len(raw.processes) == 3
    assert Client.plans[0].idle_seconds == 0, "nobody would read the power of a board at rest"


def test_the_meter_is_closed_and_its_thread_ends(monkeypatch):
    closed = []
    found = Found("replay", "x", "board", lambda: 4.0, 100.0, close=lambda: closed.append(1))
    monkeypatch.setattr(replay, "find", lambda _: found)
    with Watch(targets.Meter(name="replay")) as watch:
        assert watch._thread.is_alive()
    assert closed == [1] and not watch._thread.is_alive()


def written(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "targets").mkdir(exist_ok=True)
    (tmp_path / "targets" / "mine.toml").write_text('like = "rpi4"\nhost = "pi@pi"\n' + text)
    return targets.load("mine").meter


def test_a_target_may_have_a_meter_of_the_host(tmp_path, monkeypatch):
    text = '[meter]\nname = "shelly"\naddress = "192.168.1.50"\noptions = { channel = 1, password_env = "PLUG" }'
    meter = written(tmp_path, monkeypatch, text)
    assert meter.on_host and meter.options == {"channel": 1, "password_env": "PLUG"}
    assert not written(tmp_path, monkeypatch, '[meter]\nname = "hwmon"\nrail = "1-0040"').on_host
    assert not written(tmp_path, monkeypatch, "").on_host


@pytest.mark.parametrize(
    ("text", "error", "fix"),
    [
        ('name = "shely"', "no such meter: shely", "shelly"),
        (
            'name = "shelly"\naddress = "x"\noptions = { chanel = 1 }',
            "no such option of meter shelly: chanel",
            "channel",
        ),
        (
            'name = "shelly"\naddress = "x"\noptions = { password = "x" }',
            "a password in a target's file",
            "password_env",
        ),
        ('name = "hwmon"\naddress = "x"', "hwmon is read on the board", "remove"),
        ('name = "shelly"\noptions = { rate_hz = 0 }', "rate_hz must be a number above 0", "correct"),
        ('name = "shelly"\noptions = { boundary = "moon" }', "no such boundary: moon", "board"),
        ('kind = "shelly"', "unknown key 'kind'", "known here"),
    ],
)
def test_a_meter_with_a_mistake(tmp_path, monkeypatch, text, error, fix):
    with pytest.raises(UsageError, match=error) as caught:
        written(tmp_path, monkeypatch, "[meter]\n" + text)
    assert fix in caught.value.fix
