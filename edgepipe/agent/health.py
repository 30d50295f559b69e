"""What `doctor` asks of a board beyond `hello`: every Python, what each runtime does when imported, rights, meters.

All paths of /proc, /sys, /etc and /usr/lib are taken below ``sysfs_root``, so that a built tree can stand for a board.
"""

from __future__ import annotations

import glob
import json
import os
import re
import stat
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple

from edgepipe.agent import meters, probe, runtimes, sites, state
from edgepipe.agent.jobs import Jobs
from edgepipe.agent.state import read_text
from edgepipe.agent.store import Store
from edgepipe.agent.text import clean
from edgepipe.agent.worker import CancelledError, KilledError
from edgepipe.errors import EdgepipeError

_IMPORT_SECONDS = 120.0
_PYTHON_SECONDS = 10.0
_MOST_PYTHONS = 16
_PYTHON_NAME = re.compile(r"python3(\.\d{1,2}t?)?\Z")
# Old syntax alone: it may be any Python 3.
_ASK = (
    "import sys, sysconfig, json;"
    "version = '.'.join(map(str, sys.version_info[:3]));"
    "print(json.dumps([sys.executable, version, sysconfig.get_config_var('SOABI') or '', sys.path]))"
)
# The L4T release that each JetPack brings, from NVIDIA's JetPack archive.
_JETPACKS = {28: "3", 31: "4", 32: "4", 34: "5", 35: "5", 36: "6", 38: "7"}


@dataclass(frozen=True)
class Interpreter:
    """A Python on the board; ``own`` is the one the agent runs on, ``numpy`` the version it sees ("" if none)."""

    path: str
    version: str
    soabi: str
    numpy: str = ""
    own: bool = False


@dataclass(frozen=True)
class Trial:
    """What became of importing an installed runtime. ``signal`` is set where that killed the process, e.g. SIGILL."""

    runtime: str
    package: str
    version: str
    tag: str
    imports: bool
    signal: str = ""
    error: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Clocks:
    """Who may set the governor. ``access`` is "write", "denied", "read-only" or "absent" (no cpufreq here)."""

    access: str
    governor: Optional[str] = None
    available: List[str] = field(default_factory=list)


@dataclass(frozen=True)
class MeterFound:
    """A kind of power meter, and whether one can be read here; ``reason`` says which rail it reads, or why not.

    ``blocked``: the sensor is there, and something is in the way, e.g. the right to read it.
    """

    name: str
    present: bool
    reason: str = ""
    blocked: bool = False


@dataclass(frozen=True)
class Health:
    """What the agent found. Sizes in bytes; ``libstdcxx`` is N of the newest GLIBCXX_3.4.N, 0 if none was found."""

    interpreters: List[Interpreter]
    trials: List[Trial]
    clocks: Clocks
    meters: List[MeterFound]
    libstdcxx: int
    l4t: str
    jetpack: str
    ram_available_bytes: Optional[int]
    swap_bytes: Optional[int]
    disk_bytes: int
    disk_free_bytes: int


def examine(store: Store, jobs: Jobs, sysfs_root: str = "/") -> Health:
    """Look at everything; each installed runtime is imported in a child of its own.

    Raises:
        CancelledError: the host went away.
    """
    release, jetpack = l4t(sysfs_root)
    disk = os.statvfs(store.root)
    return Health(
        interpreters=interpreters(python_folders()),
        trials=[trial for name in runtimes.names() for trial in _try(store, jobs, name)],
        clocks=clocks(sysfs_root),
        meters=meters_here(sysfs_root),
        libstdcxx=libstdcxx(sysfs_root),
        l4t=release,
        jetpack=jetpack,
        ram_available_bytes=state.memory_bytes("MemAvailable", sysfs_root),
        swap_bytes=state.memory_bytes("SwapTotal", sysfs_root),
        disk_bytes=disk.f_blocks * disk.f_frsize,
        disk_free_bytes=store.free_bytes(),
    )


def python_folders() -> List[str]:
    """Where Pythons may be: the search path, the usual places, and those that pyenv and uv manage."""
    home = os.path.expanduser("~")
    managed = glob.glob(os.path.join(home, ".pyenv/versions/*/bin"))
    managed += glob.glob(os.path.join(home, ".local/share/uv/python/*/bin"))
    usual = ["/usr/local/bin", "/usr/bin", *sorted(glob.glob("/opt/*/bin")), *sorted(managed)]
    found = [*os.environ.get("PATH", "").split(os.pathsep), *usual]
    return [folder for folder in dict.fromkeys(found) if folder]


