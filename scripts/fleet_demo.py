"""A fleet without hardware: private SSH servers on loopback ports, each a board with a home and a host key of its own.

BOARDS=20 of them, SICK=2 of which are gone, hung or show another board's key. Runs MODELS x RECIPES x FORMATS on all,
shows the page of `edgepipe serve` meanwhile, writes out/fleet-demo/report.html, and exits 0 if every healthy board has
done all and every sick one is reported.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path

from edgepipe import fleet, inventory, paths, report
from edgepipe.cli import console
from edgepipe.fleet import plan
from edgepipe.fleet.analysis import section, table, variation
from edgepipe.fleet.breaker import Patience
from edgepipe.fleet.lane import Lane, Limits
from edgepipe.link import _trust
from edgepipe.link.loopback import Sshd, descendants
from edgepipe.schema import Plan
from edgepipe.serve.server import Server
from edgepipe.serve.state import State

# Short on purpose: twenty boards share this machine, so their times are worth nothing; only that all is done counts.
SHORT = Plan("demo", processes=1, min_seconds=0.5, min_samples=64, warmup_seconds=0.1, warmup_cap_seconds=1.0)
ILLS = ("gone", "hung", "changed")


def setting(name: str, default: str) -> str:
    """A setting of the environment."""
    return os.environ.get(name) or default


def main() -> int:
    """Bring up the boards, run, judge."""
    count, sick = int(setting("BOARDS", "20")), int(setting("SICK", "2"))
    folder = Path(setting("OUT", "out/fleet-demo")).resolve()
    os.environ.setdefault("EDGEPIPE_CACHE", str(paths.cache_home()))  # files made before are not made again
    os.environ |= {"HOME": str(folder / "user"), "EDGEPIPE_HOME": str(folder / "data")}
    os.environ.pop("SSH_AUTH_SOCK", None)
    with contextlib.ExitStack() as stack:
        names = [f"board-{at:02}" for at in range(1, count + 1)]
        servers = {name: stack.enter_context(Sshd(folder / "boards" / name)) for name in names}
        stopped: list[int] = []
        stack.callback(wake, stopped)
        ill = {name: ILLS[at % len(ILLS)] for at, name in enumerate(names[:: max(1, count // max(sick, 1))][:sick])}
        path = inventory_of(servers, folder)
        for name, how in ill.items():
            stopped += sicken(servers, name, how)
        show_page(stack)
        found = run(path, ill)
    page = folder / "report.html"
    rows = table.rows(str(found["run"]), fleet.find(str(found["run"]))[1], found["reports"])
    report.write_html(found["reports"], page, section.section(variation.of(rows)))
    print(f"wrote {page}; EDGEPIPE_HOME={folder / 'data'} edgepipe serve shows the run again", file=sys.stderr)
    return judge(found, ill)


def show_page(stack: contextlib.ExitStack) -> None:
    """Serve the page of the run on a port of its own for as long as the boards are there."""
    server = stack.enter_context(Server("127.0.0.1", 0, State()))
    threading.Thread(target=server.serve_forever, name="page", daemon=True).start()
    stack.callback(server.shutdown)
    print(f"see it in a browser while it goes on: {server.url}", file=sys.stderr)


def inventory_of(servers: dict[str, Sshd], folder: Path) -> Path:
    """Write what a user has: an inventory, an SSH configuration that names the keys, and pinned host keys."""
    lines, hosts = [], []
    for at, (name, server) in enumerate(servers.items()):
        hop = server.hop()
        lines.append(
            f"Host {name}\n  HostName 127.0.0.1\n  Port {hop.port}\n  User {hop.user}\n"
            f"  IdentityFile {server.folder}/client_key\n  IdentitiesOnly yes\n"
        )
        hosts.append(
            f"{name} edgepipe_site=room-{at % 2 + 1} edgepipe_python={sys.executable} "
            f"edgepipe_root={server.home}/.edgepipe\n"
        )
        assert server.host_key
        key = _trust.HostKey(_trust.host_id("127.0.0.1", hop.port), server.host_key.kind, server.host_key.blob)
        _trust.write_pin(name, key)
    config = folder / "user" / ".ssh" / "config"
    config.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    config.write_text("".join(lines), encoding="utf-8")
    path = folder / "inventory.ini"
    path.write_text("[demo]\n" + "".join(hosts), encoding="utf-8")
    return path


def sicken(servers: dict[str, Sshd], name: str, how: str) -> list[int]:
    """Make a board sick; returns the processes that were stopped, to be woken in the end."""
    server = servers[name]
    if how == "gone":
        server.stop()
    elif how == "changed":
        other = next(each for each in servers.values() if each is not server)
        assert other.host_key
        host = _trust.host_id("127.0.0.1", server.port)
        _trust.write_pin(name, _trust.HostKey(host, other.host_key.kind, other.host_key.blob))
    elif server._process:
        pids = descendants(server._process.pid)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        return pids
    return []


def wake(pids: list[int]) -> None:
    """Let stopped servers end."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def run(path: Path, ill: dict[str, str]) -> dict[str, object]:
    """Run the matrix on all boards."""
    members = [plan.member(host) for host in inventory.load(path).select("demo")]
    matrix = plan.Matrix(
        setting("MODELS", "fashion-mbv2,fashion-resnet8").split(","),
        setting("RECIPES", "none,dynamic,int8").split(","),
        setting("FORMATS", "onnx,tflite").split(","),
    )
    request = plan.Request(members, matrix.cells(), SHORT, evaluation="shipped")
    # Boards of one machine get in each other's way: a few at a time, and none is slow for that.
    limits = Limits(max(2, 2 * (os.cpu_count() or 1)), 4, Patience(cooldown=3.0, grace=5.0))
    with console.open_progress(quiet=False) as progress:
        progress.note(
            f"{len(members)} boards, of which {', '.join(f'{n} is {how}' for n, how in ill.items()) or 'all well'}"
        )

        def watch(lane: Lane) -> None:
            if lane.ended:
                progress.note(f"{lane.name}: {lane.state} {lane.reason if lane.state == 'gone' else ''}".rstrip())

        return fleet.run(request, progress, watch, limits).document


def judge(found: dict[str, object], ill: dict[str, str]) -> int:
    """Say what became of the boards; 0 if each did what it should."""
    boards = found["boards"]
    assert isinstance(boards, list)
    wrong = [
        b["name"]
        for b in boards
        if (b["state"] == "done") == (b["name"] in ill) or (b["name"] in ill and not b["reason"])
    ]
    done = sum(board["state"] == "done" for board in boards)
    print(f"{done} of {len(boards)} boards did all, {len(ill)} sick ones are reported; {found['done']} trials kept")
    if wrong:
        print(f"not as it should be: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
