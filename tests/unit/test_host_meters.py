"""Each meter of the host against a real server, or device, on this machine."""

import math
import threading
import time
import traceback

import pytest

from edgepipe.agent.meters import NoMeterError
from edgepipe.errors import UsageError
from edgepipe.meters import Settings, mqtt, pick, replay, scpi, shelly, tasmota
from tests.unit import meter_servers as servers

SECRET = "canary-plug-5e1d"


@pytest.fixture
def serve():
    started = []

    def begin(kind, *args, **more):
        started.append(kind(*args, **more))
        return started[-1]

    yield begin
    for server in started:
        server.close()


def settings(server, **options):
    return Settings(server.address, options)


def gen1(path, query):
    if path == "/shelly":
        return 200, {"type": "SHPLG-S", "mac": "E868E7000000", "auth": True, "fw": "x", "num_outputs": 1}
    if path == "/status":
        return 200, {"relays": [{"ison": True}], "meters": [{"power": 4.21, "is_valid": True, "total": 439237}]}
    return 404, {}


def gen2(path, query):
    if path == "/shelly":
        return 200, {"id": "shellyplugsg3-x", "mac": "x", "gen": 3, "auth_en": True}
    if path == "/rpc/Switch.GetStatus" and query == {"id": "0"}:
        return 200, {"id": 0, "output": True, "apower": 4.3, "voltage": 231.2, "current": 0.03}
    return 404, {"code": 404}


def test_a_shelly_of_the_first_generation(serve):
    meter = shelly.find(settings(serve(servers.Plug, gen1)))
    assert (meter.source, meter.rail, meter.boundary) == ("shelly", "plug, channel 0", "wall")
    assert meter.read() == 4.21 and meter.resolution_w == 0.01 and meter.rate_hz == 1


def test_a_later_shelly(serve):
    meter = shelly.find(settings(serve(servers.Plug, gen2)))
    assert meter.read() == 4.3 and meter.resolution_w == 0.1
    pm1 = serve(servers.Plug, lambda path, query: gen2(path.replace("PM1", "Switch"), query))
    assert shelly.find(settings(pm1, component="PM1")).read() == 4.3
    assert pm1.asked[-1][0] == "/rpc/PM1.GetStatus?id=0"


@pytest.mark.parametrize(("answer", "access"), [(gen1, {"basic": f"admin:{SECRET}"}), (gen2, {"digest": SECRET})])
def test_a_shelly_with_a_password(serve, answer, access, monkeypatch, tmp_path):
    plug = serve(servers.Plug, answer, **access)
    monkeypatch.setenv("PLUG_PASSWORD", SECRET)
    meter = shelly.find(settings(plug, password_env="PLUG_PASSWORD"))
    assert meter.read() == meter.read() > 4
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    file.chmod(0o600)
    assert shelly.find(settings(plug, password_file=str(file))).read() > 4
    monkeypatch.setenv("PLUG_PASSWORD", "wrong")
    for wrong in (settings(plug), settings(plug, password_env="PLUG_PASSWORD")):
        with pytest.raises(PermissionError, match="wants a password"):
            shelly.find(wrong)


def test_no_password_is_sent_in_the_clear_to_a_plug_that_wants_a_digest(serve, monkeypatch):
    monkeypatch.setenv("PLUG_PASSWORD", SECRET)
    plug = serve(servers.Plug, gen2, digest=SECRET)
    shelly.find(settings(plug, password_env="PLUG_PASSWORD"))
    assert not any(SECRET in path or "Basic" in given for path, given in plug.asked)


