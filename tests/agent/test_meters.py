"""Each meter of the board on a built tree: which rail, how much, what it declares, and why it says no."""

import builtins
from itertools import count

import pytest

from edgepipe.agent import meters, power, state
from edgepipe.agent.meters import NoMeterError, rapl
from edgepipe.errors import UsageError
from tests.agent import boards_kit as kit


def test_a_jetson_is_read_at_its_input_and_nothing_is_added(tmp_path):
    meter = meters.find("ina3221", str(kit.jetson(tmp_path)))
    assert (meter.source, meter.rail, meter.boundary) == ("ina3221", "VDD_IN", "board")
    assert meter.read() == pytest.approx(5.072 * 0.912)
    assert meter.rate_hz == 20 and not meter.mean
    assert meter.resolution_w == pytest.approx(40e-6 / 5e-3 * 5.072)


def test_a_slow_sensor_is_not_asked_more_often_than_it_converts(tmp_path):
    tree = kit.jetson(tmp_path)
    tree.write(f"{tree.hwmon}/update_interval", 250)
    assert meters.find("", str(tree)).rate_hz == 4


def test_the_old_driver_of_jetpack_4(tmp_path):
    meter = meters.find("", str(kit.jetson_nano(tmp_path)))
    assert (meter.rail, meter.boundary, meter.resolution_w, meter.rate_hz) == ("POM_5V_IN", "board", None, 20)
    assert meter.read() == pytest.approx(2.150)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_total_is_found_wherever_it_is_and_channels_without_a_label_are_skipped(tmp_path, order):
    rails = [("", 5000, 3000), ("VDD_SOC", 5000, 100)]
    rails.insert(order, ("VDD_IN", 5000, 1000))
    assert meters.find("", str(kit.jetson(tmp_path, rails))).read() == pytest.approx(5.0)


def test_a_second_chip_is_no_second_total(tmp_path):
    kit.jetson(tmp_path)
    tree = kit.jetson(tmp_path, (("VDD_GPU_SOC", 5000, 800),), address="0041")
    assert meters.find("", str(tree)).rail == "VDD_IN"


def test_a_jetson_without_a_total_rail_has_no_power(tmp_path):
    tree = kit.jetson(tmp_path, (("VDD_GPU_SOC", 5000, 800), ("VIN_SYS_5V0", 5000, 700)))
    with pytest.raises(NoMeterError, match="no rail VDD_IN or POM_5V_IN, only VDD_GPU_SOC, VIN_SYS_5V0"):
        meters.find("", str(tree))
    chosen = meters.find("", str(tree), "VDD_GPU_SOC")
    assert chosen.read() == pytest.approx(4.0) and chosen.boundary == "soc"


def test_a_channel_that_is_off_is_none(tmp_path):
    tree = kit.jetson(tmp_path)
    tree.write(f"{tree.hwmon}/in1_enable", 0)
    with pytest.raises(NoMeterError, match="only VDD_CPU_GPU_CV, VDD_SOC"):
        meters.find("", str(tree))


def test_a_pi_5_gives_the_sum_of_its_rails_and_says_so(tmp_path):
    meter = meters.find("", str(kit.pi(tmp_path, pmic=kit.pmic())))
    assert meter.source == "rpi5_pmic" and meter.boundary == "soc"
    assert meter.rail == "sum of 12 PMIC rails, not input power"
    assert meter.read() == pytest.approx(sum(a * v for a, v in kit.PMIC.values()), rel=1e-4)
    assert meter.resolution_w is None
    assert meters.find("rpi5_pmic", str(tmp_path), "VDD_CORE").read() == pytest.approx(1.6188 * 0.72, rel=1e-4)
    with pytest.raises(NoMeterError, match="no rail NONE"):
        meters.find("rpi5_pmic", str(tmp_path), "NONE")


