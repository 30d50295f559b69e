"""One board of the native or the user tier, kept by one process: ``python -m lab.keeper NAME``.

The board is a process tree in mount, network, host name and process namespaces of its own, with nothing but a loopback
device: it reaches nobody. This process is outside, listens on 127.0.0.1 of the machine and passes connections on to
the board's port 22. When it ends, so does all of the board, and the kernel takes mounts and namespaces away.

SIGTERM ends it. SIGHUP pulls the board's plug and starts it again, its disk as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from lab import shapes
from lab.boards import kind_of, run_folder
from lab.cgroup import Group
from lab.host import LabError

_CLONE_NEWNET = 0x40000000
_START_SECONDS = 60.0
_SSH = ("127.0.0.1", 22)


class Keeper:
    """The board called ``name``; ``disk_mb`` above 0 makes its disk a small one in memory."""

    def __init__(self, name: str, disk_mb: int) -> None:
        self.name, self.kind, self.folder = name, kind_of(name), run_folder(name)
        self.group = Group(name)
        self.group.make()
        self.open: set[asyncio.StreamWriter] = set()
        shape = self.folder / "shape"
        if self.kind.shape:
            shapes.build(self.kind.shape, shape)
        (self.folder / "root").mkdir(exist_ok=True)
        (self.folder / "disk").mkdir(exist_ok=True)
        self._environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "ROOT": str(self.folder / "base"),
            "SHAPE": str(shape) if self.kind.shape else "",
            "FOLDER": str(self.folder),
            "NAME": name,
            "DISK_MB": str(disk_mb),
            "QEMU_CPU": self.kind.cpu,
            "GROUPS_OF_BOARD": " ".join(map(str, self.group.members())),
        }
        self._board: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the board and wait until its sshd answers.

        Raises:
            LabError: it does not.
        """
        script = Path(__file__).with_name("start-board.sh")
        command = ["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", str(script)]
        with (self.folder / "log").open("ab") as log:
            self._board = subprocess.Popen(
                command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until = time.monotonic() + _START_SECONDS
        own = os.stat("/proc/thread-self/ns/net").st_ino  # noqa: PTH116 - a namespace is no path to resolve
        while time.monotonic() < until and self._board.poll() is None:
            time.sleep(0.02)
            if _enter_network(self._board.pid, own):
                with contextlib.suppress(OSError), socket.create_connection(_SSH, 5) as probe:
                    if probe.recv(4) == b"SSH-":
                        return
        said = (self.folder / "log").read_text("utf-8", "replace").strip()[-500:]
        raise LabError(f"board {self.name} does not start: {said}")

    def stop(self) -> None:
        """Pull the plug: every process of the board ends at once, in the middle of whatever it does."""
        for writer in [*self.open]:
            writer.transport.abort()
        if self._board:
            self.group.freeze(frozen=False)
            self._board.kill()
            self._board.wait()

    def restart(self) -> None:
        """Pull the plug, and start again."""
        self.stop()
        self.start()

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: to the board's own port, both ways."""
        try:
            to_reader, to_writer = await asyncio.open_connection(*_SSH)
        except OSError:
            writer.close()
            return
        self.open |= {writer, to_writer}
        await asyncio.gather(_pump(reader, to_writer), _pump(to_reader, writer))
        self.open -= {writer, to_writer}


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()


def _enter_network(pid: int, own: int) -> bool:
    """Let this thread open its sockets in the network namespace of a process, once that has one of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        with open(f"/proc/{pid}/ns/net", "rb") as space:  # noqa: PTH123 - a namespace is no path to resolve
            if os.fstat(space.fileno()).st_ino == own:
                return False
            return int(libc.setns(space.fileno(), _CLONE_NEWNET)) == 0
    except OSError:
        return False


async def _serve(keeper: Keeper, listener: socket.socket) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: _restart(keeper, listener))
    server = await asyncio.start_server(keeper.pass_on, sock=listener)
    _ready(keeper, listener)
    await ended.wait()
    server.close()


def _restart(keeper: Keeper, listener: socket.socket) -> None:
    keeper.restart()
    _ready(keeper, listener)


def _ready(keeper: Keeper, listener: socket.socket) -> None:
    """Tell whoever waits that the board is up; the file is there whole or not at all."""
    new = keeper.folder / "ready.new"
    new.write_text(json.dumps({"port": listener.getsockname()[1]}))
    new.rename(keeper.folder / "ready")


def main() -> int:
    """Keep the board named on the command line until SIGTERM."""
    name, disk_mb = sys.argv[1], int(sys.argv[2])
    # Bound before this process enters the board's network: it stays the machine's.
    listener = socket.create_server(("127.0.0.1", 0))
    keeper = Keeper(name, disk_mb)
    try:
        keeper.start()
        asyncio.run(_serve(keeper, listener))
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        keeper.stop()
        keeper.group.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