@pytest.mark.parametrize(
    ("path", "reply", "error"),
    [
        ("/shelly", (200, {"hello": 1}), "no Shelly"),
        ("/shelly", (200, b"<html>"), "not JSON"),
        ("/shelly", (200, b"x" * 70000), "more than 65536"),
        ("/shelly", (301, b""), "HTTP status 301"),
        ("/shelly", (500, b""), "HTTP status 500"),
        ("/status", (200, {"meters": []}), "no meters.0.power"),
        ("/status", (200, {"meters": [{"power": "4", "is_valid": True}]}), "is no number"),
        ("/status", (200, {"meters": [{"power": 0.0, "is_valid": False}]}), "not valid"),
        ("/status", (404, b""), "HTTP status 404"),
    ],
)
def test_a_plug_that_is_none(serve, path, reply, error):
    plug = serve(servers.Plug, lambda asked, query: reply if asked == path else gen1(asked, query))
    with pytest.raises((OSError, ValueError, NoMeterError), match=error):
        shelly.find(settings(plug))


def test_a_plug_that_is_gone(serve):
    plug = servers.Plug(gen1)
    meter = shelly.find(settings(plug))
    plug.close()
    with pytest.raises(OSError, match="can't be reached"):
        meter.read()


def energy(power, key="StatusSNS"):
    def answer(path, query):
        if query.get("cmnd") == ("Status 10" if key == "StatusSNS" else "Status 8"):
            body = {"ENERGY": {"Power": power, "Voltage": 230}} if key == "StatusSNS" else {"Power": power}
            return 200, {key: body}
        return 200, {"Command": "Unknown"}

    return answer


@pytest.mark.parametrize(
    ("power", "key", "watts", "step"),
    [
        (5, "StatusSNS", 5.0, 1.0),
        (4.25, "StatusSNS", 4.25, 0.01),
        ([3.5, 7.1], "StatusSNS", 3.5, 0.1),
        (6, "StatusPWR", 6.0, 1.0),
    ],
)
def test_a_tasmota_plug(serve, power, key, watts, step):
    meter = tasmota.find(settings(serve(servers.Plug, energy(power, key))))
    assert meter.read() == watts and meter.resolution_w == pytest.approx(step) and meter.boundary == "wall"
    if isinstance(power, list):
        assert tasmota.find(settings(serve(servers.Plug, energy(power)), channel=1)).read() == 7.1


def test_a_tasmota_plug_with_a_password_or_without_a_meter(serve, monkeypatch):
    def locked(path, query):
        if query.get("user") == "admin" and query.get("password") == SECRET:
            return energy(4.2)(path, query)
        return 200, {"WARNING": "Need user=<username>&password=<password>"}

    plug = serve(servers.Plug, locked)
    monkeypatch.setenv("PLUG_PASSWORD", SECRET)
    assert tasmota.find(settings(plug, password_env="PLUG_PASSWORD")).read() == 4.2
    with pytest.raises(PermissionError, match="wants a password"):
        tasmota.find(settings(plug))
    with pytest.raises(NoMeterError, match="no power meter"):
        tasmota.find(settings(serve(servers.Plug, lambda *_: (200, {"StatusSNS": {"Time": "x"}}))))


def test_no_error_shows_the_password(serve, monkeypatch):
    monkeypatch.setenv("PLUG_PASSWORD", SECRET)
    said = ""
    for status in (200, 301, 404, 500):
        plug = serve(servers.Plug, lambda *_, status=status: (status, b"nonsense"))
        for module in (tasmota, shelly):
            try:
                module.find(settings(plug, password_env="PLUG_PASSWORD"))
            except (OSError, ValueError) as error:
                said += "".join(traceback.format_exception(error))
    assert "not JSON" in said and "500" in said and SECRET not in said


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"password_env": "NOBODY_SET_THIS"}, "has no NOBODY_SET_THIS"),
        ({"password_file": "/nonexistent/secret"}, "can't be read"),
        ({"channel": "one"}, "channel is no number"),
        ({"user": 5}, "user is no text"),
    ],
)
def test_options_that_are_wrong(serve, options, error):
    with pytest.raises(UsageError, match=error):
        shelly.find(settings(serve(servers.Plug, gen1), **options))


