"""The boards the lab can bring up: a line each. A name may end in a number, for several of a kind: ``native-3``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from lab.host import LabError

# Enough for sshd and the wheels; nothing is configured, no maintainer script runs.
_SYSTEM = (
    "base-files", "base-passwd", "bash", "coreutils", "dash", "libc-bin", "libstdc++6", "openssh-client",
    "openssh-server", "openssh-sftp-server", "python3",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """What a board is made of.

    ``tier`` is "native" (this machine's own kind of system) or "user" (another CPU's programs under
    qemu-user). ``machine`` is Debian's name of the architecture. ``like`` is the
    target it stands for, ``shape`` a tree of `lab.shapes`, ``cpu`` what qemu emulates.
    """

    tier: str
    machine: str
    suite: str
    text: str
    like: str = ""
    shape: str = ""
    cpu: str = ""
    packages: tuple[str, ...] = _SYSTEM


KINDS = {
    "native": Kind("native", "amd64", "bookworm", "this machine's CPU, Debian 12, Python 3.11"),
    "pi4": Kind("user", "arm64", "bookworm", "Raspberry Pi 4, Debian 12, Python 3.11", "rpi4", "pi4", "cortex-a72"),
    "pi5": Kind("user", "arm64", "trixie", "Raspberry Pi 5, Debian 13, Python 3.13", "rpi5", "pi5", "cortex-a76"),
    "orin-nano": Kind(
        "user", "arm64", "bookworm", "Jetson Orin Nano, Debian 12 for its Ubuntu 22.04", "jetson-orin-nano",
        "orin-nano", "cortex-a76",
    ),
    "jetson": Kind(
        "user", "arm64", "bullseye", "Jetson Xavier NX, Debian 11 (glibc 2.31) for its Ubuntu 20.04",
        "jetson-xavier-nx", "xavier-nx", "cortex-a72",
    ),
    "zero2w": Kind(
        "user", "armhf", "bookworm", "Raspberry Pi Zero 2 W with a 32-bit system, Debian 12, Python 3.11", "rpizero2w",
        "zero2w", "cortex-a7", (*_SYSTEM, "python3-numpy"),
    ),
}  # fmt: skip
# What `make lab` brings up, one of each tier that a person would deploy to.
USUAL = ("native", "pi4", "zero2w")


def kind_of(name: str) -> Kind:
    """The kind of a board by its name.

    Raises:
        LabError: there is no such kind.
    """
    kind = KINDS.get(re.sub(r"-\d+\Z", "", name))
    if kind is None:
        raise LabError(f"no such board: {name[:40]!r}; known: {', '.join(KINDS)}, with -1, -2 ... for more of a kind")
    return kind


def work() -> Path:
    """The lab's folder: root file systems, and what the boards that are up write.

    ``$EDGEPIPE_LAB``, else in the user's cache folder: outside the repository, and not moved by ``$EDGEPIPE_HOME``, so
    that a test with a home of its own finds what was made before.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgepipe" / "lab"
    return Path(os.environ.get("EDGEPIPE_LAB") or base)


def run_folder(name: str) -> Path:
    """The folder of one board that is up."""
    return work() / "run" / name