def test_a_rail_that_goes_missing_is_told(tmp_path):
    tree = kit.pi(tmp_path, pmic=kit.pmic())
    meter = meters.find("", str(tree))
    tree.write("usr/bin/said", kit.pmic({name: pair for name, pair in kit.PMIC.items() if name != "HDMI"}))
    with pytest.raises(ValueError, match="left out HDMI"):
        meter.read()
    tree.write("usr/bin/said", "error=2 error_msg=busy")
    with pytest.raises(OSError, match="error=2"):
        meter.read()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Raspberry Pi 4 Model B Rev 1.4", "Raspberry Pi 4"),
        ("Raspberry Pi Zero 2 W Rev 1.0", "Raspberry Pi Zero 2 W"),
        ("Raspberry Pi 3 Model B Plus Rev 1.3", "Raspberry Pi 3"),
    ],
)
def test_a_pi_without_a_sensor_says_so(tmp_path, model, name):
    tree = kit.pi(tmp_path, model)
    with pytest.raises(NoMeterError) as caught:
        meters.find("", str(tree))
    assert caught.value.what == f"no meter: a {name} has no current sensor"
    with pytest.raises(NoMeterError, match="error=1"):
        meters.find("rpi5_pmic", str(tree))
    assert state.sample(0.0, str(tree)).throttle_bits == 0
    kit.ina2xx(tmp_path)
    assert meters.find("", str(tree)).source == "ina219", "unless somebody wired one in"


def test_the_firmware_may_be_barred(tmp_path):
    tree = kit.pi(tmp_path, pmic=kit.pmic())
    tree.write("usr/bin/vcgencmd", '#!/bin/sh\necho "Can\'t open device file: /dev/vcio" >&2\nexit 255')
    (tmp_path / "usr/bin/vcgencmd").chmod(0o755)
    with pytest.raises(NoMeterError, match="permission denied") as caught:
        meters.find("", str(tree))
    assert "video" in caught.value.fix
    assert state.sample(0.0, str(tree)).throttle_bits is None


def test_an_ina219_is_known_by_name_not_by_number(tmp_path):
    meter = meters.find("", str(kit.ina2xx(tmp_path, number=7)))
    assert (meter.source, meter.rail, meter.boundary) == ("ina219", "1-0041", "board")
    assert meter.read() == pytest.approx(3.14)
    assert meter.resolution_w == pytest.approx(20 * 1e9 / (100000 * 100) / 1e6)


def test_an_ina226_without_a_power_register(tmp_path):
    tree = kit.ina2xx(tmp_path, "ina226", in1_input=12000, curr1_input=250, in1_label="supply", shunt_resistor=2000)
    meter = meters.find("hwmon", str(tree))
    assert meter.read() == pytest.approx(3.0) and meter.rail == "supply"
    assert meter.resolution_w == pytest.approx(0.03125)


def test_of_several_sensors_the_user_says_which(tmp_path):
    kit.ina2xx(tmp_path)
    tree = kit.ina2xx(tmp_path, number=4, device="1-0044", power1_input=900000)
    with pytest.raises(NoMeterError, match="2 current sensors: there are 1-0041, 1-0044"):
        meters.find("", str(tree))
    assert meters.find("", str(tree), "1-0044").read() == pytest.approx(0.9)


def test_rapl_is_the_mean_since_the_last_look_across_a_wrap(tmp_path, monkeypatch):
    ticks = count()
    monkeypatch.setattr(rapl, "time", type("Clock", (), {"monotonic": staticmethod(lambda: next(ticks) / 2)}))
    tree = kit.rapl(tmp_path, packages=2, energy=999_000_000, most=1_000_000_000)
    meter = meters.find("", str(tree))
    assert (meter.source, meter.rail, meter.boundary, meter.mean) == ("rapl", "package-0 + package-1", "soc", True)
    tree.write(f"{tree.domains[0]}/energy_uj", 4_000_000)  # 5 J, over the wrap
    tree.write(f"{tree.domains[1]}/energy_uj", 999_500_000)  # 0.5 J
    assert meter.read() == pytest.approx(11.0)
    assert meter.read() == 0.0


def test_rapl_is_for_root_alone(tmp_path, monkeypatch):
    tree = kit.rapl(tmp_path)
    own = builtins.open

    def barred(path, *args, **more):
        if str(path).endswith("energy_uj"):
            raise PermissionError(13, "Permission denied", str(path))
        return own(path, *args, **more)

    monkeypatch.setattr(builtins, "open", barred)
    with pytest.raises(NoMeterError, match=r"permission denied: rapl is read from .*energy_uj") as caught:
        meters.find("", str(tree))
    assert caught.value.present


