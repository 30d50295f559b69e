"""A whole emulated board: Debian's arm64 kernel on qemu-system-aarch64, an ext4 disk, and a plug to pull.

Real here, beside the userland: the kernel, its file system and journal, and when data reaches the drive (`lab.drive`).
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import random
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from edgepipe.link._trust import HostKey, write_pin
from edgepipe.targets import Target
from lab import control, host, rootfs
from lab.boards import KINDS, Kind, work
from lab.drive import KEPT, Drive
from lab.host import LabError

CPU = "cortex-a72"
_KERNEL = "linux-image-cloud-arm64"
# In the order in which they can be loaded.
_MODULES = (
    "virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk", "failover",
    "net_failover", "virtio_net",
)  # fmt: skip
_START_SECONDS, _GREETING_SECONDS = 240.0, 30.0
_IMAGE_MB = 512
_INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
for module in $(cat /lib/order); do insmod /lib/$module.ko; done
until [ -b /dev/vda ]; do sleep 0.05; done
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0
mount -t ext4 -o noatime /dev/vda /mnt || exec sh
mount --move /dev /mnt/dev; mount --move /proc /mnt/proc; mount --move /sys /mnt/sys
mkdir -p /mnt/dev/shm /mnt/dev/pts
mount -t tmpfs shm /mnt/dev/shm; mount -t devpts pts /mnt/dev/pts
exec switch_root /mnt /usr/sbin/sshd -D -e
"""


class Machine:
    """A board with its disk in ``folder``. `start` boots it; `pull` cuts its power, and it can be started again."""

    def __init__(self, folder: Path, kind: Kind = KINDS["pi4"]) -> None:
        self.folder = folder
        self._kernel, self._initrd = _kernel(kind)
        self.image = folder / "disk.img"
        self._key = control.login_key()
        _make_image(kind, folder, self.image, self._key)
        self._drive: Drive | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def start(self) -> None:
        """Boot, and wait for the SSH server.

        Raises:
            LabError: it does not come; the text has the end of what its console said.
        """
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        plug = self.folder / "drive"
        self._drive = Drive(self.image, plug)
        command = [
            "qemu-system-aarch64", "-M", "virt", "-cpu", CPU, "-smp", "1", "-m", "512", "-nographic", "-no-reboot",
            "-kernel", str(self._kernel), "-initrd", str(self._initrd), "-append", "console=ttyAMA0 quiet panic=-1",
            "-drive", f"file=nbd:unix:{plug},if=none,id=disk,format=raw,cache=none",
            "-device", "virtio-blk-pci,drive=disk", "-device", "virtio-net-pci,netdev=net,romfile=",
            "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:22",
        ]  # fmt: skip
        with (self.folder / "console").open("wb") as console:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        until = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                said = (self.folder / "console").read_text("utf-8", "replace").strip()[-500:]
                self.pull(KEPT, random.Random())  # noqa: S311
                raise LabError(f"the machine does not boot: {said}")
            time.sleep(0.1)

    def pull(self, how: str, rng: random.Random) -> int:
        """Pull the plug. ``how`` says what becomes of the drive's cache; returns the bytes that were in it."""
        drive, process = self._drive, self._process
        self._drive = self._process = None
        left = drive.cut(how, rng) if drive else 0
        if process:
            process.kill()
            process.wait()
        return left

    def target(self, name: str) -> Target:
        """The machine as a target; its host key is trusted under that name."""
        kind, blob, *_ = (self.folder / "host_key.pub").read_text().split()
        write_pin(name, HostKey(f"[127.0.0.1]:{self.port}", kind, base64.b64decode(blob)))
        return Target(name, host=f"root@127.0.0.1:{self.port}", identity=str(self._key))

    def _answers(self) -> bool:
        try:
            # A guest on a busy machine takes its time, and must not be asked again meanwhile.
            with socket.create_connection(("127.0.0.1", self.port), _GREETING_SECONDS) as probe:
                return probe.recv(4) == b"SSH-"
        except OSError:
            return False


def _kernel(kind: Kind) -> tuple[Path, Path]:
    """Kernel and initial file system, made once."""
    named = json.dumps([kind.suite, kind.machine, _KERNEL, _MODULES, _INIT])
    folder = work() / "kernels" / hashlib.sha256(named.encode()).hexdigest()[:12]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
        try:
            tree, made = scratch / "tree", scratch / "made"
            rootfs.unpack(kind.suite, kind.machine, [_KERNEL, "busybox-static"], tree)
            made.mkdir()
            shutil.copy(next(tree.glob("boot/vmlinuz-*")), made / "vmlinuz")
            (made / "initrd").write_bytes(gzip.compress(_archive(_first_files(tree)), 1))
            made.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder / "vmlinuz", folder / "initrd"


def _first_files(tree: Path) -> dict[str, bytes | None]:
    """What the kernel starts with: folders (None) and programs."""
    files: dict[str, bytes | None] = dict.fromkeys(("bin", "dev", "lib", "mnt", "proc", "sys"))
    (busybox,) = [path for path in (tree / "bin/busybox", tree / "usr/bin/busybox") if path.is_file()][:1]
    files |= {"bin/busybox": busybox.read_bytes(), "init": _INIT.encode()}
    for name in _MODULES:
        (module,) = tree.glob(f"lib/modules/*/kernel/**/{name}.ko")
        files[f"lib/{name}.ko"] = module.read_bytes()
    files["lib/order"] = " ".join(_MODULES).encode()
    return files


def _archive(files: dict[str, bytes | None]) -> bytes:
    """A cpio archive in the kernel's format (newc); see its Documentation/driver-api/early-userspace/buffer-format."""
    found = bytearray()
    for number, (name, data) in enumerate([*files.items(), ("TRAILER!!!", b"")], 1):
        content, mode = data or b"", 0o40755 if data is None else 0o100755
        fields = [number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
        found += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        found += bytes(-len(found) % 4) + content
        found += bytes(-len(found) % 4)
    return bytes(found)


def _make_image(kind: Kind, folder: Path, image: Path, key: Path) -> None:
    """An ext4 disk with a root file system and keys of its own."""
    host.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", folder / "host_key")
    tree = folder / "tree"
    host.run("cp", "-a", "--link", rootfs.root(kind), tree)
    try:
        shutil.copy(key.with_suffix(".pub"), tree / "etc/ssh/lab_key.pub")
        shutil.copy(folder / "host_key", tree / "etc/ssh/ssh_host_ed25519_key")
        host.run("mke2fs", "-q", "-t", "ext4", "-d", tree, image, f"{_IMAGE_MB}M")
    finally:
        shutil.rmtree(tree)
