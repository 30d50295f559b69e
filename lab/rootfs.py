"""Root file systems of boards, made once by mmdebstrap and kept by a hash of what they are made of.

Packages are unpacked and never configured, so no foreign program runs meanwhile; the little that sshd and Python need
of configuration is written here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from lab import host
from lab.boards import Kind, work
from lab.host import LabError

_LEAN = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")
_FORM = 3  # count up when `_configure` changes
_SSHD = """\
ListenAddress 0.0.0.0
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile /etc/ssh/lab_key.pub
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
UseDNS no
PrintMotd no
MaxStartups 100
PidFile none
Subsystem sftp /usr/lib/openssh/sftp-server
"""


def root(kind: Kind, extra: tuple[str, ...] = ()) -> Path:
    """The root file system of a kind, made if need be: never written to afterwards.

    Raises:
        LabError: it can't be made; the text has the end of what mmdebstrap said.
    """
    packages = sorted((*kind.packages, *extra))
    named = json.dumps([_FORM, _SSHD, _LEAN, kind.suite, kind.machine, packages])
    folder = work() / "roots" / f"{kind.suite}-{kind.machine}-{hashlib.sha256(named.encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    print(f"making a root file system: Debian {kind.suite} for {kind.machine}", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        tree = scratch / "root"
        unpack(kind.suite, kind.machine, packages, tree)
        _configure(tree)
        tree.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def unpack(suite: str, machine: str, packages: list[str], tree: Path) -> None:
    """Unpack packages and what they need into a new folder.

    Raises:
        LabError: mmdebstrap failed.
    """
    options = [f"--include={','.join(packages)}", '--aptopt=Acquire::Languages "none"', *host.apt_options()]
    options += [f"--dpkgopt=path-exclude={path}" for path in _LEAN]
    for name in ("debian-archive-keyring.gpg", "debian-archive-removed-keys.gpg"):
        keys = Path("/usr/share/keyrings") / name
        options += [f"--keyring={keys}"] if keys.is_file() else []
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=extract", f"--architectures={machine}", *options]
    host.run(*command, suite, tree, host.mirror())


def _configure(tree: Path) -> None:
    """What maintainer scripts would have done, as far as it matters here."""
    for name in ("passwd", "group"):
        shutil.copy(tree / "usr/share/base-passwd" / f"{name}.master", tree / "etc" / name)
    accounts = tree / "etc/passwd"
    text = accounts.read_text().replace("root:*:", "root:x:", 1)
    accounts.write_text(text + "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n")
    (tree / "etc/shadow").write_text("root:*:19000:0:99999:7:::\nsshd:!:19000::::::\n")
    (tree / "etc/shadow").chmod(0o600)
    (tree / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n")
    (tree / "etc/ssh/sshd_config").write_text(_SSHD)
    for name in ("run/sshd", "root", "dev", "proc", "sys", "tmp"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    (tree / "tmp").chmod(0o1777)
    shell, python = tree / "bin/sh", tree / "usr/bin/python3"
    if not os.path.lexists(shell):
        shell.symlink_to("dash")
    if not os.path.lexists(python):
        found = sorted(path.name for path in (tree / "usr/bin").glob("python3.*") if path.name[8:].isdigit())
        if not found:
            raise LabError(f"no Python was unpacked into {tree}")
        python.symlink_to(found[0])
    # update-alternatives would have chosen these for numpy.
    for library in ("blas", "lapack"):
        for path in tree.glob(f"usr/lib/*/{library}/lib{library}.so.3"):
            link = path.parent.parent / path.name
            if not os.path.lexists(link):
                link.symlink_to(f"{library}/{path.name}")