def interpreters(folders: List[str]) -> List[Interpreter]:
    """Every Python 3 in these folders that runs, the agent's own first. One that hangs or fails is left out.

    Launchers, e.g. those of pyenv, count as the Python they start.
    """
    own = os.path.realpath(sys.executable) if sys.executable else ""
    paths = {own: sys.executable} if own else {}
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for name in names:
            path = os.path.join(folder, name)
            if _PYTHON_NAME.match(name) and os.access(path, os.X_OK):
                paths.setdefault(os.path.realpath(path), path)
    found: Dict[str, Interpreter] = {}
    for real, path in list(paths.items())[:_MOST_PYTHONS]:
        each = _interpreter(path, real == own)
        if each:
            found.setdefault(each.path, each)
    return list(found.values())


def _interpreter(path: str, own: bool) -> Optional[Interpreter]:
    try:
        done = subprocess.run(
            [path, "-I", "-c", _ASK],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PYTHON_SECONDS,
            check=True,
        )
        path, version, soabi, folders = json.loads(done.stdout[:65536].decode())
        seen = [dict(probe.distributions(folder)) for folder in folders]
        numpy = next((found["numpy"] for found in seen if "numpy" in found), "")
        return Interpreter(clean(path, 300), clean(version, 20), clean(soabi, 60), numpy, own)
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        return None


def _try(store: Store, jobs: Jobs, name: str) -> List[Trial]:
    """Import a runtime if it is installed."""
    if not runtimes.find(name).PACKAGES:
        return []
    found = probe.runtime(name, sites.path(store, name))
    if not found.version:
        return []
    what = (name, found.package, found.version, found.tag)
    try:
        version = jobs.try_import(name, _IMPORT_SECONDS)
    except CancelledError:
        raise
    except KilledError as error:
        return [Trial(*what, imports=False, signal=error.signal, error=error.what, fix=error.fix)]
    except EdgepipeError as error:
        return [Trial(*what, imports=False, error=error.what, fix=error.fix)]
    return [Trial(name, found.package, clean(version, 60), found.tag, imports=True)]


def clocks(sysfs_root: str = "/") -> Clocks:
    """Whether this user may set the governor. A file nobody may write is read-only, also to root."""
    folder = os.path.join(sysfs_root, "sys/devices/system/cpu/cpu0/cpufreq")
    path = os.path.join(folder, "scaling_governor")
    available = (read_text(os.path.join(folder, "scaling_available_governors")) or "").split()
    try:
        mode, flags = os.stat(path).st_mode, os.statvfs(path).f_flag
    except OSError:
        return Clocks("absent")
    if flags & os.ST_RDONLY or not mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        access = "read-only"
    else:
        access = "write" if os.access(path, os.W_OK) else "denied"
    return Clocks(access, state.governor(sysfs_root), [clean(name, 32) for name in available[:16]])


def meters_here(sysfs_root: str = "/") -> List[MeterFound]:
    """Each kind of power meter the agent knows, and whether one is here; the null one says why a board has none."""
    return [_meter(name, sysfs_root) for name in meters.names()]


def _meter(name: str, sysfs_root: str) -> MeterFound:
    """Find a meter, and let it go again. What it says when there is none is the reason."""
    try:
        meter = meters.find(name, sysfs_root)
    except meters.NoMeterError as error:
        return MeterFound(name, False, clean(error.what, 200), error.present)
    meter.close()
    return MeterFound(name, True, clean(f"{meter.rail}, {meter.boundary}", 200))


def libstdcxx(sysfs_root: str = "/") -> int:
    """N of the newest GLIBCXX_3.4.N of the C++ library; its file libstdc++.so.6.0.N bears the same number. 0: none."""
    own = sysconfig.get_config_var("MULTIARCH") or ""
    for folders in (f"usr/lib/{own}", "usr/lib*/*-linux-gnu*", "usr/lib*"):
        names = glob.glob(os.path.join(sysfs_root, folders, "libstdc++.so.6.0.*"))
        numbers = [int(name.rpartition(".")[2]) for name in names if name.rpartition(".")[2].isdigit()]
        if numbers:
            return max(numbers)
    return 0


def l4t(sysfs_root: str = "/") -> Tuple[str, str]:
    """NVIDIA's Linux release and the JetPack it belongs to, e.g. ("36.4.3", "6"); empty on other boards."""
    text = read_text(os.path.join(sysfs_root, "etc/nv_tegra_release")) or ""
    match = re.search(r"R(\d{1,3}) \(release\), REVISION: (\d{1,3}(?:\.\d{1,3})*)", text)
    if not match:
        return "", ""
    return f"{match.group(1)}.{match.group(2)}", _JETPACKS.get(int(match.group(1)), "")
