"""Built /proc, /sys and /etc trees that stand for boards: small, but shaped as the kernel shapes them.

Tests hand them to the agent as its ``--sysfs-root``; the emulated boards of the lab show them as their own /proc and
/sys, which the runtimes read too: some crash without a topology of the CPU they are emulated as.

The facts of a process (its machine, Python and C library) can't come from a tree; `process` gives those of the board.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

V8 = "fp asimd evtstrm crc32 cpuid"
V82 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
V7 = "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm crc32"
X86 = "fpu sse sse2 ssse3 fma sse4_1 sse4_2 avx f16c avx2 avx_vnni"

BOARDS: dict[str, dict[str, Any]] = {
    "pi4": {
        "model": "Raspberry Pi 4 Model B Rev 1.4", "part": "0xd08", "features": V8, "cores": 4, "khz": 1800000,
        "ram_kb": 3882312, "os": "Debian GNU/Linux 12 (bookworm)", "libstdcxx": 30,
        "process": ("aarch64", "3.11.2", "glibc 2.36"),
    },
    "pi5": {
        "model": "Raspberry Pi 5 Model B Rev 1.0", "part": "0xd0b", "features": V82, "cores": 4, "khz": 2400000,
        "ram_kb": 8256208, "os": "Debian GNU/Linux 13 (trixie)", "libstdcxx": 33,
        "process": ("aarch64", "3.13.5", "glibc 2.41"),
    },
    "zero2w": {
        "model": "Raspberry Pi Zero 2 W Rev 1.0", "part": "0xd03", "features": V7, "cores": 4, "khz": 1000000,
        "ram_kb": 437604, "os": "Raspbian GNU/Linux 12 (bookworm)", "libstdcxx": 30,
        "process": ("armv7l", "3.11.2", "glibc 2.36"),
    },
    "orin-nano": {
        "model": "NVIDIA Jetson Orin Nano Developer Kit", "part": "0xd42", "features": V82 + " uscat ilrcpc flagm",
        "cores": 6, "khz": 1510400, "ram_kb": 7802960, "os": "Ubuntu 22.04.5 LTS", "libstdcxx": 30,
        "tegra": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025",
        "process": ("aarch64", "3.10.12", "glibc 2.35"),
    },
    "xavier-nx": {
        "model": "NVIDIA Jetson Xavier NX Developer Kit", "maker": "0x4e", "part": "0x004",
        "features": V82, "cores": 6, "khz": 1907200, "ram_kb": 7774272, "os": "Ubuntu 20.04.6 LTS", "libstdcxx": 28,
        "tegra": "# R35 (release), REVISION: 5.0, GCID: 35550185, BOARD: t186ref, EABI: aarch64, DATE: Tue Feb 20 2024",
        "process": ("aarch64", "3.8.10", "glibc 2.31"),
    },
    "x86-mini": {
        "model": "", "features": X86, "cores": 4, "khz": 3400000, "ram_kb": 16146700,
        "os": "Debian GNU/Linux 13 (trixie)", "libstdcxx": 33, "process": ("x86_64", "3.13.5", "glibc 2.41"),
    },
}  # fmt: skip


def build(name: str, root: Path) -> Path:
    """Write the tree of a board below ``root`` and return it: the folder for ``--sysfs-root``."""
    board = BOARDS[name]
    tree = _Tree(root)
    tree.write("proc/cpuinfo", _cpuinfo(board))
    tree.write(
        "proc/meminfo", f"MemTotal: {board['ram_kb']} kB\nMemAvailable: {board['ram_kb'] // 2} kB\nSwapTotal: 102396 kB"
    )
    tree.write("proc/loadavg", "0.00 0.01 0.05 1/100 1000")
    tree.write("etc/os-release", f'PRETTY_NAME="{board["os"]}"')
    if board["model"]:
        tree.write("proc/device-tree/model", board["model"] + "\0")
        tree.write("sys/firmware/devicetree/base/model", board["model"] + "\0")
    if "tegra" in board:
        tree.write("etc/nv_tegra_release", board["tegra"])
    _cores(tree, board)
    tree.write("sys/class/thermal/thermal_zone0/type", "cpu-thermal")
    tree.write("sys/class/thermal/thermal_zone0/temp", "48199")
    if "tegra" in board:
        _ina3221(tree)
    tree.write(f"usr/lib/libstdc++.so.6.0.{board['libstdcxx']}", "")
    return root


class _Tree:
    """Small files below a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def write(self, path: str, text: str) -> None:
        """Write one file, as the kernel does: with a newline."""
        (self._root / path).parent.mkdir(parents=True, exist_ok=True)
        (self._root / path).write_text(text + "\n")