def test_a_secret_others_can_read_and_one_in_the_address(serve, tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "secret").chmod(0o644)
    with pytest.raises(UsageError, match="others can read"):
        shelly.find(settings(serve(servers.Plug, gen1), password_file=str(tmp_path / "secret")))
    with pytest.raises(UsageError, match="user or password in the meter's address"):
        shelly.find(Settings(f"http://admin:{SECRET}@127.0.0.1"))
    with pytest.raises(UsageError, match="no address"):
        shelly.find(Settings())
    with pytest.raises(ValueError, match="no host"):
        shelly.find(Settings("file:///etc/passwd"))


@pytest.fixture
def paho():
    return pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed: the extra mqtt")


def published(serve, messages, broker=None, **options):
    """A meter on a broker that publishes these once there is a subscriber, and the broker."""
    broker = broker or serve(servers.Broker)

    def publish():
        while not broker.clients:
            time.sleep(0.01)
        for message in messages:
            broker.publish("tele/plug/SENSOR", *message)

    threading.Thread(target=publish, daemon=True).start()
    return mqtt.find(settings(broker, topic="tele/plug/SENSOR", **options)), broker


def soon(read):
    end = time.monotonic() + 5
    while (value := read()) is None and time.monotonic() < end:
        time.sleep(0.01)
    return value


def test_an_mqtt_topic(serve, paho):
    messages = [
        (b'{"ENERGY": {"Power": 1}}', True),
        (b'{"ENERGY": {"Power": 4310}}',),
        (b'{"ENERGY": {"Power": 4320}}',),
    ]
    meter, broker = published(serve, messages, field="ENERGY.Power", scale=0.001)
    assert soon(meter.read) == pytest.approx(4.31), "not the old one that was retained"
    assert soon(meter.read) == pytest.approx(4.32) and meter.read() is None
    assert broker.topics == ["tele/plug/SENSOR"] and meter.rail == "tele/plug/SENSOR"
    broker.publish("tele/plug/SENSOR", b"off")
    with pytest.raises(ValueError, match="no number"):
        soon(meter.read)
    meter.close()


def test_an_mqtt_topic_with_bare_numbers(serve, paho):
    meter, _ = published(serve, [(b"4.5",)])
    assert soon(meter.read) == 4.5
    meter.close()


def test_an_mqtt_broker_that_wants_a_password(serve, paho, monkeypatch):
    monkeypatch.setenv("BROKER_PASSWORD", SECRET)
    broker = serve(servers.Broker, password=SECRET)
    meter, _ = published(serve, [(b"4.5",)], broker, user="lab", password_env="BROKER_PASSWORD")
    meter.close()
    with pytest.raises(PermissionError, match="Not authorized"):
        mqtt.find(settings(broker, topic="x"))


def test_mqtt_that_says_nothing(serve, paho):
    with pytest.raises(NoMeterError, match=r"nothing was published on x in 0.2 s"):
        mqtt.find(settings(serve(servers.Broker), topic="x", wait_seconds=0.2))
    with pytest.raises(ValueError, match=r"no ENERGY\.Power"):
        published(serve, [(b'{"Time": 1}',)], field="ENERGY.Power")
    with pytest.raises(UsageError, match="no topic"):
        mqtt.find(Settings("127.0.0.1:1"))
    with pytest.raises(OSError, match="refused"):
        mqtt.find(Settings("127.0.0.1:1", {"topic": "x"}))


def test_an_instrument_over_tcp(serve):
    seen = []
    instrument = serve(servers.Instrument, lambda line: seen.append(line) or b"+4.30120000E+00\r\n")
    meter = scpi.find(settings(instrument))
    assert meter.read() == pytest.approx(4.3012) and seen[-1] == "MEAS:POW?"
    assert (meter.source, meter.boundary) == ("scpi", "board")
    meter.close()


