"""Trees as boards' kernels show them, built from what their drivers write; for ``--sysfs-root``."""

from __future__ import annotations

from pathlib import Path

# What a Pi 5's firmware prints: 12 rails with current and voltage, and two that have a voltage alone.
PMIC = {
    "3V7_WL_SW": (0.0917, 3.697), "3V3_SYS": (0.0595, 3.310), "1V8_SYS": (0.1698, 1.799), "DDR_VDD2": (0.0156, 1.105),
    "DDR_VDDQ": (0.0, 0.611), "1V1_SYS": (0.1834, 1.104), "0V8_SW": (0.3279, 0.803), "VDD_CORE": (1.6188, 0.720),
    "3V3_DAC": (0.0, 3.305), "3V3_ADC": (0.0004, 3.304), "0V8_AON": (0.0031, 0.799), "HDMI": (0.0162, 5.142),
}  # fmt: skip


class Tree:
    """A folder that holds sys/ and proc/."""

    def __init__(self, root):
        self.root = Path(root)

    def __str__(self):
        return str(self.root)

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        # A reader sees the old text or the new one, as with a kernel's file.
        new = file.with_name(file.name + "~")
        new.write_text(f"{text}\n")
        new.replace(file)

    def files(self, folder, **texts):
        for name, text in texts.items():
            self.write(f"{folder}/{name}", text)

    def model(self, name):
        self.write("proc/device-tree/model", name + "\0")
        return self


def jetson(root, rails=(("VDD_IN", 5072, 912), ("VDD_CPU_GPU_CV", 5064, 152), ("VDD_SOC", 5056, 296)), address="0040"):
    """JetPack 5 and 6: hwmon, reached by the i2c device and by the class."""
    tree = Tree(root).model("NVIDIA Jetson Orin Nano Developer Kit")
    device = f"sys/bus/i2c/devices/1-{address}"
    folder = f"{device}/hwmon/hwmon{1 + int(address) % 40}"
    tree.files(
        folder, name="ina3221", update_interval="35", samples="16", in7_label="sum of shunt voltages", in7_input=9
    )
    for n, (label, millivolts, milliamperes) in enumerate(rails, 1):
        texts = {f"in{n}_input": millivolts, f"curr{n}_input": milliamperes, f"in{n}_enable": 1}
        texts[f"shunt{n}_resistor"] = 5000
        if label:
            texts[f"in{n}_label"] = label
        tree.files(folder, **texts)
    (tree.root / "sys/class/hwmon").mkdir(parents=True, exist_ok=True)
    (tree.root / "sys/class/hwmon" / Path(folder).name).symlink_to(tree.root / folder)
    tree.hwmon = folder
    return tree


def jetson_nano(root):
    """JetPack 4: NVIDIA's iio driver."""
    tree = Tree(root).model("NVIDIA Jetson Nano Developer Kit")
    tree.iio = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    rails = (("POM_5V_IN", 2150), ("POM_5V_GPU", 40), ("POM_5V_CPU", 610))
    for n, (label, milliwatts) in enumerate(rails):
        texts = {f"rail_name_{n}": label, f"in_power{n}_input": milliwatts, f"polling_delay_{n}": "0 ms"}
        tree.files(tree.iio, **texts)
    return tree


def pi(root, model="Raspberry Pi 5 Model B Rev 1.0", pmic=None):
    """A Raspberry Pi with its firmware's tool; without ``pmic`` the firmware does not know the question."""
    tree = Tree(root).model(model)
    tree.write("usr/bin/said", pmic or 'error=1 error_msg="Command not registered"')
    script = '#!/bin/sh\ncase "$1" in\npmic_read_adc) cat "${0%/*}/said" ;;\n*) echo throttled=0x0 ;;\nesac'
    tree.write("usr/bin/vcgencmd", script)
    (tree.root / "usr/bin/vcgencmd").chmod(0o755)
    return tree


def pmic(rails=PMIC):
    lines = [f"{name + '_A':>15} current({n})={amperes:.8f}A" for n, (name, (amperes, _)) in enumerate(rails.items())]
    lines += [f"{name + '_V':>15} volt({n})={volts:.8f}V" for n, (name, (_, volts)) in enumerate(rails.items(), 8)]
    return "\n".join([*lines, "        EXT5V_V volt(24)=5.14936000V", "         BATT_V volt(25)=0.00000000V"])


def ina2xx(root, chip="ina219", number=3, device="1-0041", **texts):
    tree = Tree(root)
    folder = f"sys/devices/platform/i2c/{device}/hwmon/hwmon{number}"
    if not texts:
        texts = {"in1_input": 5056, "curr1_input": 620, "power1_input": 3140000, "shunt_resistor": 100000}
    tree.files(folder, name=chip, **texts)
    (tree.root / folder / "device").symlink_to("../..")
    (tree.root / "sys/class/hwmon").mkdir(parents=True, exist_ok=True)
    (tree.root / f"sys/class/hwmon/hwmon{number}").symlink_to(tree.root / folder)
    tree.hwmon = folder
    return tree


def rapl(root, packages=1, energy=1_000_000, most=262_143_328_850):
    tree = Tree(root)
    tree.domains = [f"sys/class/powercap/intel-rapl:{n}" for n in range(packages)]
    for n, folder in enumerate(tree.domains):
        tree.files(folder, name=f"package-{n}", energy_uj=energy, max_energy_range_uj=most)
        tree.files(f"{folder}:0", name="core", energy_uj=energy // 2, max_energy_range_uj=most)
    tree.files(f"sys/class/powercap/intel-rapl:{packages}", name="psys", energy_uj=energy, max_energy_range_uj=most)
    return tree


def supply(root, name="BAT0", **texts):
    tree = Tree(root)
    tree.files(f"sys/class/power_supply/{name}", **texts)
    return tree