def test_a_battery_counts_while_it_is_drained(tmp_path):
    tree = kit.supply(tmp_path, type="Battery", status="Discharging", voltage_now=11_400_000, current_now=-500_000)
    meter = meters.find("", str(tree))
    assert (meter.source, meter.rail, meter.boundary) == ("power_supply", "BAT0", "board")
    assert meter.read() == pytest.approx(5.7)
    tree.write("sys/class/power_supply/BAT0/power_now", 6_200_000)
    assert meter.read() == pytest.approx(6.2)
    tree.write("sys/class/power_supply/BAT0/status", "Charging")
    with pytest.raises(ValueError, match="stopped feeding the board"):
        meter.read()
    with pytest.raises(NoMeterError, match="BAT0 is charging"):
        meters.find("power_supply", str(tree))


def test_a_usb_input_counts_and_a_mouse_does_not(tmp_path):
    kit.supply(tmp_path, "a-mouse", type="Battery", status="Discharging", scope="Device", power_now=1)
    kit.supply(tmp_path, "ucsi-source-psy-1", type="USB", online=1, voltage_now=5_000_000, current_now=3_000_000)
    with pytest.raises(NoMeterError, match="no power supply that says"):
        meters.find("power_supply", str(tmp_path))
    tree = kit.supply(tmp_path, "usb", type="USB", online=1, voltage_now=5_000_000, current_now=800_000)
    assert meters.find("power_supply", str(tree)).read() == pytest.approx(4.0)


def test_what_sees_most_of_the_board_is_taken(tmp_path):
    kit.rapl(tmp_path)
    assert meters.find("", str(tmp_path)).source == "rapl"
    kit.supply(tmp_path, type="Battery", status="Discharging", power_now=9_000_000)
    assert meters.find("", str(tmp_path)).source == "power_supply"
    assert meters.find("rapl", str(tmp_path)).source == "rapl"


@pytest.mark.parametrize("text", ["", "-", "0x10", "five"])
def test_nonsense_in_a_file_is_told(tmp_path, text):
    tree = kit.jetson(tmp_path)
    tree.write(f"{tree.hwmon}/curr1_input", text)
    with pytest.raises(NoMeterError, match=r"ina3221 says nonsense: .*curr1_input holds"):
        meters.find("", str(tree))


def test_a_board_with_nothing_and_a_name_nobody_knows(tmp_path):
    with pytest.raises(NoMeterError, match=r"\Ano meter\Z"):
        meters.find("", str(tmp_path))
    for name in meters.names():
        with pytest.raises(NoMeterError):
            meters.find(name, str(tmp_path))
    with pytest.raises(UsageError, match="no such power meter"):
        meters.find("../x", str(tmp_path))


class Clock:
    """A clock that waiting moves on, and each read by 10 ms."""

    def __init__(self):
        self.now, self.left = 100.0, 6

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds
        self.left -= 1
        return self.left < 0


def taken(values, **more):
    """What `power.readings` makes of a meter that gives these, each after 10 ms."""
    clock, left = Clock(), iter(values)

    def read():
        clock.now += 0.01
        value = next(left)
        if isinstance(value, Exception):
            raise value
        return value

    meter = meters.Meter("x", "y", "board", read, 10.0, **more)
    return list(power.readings(meter, clock.wait, clock))


def test_readings_come_at_the_meters_rate_with_the_middle_of_their_time():
    found = taken([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert [reading.watts for reading in found] == [1, 2, 3, 4, 5, 6]
    assert [reading.at for reading in found] == pytest.approx([100.005 + 0.1 * n for n in range(6)])
    means = taken([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], mean=True)
    assert [reading.at for reading in means][1:] == pytest.approx([100.06 + 0.1 * n for n in range(5)])


def test_what_fails_is_a_reading_too_and_nothing_new_is_none():
    values = [1.0, None, OSError(5, "Input/output error"), float("nan"), ValueError("odd"), 2.0]
    found = taken(values)
    assert [reading.watts for reading in found] == [1.0, None, None, None, 2.0]
    assert "Input/output error" in found[1].fault
    assert found[2].fault == "nonsense: it said nan" and found[3].fault == "nonsense: odd"


def test_a_trace_is_bounded(monkeypatch):
    monkeypatch.setattr(power, "MOST_READINGS", 5)
    trace = power.Trace()
    for n in range(9):
        trace.add(power.Reading(n, None, f"fault {n}"))
    assert trace.samples(1.0).at == [-1, 0, 1, 2, 3] and len(trace.samples(0.0).faults) == 5