def test_an_instrument_that_gives_several_numbers_in_another_unit(serve):
    instrument = serve(servers.Instrument, lambda line: b"5.1021, 843.2, 4302.1\n" if line == "READ?" else None)
    meter = scpi.find(settings(instrument, query="READ?", column=2, scale=0.001))
    assert meter.read() == pytest.approx(4.3021)
    with pytest.raises(ValueError, match="no number 3"):
        scpi.find(settings(instrument, query="READ?", column=3))
    meter.close()


def test_an_instrument_that_falls_silent_or_hangs_up(serve, monkeypatch):
    monkeypatch.setattr(scpi, "_SECONDS", 0.2)
    with pytest.raises(TimeoutError, match="no answer to MEAS:POW"):
        scpi.find(settings(serve(servers.Instrument, lambda _: None)))
    with pytest.raises(ConnectionError, match="closed the connection"):
        scpi.find(settings(serve(servers.Instrument, lambda _: b"")))
    replies = iter([b"4.3\n", b"nan\n"])
    meter = scpi.find(settings(serve(servers.Instrument, lambda _: next(replies))))
    assert math.isnan(meter.read()), "which the sampling calls nonsense"
    meter.close()


def test_a_serial_meter_that_sends_by_itself(serve):
    device = serve(servers.Serial)
    meter = scpi.find(Settings(device.path, {"query": "", "column": 2, "baud": 115200}))
    assert meter.read() is None
    device.say(b"5.10 0.80 4.08\n5.11 0.81 4.14\n5.1")
    assert soon(meter.read) == pytest.approx(4.14), "the newest whole line"
    assert meter.read() is None
    device.say(b"2 0.82 4.20\n")
    assert soon(meter.read) == pytest.approx(4.20)
    meter.close()


def test_serial_devices_that_are_none(tmp_path):
    (tmp_path / "file").write_text("4.2\n")
    with pytest.raises(OSError, match="no serial device"):
        scpi.find(Settings(str(tmp_path / "file")))
    with pytest.raises(OSError, match="No such file"):
        scpi.find(Settings(str(tmp_path / "none")))
    with pytest.raises(UsageError, match="no such speed"):
        scpi.find(Settings("/dev/ttyUSB0", {"baud": 12345}))


def recording(tmp_path, *rows, head="seconds,watts"):
    path = tmp_path / "recording.csv"
    path.write_text("\n".join([head, *(f"{seconds},{watts}" for seconds, watts in rows)]) + "\n")
    return Settings(str(path))


def test_a_recording_is_played_by_the_clock(tmp_path):
    now = [100.0]
    meter = replay.find(recording(tmp_path, (0, 2.0), (0.1, 3.0), (0.2, 4.0), (0.5, 5.0)), lambda: now[0])
    assert meter.mean and meter.read() == 2.0 and meter.read() is None
    now[0] = 100.3
    assert meter.read() == 3.5, "the mean of what came due"
    now[0] = 100.6
    assert meter.read() == 5.0
    with pytest.raises(OSError, match=r"ended after 0\.5 s"):
        meter.read()


@pytest.mark.parametrize(
    ("rows", "head"),
    [
        ([], "seconds,watts"),
        ([(1, 2)], "time,power"),
        ([(1, 2), (1, 3)], "seconds,watts"),
        ([(1, "x")], "seconds,watts"),
        ([(1, "2,3")], "seconds,watts"),
    ],
)
def test_a_recording_that_is_none(tmp_path, rows, head):
    with pytest.raises(ValueError):
        replay.find(recording(tmp_path, *rows, head=head))


def test_pick():
    assert pick({"a": [{"b": 2}]}, "a.0.b") == 2.0 and pick(3, "") == 3.0
    for document, path in (({"a": 1}, "b"), ({"a": True}, "a"), ([1], "1"), ({"a": None}, "a"), ({"a": {}}, "a")):
        with pytest.raises(ValueError):
            pick(document, path)