def _cpuinfo(board: dict[str, Any]) -> str:
    core = f"Features\t: {board['features']}\nCPU implementer\t: {board.get('maker', '0x41')}\nCPU architecture: 8"
    core += f"\nCPU part\t: {board.get('part')}"
    if "part" not in board:
        core = f"vendor_id\t: GenuineIntel\nmodel name\t: Intel(R) N100\nflags\t\t: {board['features']}"
    return "\n".join(f"processor\t: {each}\n{core}\n" for each in range(board["cores"]))


def _cores(tree: _Tree, board: dict[str, Any]) -> None:
    """Which cores there are, how they lie to each other, who they are and how fast they go."""
    cores = board["cores"]
    every, mask = f"0-{cores - 1}", f"{(1 << cores) - 1:x}"
    for name in ("possible", "present", "online"):
        tree.write(f"sys/devices/system/cpu/{name}", every)
    tree.write("sys/devices/system/node/online", "0")
    tree.write("sys/devices/system/node/node0/cpulist", every)
    for each in range(cores):
        folder = f"sys/devices/system/cpu/cpu{each}"
        for name, value in (
            ("physical_package_id", "0"), ("core_id", str(each)), ("core_siblings", mask),
            ("core_siblings_list", every), ("thread_siblings", f"{1 << each:x}"), ("thread_siblings_list", str(each)),
            ("core_cpus_list", str(each)),
            ("package_cpus_list", every), ("cluster_id", "0"), ("cluster_cpus_list", every),
        ):  # fmt: skip
            tree.write(f"{folder}/topology/{name}", value)
        if "part" in board:
            midr = int(board.get("maker", "0x41"), 16) << 24 | 0xF << 16 | int(board["part"], 16) << 4
            tree.write(f"{folder}/regs/identification/midr_el1", f"{midr:#018x}")
        tree.write(f"{folder}/cpufreq/scaling_governor", "ondemand")
        governors = "conservative ondemand userspace powersave performance schedutil"
        tree.write(f"{folder}/cpufreq/scaling_available_governors", governors)
        for which, khz in (("cur", board["khz"] // 2), ("min", board["khz"] // 3), ("max", board["khz"])):
            tree.write(f"{folder}/cpufreq/scaling_{which}_freq", str(khz))
        for which, khz in (("min", board["khz"] // 3), ("max", board["khz"])):
            tree.write(f"{folder}/cpufreq/cpuinfo_{which}_freq", str(khz))


def _ina3221(tree: _Tree) -> None:
    """The power sensor of a Jetson as JetPack 5 and 6 show it: a total in front, its parts behind; in7 is no rail."""
    folder = "sys/bus/i2c/devices/1-0040/hwmon/hwmon1"
    tree.write(f"{folder}/name", "ina3221")
    for channel, (label, millivolts, milliamps) in enumerate(
        (("VDD_IN", 5072, 912), ("VDD_CPU_GPU_CV", 5064, 152), ("VDD_SOC", 5056, 296)), 1
    ):
        tree.write(f"{folder}/in{channel}_label", label)
        tree.write(f"{folder}/in{channel}_input", str(millivolts))
        tree.write(f"{folder}/curr{channel}_input", str(milliamps))
        tree.write(f"{folder}/shunt{channel}_resistor", "5000")
    tree.write(f"{folder}/in7_label", "sum of shunt voltages")
    tree.write(f"{folder}/in7_input", "0")


def process(name: str) -> dict[str, str]:
    """The machine, Python and C library that the board's own agent would report."""
    return dict(zip(("arch", "python", "libc"), BOARDS[name]["process"], strict=True))
