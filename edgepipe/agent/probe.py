"""Facts of the board the agent runs on. No runtime is imported: versions come from the names of metadata folders."""

from __future__ import annotations

import glob
import os
import re
import subprocess
import sys
from typing import Dict, Iterator, List, Optional, Tuple

from edgepipe.agent import runtimes, state
from edgepipe.agent.state import read_text
from edgepipe.agent.text import clean
from edgepipe.schema import Board, Runtime

# "CPU implementer" and "CPU part" of /proc/cpuinfo: the MIDR register's fields, from Arm's and NVIDIA's manuals.
_PARTS = {
    (0x41, 0xB76): "ARM1176",
    (0x41, 0xC07): "Cortex-A7",
    (0x41, 0xC08): "Cortex-A8",
    (0x41, 0xC09): "Cortex-A9",
    (0x41, 0xC0F): "Cortex-A15",
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD0D): "Cortex-A77",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x4E, 0x003): "Denver 2",
    (0x4E, 0x004): "Carmel",
}
_LOADER_SECONDS = 5.0
_DISTRIBUTION = re.compile(r"(?P<name>.+?)-(?P<version>[0-9][^-]*)(?:-.*)?\.(?:dist|egg)-info\Z")


def board(sites: Dict[str, str], sysfs_root: str = "/") -> Board:
    """All that is known of this board. ``sites`` maps runtimes to their own folders."""
    uname = os.uname()
    return Board(
        arch=arch(),
        cpu=cpu_name(sysfs_root),
        isa=isa(sysfs_root),
        cores=len(os.sched_getaffinity(0)),
        ram_bytes=state.memory_bytes("MemTotal", sysfs_root),
        os=_os_name(sysfs_root),
        kernel=clean(uname.release, 100),
        python="{}.{}.{}".format(*sys.version_info[:3]),
        libc=_libc(sysfs_root),
        model=model(sysfs_root),
        hostname=clean(uname.nodename, 100),
        governor=state.governor(sysfs_root),
        clocks=_clocks(sysfs_root),
        emulated=emulated(sysfs_root),
        runtimes=[runtime(name, sites.get(name)) for name in runtimes.names()],
    )


def arch() -> str:
    """The machine as its Python sees it: a 32-bit userland on a 64-bit kernel counts as 32-bit."""
    machine = os.uname().machine
    if sys.maxsize > 1 << 32:
        return machine
    return {"aarch64": "armv7l", "x86_64": "i686"}.get(machine, machine)


def _cpuinfo(sysfs_root: str) -> List[Tuple[str, str]]:
    lines = (read_text(os.path.join(sysfs_root, "proc/cpuinfo")) or "").splitlines()
    pairs = (line.partition(":") for line in lines if ":" in line)
    return [(key.strip(), value.strip()) for key, _, value in pairs]


def cpu_name(sysfs_root: str = "/") -> str:
    """The CPU's name, e.g. ``Cortex-A72``; kinds of cores are joined by ``+``."""
    info = _cpuinfo(sysfs_root)
    makers = [value for key, value in info if key == "CPU implementer"]
    parts = [value for key, value in info if key == "CPU part"]
    found: List[str] = []
    for maker, part in zip(makers, parts):
        try:
            name = _PARTS.get((int(maker, 16), int(part, 16)), f"ARM part {maker}/{part}")
        except ValueError:
            continue
        if name not in found:
            found.append(name)
    if not found:
        found = [value for key, value in info if key in ("model name", "Processor", "cpu model")][:1]
    return clean(" + ".join(found), 100) or os.uname().machine


def isa(sysfs_root: str = "/") -> List[str]:
    """The instruction-set flags that every core has, as /proc/cpuinfo names them."""
    lines = [value.split() for key, value in _cpuinfo(sysfs_root) if key in ("flags", "Features")]
    if not lines:
        return []
    common = set(lines[0]).intersection(*lines[1:])
    return [clean(flag, 32) for flag in lines[0] if flag in common][:512]


def _os_name(sysfs_root: str) -> str:
    text = read_text(os.path.join(sysfs_root, "etc/os-release")) or read_text("/etc/os-release") or ""
    match = re.search(r"^PRETTY_NAME=\"?([^\"\n]*)", text, re.MULTILINE)
    return clean(match.group(1), 100) if match else os.uname().sysname


