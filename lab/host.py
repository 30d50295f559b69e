"""What the lab needs of this machine: root, namespaces, emulators, a Debian mirror. Says what lacks, or brings it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

NATIVE = {"sshd": "openssh-server", "mmdebstrap": "mmdebstrap", "unshare": "util-linux", "ip": "iproute2"}
USER = {"qemu-aarch64-static": "qemu-user-static", "update-binfmts": "binfmt-support"}
# The tiers and the programs each of them adds, with the Debian package that brings it.
MACHINE = {"qemu-system-aarch64": "qemu-system-arm", "mke2fs": "e2fsprogs"}
TIERS = {"native": NATIVE, "user": {**NATIVE, **USER}, "machine": {**NATIVE, **MACHINE}}
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_PLACES = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin:/sbin"


class LabError(Exception):
    """The lab can't do this here; the text says why and what would help."""


def run(*argv: str | Path, stdin: str | None = None) -> str:
    """Run a program to its end and return what it printed.

    Raises:
        LabError: it failed; the text has the end of what it said.
    """
    words = [str(word) for word in argv]
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(words)[:200]} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def missing(tier: str) -> str:
    """Why boards of a tier can't run here, or nothing if they can. Changes nothing."""
    if os.geteuid():
        return "the lab needs root, for namespaces and mounts"
    if lacking := _lacking(tier):
        return f"not installed: {', '.join(lacking)} (make lab installs them)"
    if tier == "user" and not _registered():
        return "binfmt_misc does not run aarch64 and armv7 programs here (make lab sets it up where the kernel can)"
    try:
        run("unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "true")
        mirror()
    except LabError as error:
        return str(error)
    return ""


def prepare(tier: str) -> None:
    """Install what is missing for a tier and register the emulators.

    Raises:
        LabError: not root, no apt, no network, or a kernel without binfmt_misc.
    """
    if os.geteuid():
        raise LabError("the lab needs root, for namespaces and mounts: run it as root")
    if lacking := _lacking(tier):
        if not shutil.which("apt-get"):
            raise LabError(f"the lab is made for Debian and Ubuntu; install yourself: {', '.join(lacking)}")
        print(f"installing {', '.join(lacking)}", flush=True)
        run("apt-get", "-qq", "update")
        install = ("apt-get", "-qq", "-y", "install", "--no-install-recommends")
        run("env", "DEBIAN_FRONTEND=noninteractive", *install, *lacking)
    if tier == "user" and not _registered():
        if not (_BINFMT / "register").exists():
            run("mount", "-t", "binfmt_misc", "binfmt_misc", _BINFMT)
        for name in ("qemu-aarch64", "qemu-arm"):
            run("update-binfmts", "--enable", name)
    if why := missing(tier):
        raise LabError(why)


def _lacking(tier: str) -> list[str]:
    """Debian packages of the programs a tier needs and does not find."""
    return sorted({package for program, package in TIERS[tier].items() if not shutil.which(program, path=_PLACES)})


def _registered() -> bool:
    """Whether the kernel runs foreign programs also in a chroot that holds no emulator (flag F)."""
    try:
        texts = [(_BINFMT / name).read_text() for name in ("qemu-aarch64", "qemu-arm")]
    except OSError:
        return False
    flags = [line for text in texts for line in text.splitlines() if line.startswith("flags:")]
    return all(text.startswith("enabled") for text in texts) and all("F" in flag for flag in flags)


def mirror() -> str:
    """The Debian mirror that this machine's own apt uses.

    Raises:
        LabError: apt has none.
    """
    fields = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    for line in run("apt-get", "indextargets", "--format", fields, "Created-By: Packages").splitlines():
        uri, release, component = line.split()
        # Security and update archives hold no whole system; others are not Debian.
        if component == "main" and uri.rstrip("/").endswith("debian") and "-" not in release:
            return uri
    raise LabError("apt has no Debian mirror here (its sources name none, or apt-get update never ran)")


def apt_options() -> list[str]:
    """How mmdebstrap reaches that mirror the way apt does here: its proxies and certificates."""
    found = []
    for line in run("apt-config", "dump").splitlines():
        key = line.partition(" ")[0].lower()
        if key.startswith(("acquire::http::", "acquire::https::")) and not line.endswith('"";'):
            found.append(f"--aptopt={line.rstrip(';')}")
    return found
