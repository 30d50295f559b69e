"""Built /proc, /sys and /etc trees that stand for boards: small, but shaped as the kernel shapes them.

The facts of a process (its machine, Python and C library) can't come from a tree; `process` gives those of the board.
"""

from __future__ import annotations

from pathlib import Path

V8 = "fp asimd evtstrm crc32 cpuid"
V82 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
V7 = "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm crc32"
X86 = "fpu sse sse2 ssse3 fma sse4_1 sse4_2 avx f16c avx2 avx_vnni"

BOARDS = {
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
    "x86-mini": {
        "model": "", "features": X86, "cores": 4, "khz": 3400000, "ram_kb": 16146700,
        "os": "Debian GNU/Linux 13 (trixie)", "libstdcxx": 33, "process": ("x86_64", "3.13.5", "glibc 2.41"),
    },
}  # fmt: skip


def build(name: str, root: Path) -> Path:
    """Write the tree of a board below ``root`` and return it: the folder for ``--sysfs-root``."""
    board = BOARDS[name]

    def write(path: str, text: str) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text + "\n")

    core = f"Features\t: {board['features']}\nCPU implementer\t: 0x41\nCPU architecture: 8"
    core += f"\nCPU part\t: {board.get('part')}"
    if name == "x86-mini":
        core = f"vendor_id\t: GenuineIntel\nmodel name\t: Intel(R) N100\nflags\t\t: {board['features']}"
    write("proc/cpuinfo", "\n".join(f"processor\t: {each}\n{core}\n" for each in range(board["cores"])))
    write(
        "proc/meminfo", f"MemTotal: {board['ram_kb']} kB\nMemAvailable: {board['ram_kb'] // 2} kB\nSwapTotal: 102396 kB"
    )
    write("proc/loadavg", "0.00 0.01 0.05 1/100 1000")
    write("etc/os-release", f'PRETTY_NAME="{board["os"]}"')
    if board["model"]:
        write("proc/device-tree/model", board["model"] + "\0")
    if "tegra" in board:
        write("etc/nv_tegra_release", board["tegra"])
    for each in range(board["cores"]):
        folder = f"sys/devices/system/cpu/cpu{each}/cpufreq"
        write(f"{folder}/scaling_governor", "ondemand")
        write(
            f"{folder}/scaling_available_governors", "conservative ondemand userspace powersave performance schedutil"
        )
        for which, khz in (("cur", board["khz"] // 2), ("min", board["khz"] // 3), ("max", board["khz"])):
            write(f"{folder}/scaling_{which}_freq", str(khz))
    write("sys/class/thermal/thermal_zone0/type", "cpu-thermal")
    write("sys/class/thermal/thermal_zone0/temp", "48199")
    write(f"usr/lib/libstdc++.so.6.0.{board['libstdcxx']}", "")
    return root


def process(name: str) -> dict[str, str]:
    """The machine, Python and C library that the board's own agent would report."""
    return dict(zip(("arch", "python", "libc"), BOARDS[name]["process"], strict=True))