def _libc(sysfs_root: str) -> str:
    """The C library this Python runs on, e.g. ``glibc 2.36`` or ``musl 1.2``."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or _musl(sysfs_root)
    except (ValueError, OSError):
        return _musl(sysfs_root)


def _musl(sysfs_root: str) -> str:
    """The version of musl, which its loader prints when it is run alone. Empty where there is no musl."""
    for path in sorted(glob.glob(os.path.join(sysfs_root, "lib/ld-musl-*.so.1"))):
        try:
            said = subprocess.run(
                [path], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=_LOADER_SECONDS, check=False
            ).stderr
        except (OSError, subprocess.SubprocessError):
            continue
        match = re.search(rb"^Version (\d{1,2}\.\d{1,2})", said, re.MULTILINE)
        if match:
            return f"musl {match.group(1).decode()}"
    return ""


def model(sysfs_root: str = "/") -> str:
    """The board's model from its device tree, e.g. ``Raspberry Pi 4 Model B Rev 1.4``; empty on a PC."""
    for path in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        text = read_text(os.path.join(sysfs_root, path))
        if text:
            return clean(text, 100)
    return ""


def _clocks(sysfs_root: str) -> Dict[str, List[int]]:
    """Current, least and most kHz of each core; empty without cpufreq."""
    which = {"current_khz": "scaling_cur_freq", "min_khz": "scaling_min_freq", "max_khz": "scaling_max_freq"}
    found = {key: state.clocks_khz(sysfs_root, name) for key, name in which.items()}
    return found if any(found.values()) else {}


def emulated(sysfs_root: str = "/") -> str:
    """What emulates this board, e.g. ``qemu-user -cpu cortex-a72``; empty on hardware. Its times mean nothing."""
    cpu = os.environ.get("QEMU_CPU", "")
    suffix = clean(f" -cpu {cpu}", 60) if cpu else ""
    try:
        # qemu-user hides itself in /proc/self/exe, but not here.
        if "qemu" in os.path.basename(os.readlink("/proc/thread-self/exe")):
            return f"qemu-user {suffix}".strip()
    except OSError:
        pass
    # The kernel was told of a CPU of another kind than the one this Python was built for.
    keys = {key for key, _ in _cpuinfo(sysfs_root)}
    if arch() in ("aarch64", "armv7l") and "vendor_id" in keys and "CPU part" not in keys:
        return f"qemu-user {suffix}".strip()
    return f"qemu-system {suffix}".strip() if model(sysfs_root).startswith("linux,dummy-virt") else ""


def runtime(name: str, site: Optional[str]) -> Runtime:
    """Whether a runtime is here: in its ``site`` folder first, then in the agent's own Python."""
    packages = runtimes.find(name).PACKAGES
    if not packages:
        return Runtime(name=name, version=runtimes.find(name).version())
    for folder in [site] if site else [path for path in sys.path if os.path.isdir(path)]:
        found = dict(distributions(folder))
        for package in packages:
            if package in found:
                return Runtime(name, found[package], package, bool(site), tag=_tag(folder, package))
    if site:
        return runtime(name, None)
    return Runtime(name=name, reason=f"not installed: looked for {', '.join(packages)}")


def _tag(folder: str, package: str) -> str:
    """The tags of the wheel a package came from, as its own metadata lists them; empty where it does not."""
    for path in glob.glob(os.path.join(glob.escape(folder), "*.dist-info", "WHEEL")):
        name = os.path.basename(os.path.dirname(path)).partition("-")[0]
        if re.sub(r"[-_.]+", "-", name).lower() == package:
            found = re.findall(r"^Tag: *([\w.-]{1,100})$", read_text(path) or "", re.MULTILINE)
            return " ".join(found)[:300]
    return ""


def distributions(folder: str) -> Iterator[Tuple[str, str]]:
    """Names (with dashes, lower case) and versions of the packages installed in a folder."""
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for entry in names:
        match = _DISTRIBUTION.match(entry)
        if match:
            yield re.sub(r"[-_.]+", "-", match.group("name")).lower(), clean(match.group("version"), 60)
