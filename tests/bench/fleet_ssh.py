"""A hundred real sshd on loopback as boards: push, run nothing, fetch; beside pyinfra and Ansible, forks equal."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgepipe.agent.measure import memory_peak_bytes
from edgepipe.errors import EdgepipeError
from edgepipe.link import _trust
from edgepipe.link.loopback import Sshd
from tests import fleet_kit as kit
from tests.bench.figure import Figure, at_most, missing
from tests.bench.peers.environments import Environment, MissingError

BOARDS, FORKS, ROUNDS = int(os.environ.get("SSH_BOARDS") or 100), 32, 2
PYINFRA = Environment("pyinfra", ("pyinfra==3.10.0",))
ANSIBLE = Environment("ansible", ("ansible-core==2.19.14",))
# What the peers run on a board: it reads what was pushed and times an empty call, as the null runtime does.
NOOP = """\
import json, sys, time
size = len(open(sys.argv[1], "rb").read())
samples = []
for _ in range(16):
    began = time.perf_counter_ns()
    samples.append(time.perf_counter_ns() - began)
json.dump({"bytes": size, "samples_ns": samples}, open(sys.argv[2], "w"))
"""


def figures(folder: Path) -> list[Figure]:
    """Wall time beside both peers, in turns; host memory and CPU for each board."""
    with contextlib.ExitStack() as stack:
        try:
            boards = {f"b{at:03}": stack.enter_context(Sshd(folder / "boards" / f"b{at:03}")) for at in range(BOARDS)}
        except EdgepipeError as error:
            return [missing("fleet: 100 boards over ssh", error.what)]
        site = _Site(folder, boards)
        first = site.edgepipe()  # the agent is sent, and the file is made
        subjects: dict[str, Callable[[], float]] = {"edgepipe": lambda: float(site.edgepipe()["wall"])}
        told: dict[str, str] = {}
        for name, environment, run in (("pyinfra", PYINFRA, site.pyinfra), ("Ansible", ANSIBLE, site.ansible)):
            try:
                python = environment.make()
                subjects[name] = lambda python=python, run=run: run(python)  # type: ignore[misc]
            except MissingError as error:
                told[name] = str(error)
        walls: dict[str, list[float]] = {name: [] for name in subjects}
        for _ in range(ROUNDS):
            for name, run_it in subjects.items():
                site.forget()
                walls[name].append(run_it())
        site.forget()
        last = site.edgepipe()
    ours = statistics.median(walls["edgepipe"])
    found = [
        _beside(name, limit, ours, walls.get(name), told.get(name, ""))
        for name, limit in (("pyinfra", 0.7), ("Ansible", 0.3))
    ]
    note = f"(agent sent too: {first['wall']:.1f} s)"
    name = f"fleet: {BOARDS} boards over ssh"
    return [
        *found,
        at_most(f"{name}, host memory a board", last["bytes"] / BOARDS / 1e6, 3.0, "MB"),
        at_most(f"{name}, host CPU a board", 1e3 * last["cpu"] / BOARDS, 60.0, "ms", note),
    ]


def _beside(name: str, limit: float, ours: float, theirs: list[float] | None, why: str) -> Figure:
    title = f"fleet: {BOARDS} boards over ssh, {FORKS} at a time, beside {name}"
    if theirs is None:
        return missing(title, why)
    other = statistics.median(theirs)
    return at_most(title, ours / other, limit, "x", f"({ours:.1f} s to {other:.1f} s)")


class _Site:
    """A user's home with an inventory of the boards for each of the three."""

    def __init__(self, folder: Path, boards: dict[str, Sshd]) -> None:
        self.folder, self.boards = folder, boards
        self.user = folder / "user"
        ssh = self.user / ".ssh"
        ssh.mkdir(parents=True, mode=0o700)
        self.environment = os.environ | {"HOME": str(self.user), "EDGEPIPE_HOME": str(folder / "home")}
        self.environment.pop("SSH_AUTH_SOCK", None)
        config, hosts, known = [], [], []
        for name, server in boards.items():
            assert server.host_key
            config.append(
                f"Host {name}\n  HostName 127.0.0.1\n  Port {server.port}\n"
                f"  IdentityFile {server.folder}/client_key\n  IdentitiesOnly yes\n"
            )
            hosts.append(
                f"{name} ansible_host=127.0.0.1 ansible_port={server.port} home={server.home} "
                f"ansible_ssh_private_key_file={server.folder}/client_key "
                f"edgepipe_python={sys.executable} edgepipe_root={server.home}/.edgepipe\n"
            )
            public = (server.folder / "host_key.pub").read_text().strip()
            known.append(f"[127.0.0.1]:{server.port} {public}\n")
        (ssh / "config").write_text("".join(config))
        (ssh / "known_hosts").write_text("".join(known))
        (folder / "inventory.ini").write_text("[all]\n" + "".join(hosts))
        (folder / "noop.py").write_text(NOOP)
        self.payload = folder / "payload"

    def forget(self) -> None:
        """Let the boards have nothing but the agent, and the host no result."""
        for server in self.boards.values():
            for name in ("blobs", "runs", "spool", "releases", "noop"):
                shutil.rmtree(server.home / ".edgepipe" / name, ignore_errors=True)
                shutil.rmtree(server.home / name, ignore_errors=True)
        shutil.rmtree(self.folder / "fetched", ignore_errors=True)

    def edgepipe(self) -> dict[str, Any]:
        """A run as a process of its own: its wall time, and CPU and memory beyond those of a run on one board."""
        words = [str(self.folder / "inventory.ini"), str(self.payload)]
        code = f"from tests.bench import fleet_ssh; fleet_ssh.be_host(*{words!r})"
        done = subprocess.run([sys.executable, "-c", code], check=True, env=self.environment, stdout=subprocess.PIPE)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def pyinfra(self, python: Path) -> float:
        """The same with pyinfra."""
        hosts = [
            (name, {
                "ssh_hostname": "127.0.0.1", "ssh_port": server.port, "ssh_key": f"{server.folder}/client_key",
                "ssh_known_hosts_file": str(self.user / ".ssh" / "known_hosts"), "ssh_strict_host_key_checking": "yes",
                "place": str(server.home / "noop"),
            })
            for name, server in self.boards.items()
        ]  # fmt: skip
        (self.folder / "inventory.py").write_text(f"boards = {hosts!r}\n")
        run = f"{sys.executable} {{p}}/noop.py {{p}}/payload {{p}}/result.json"
        (self.folder / "deploy.py").write_text(
            "from pyinfra import host\nfrom pyinfra.operations import files, server\n"
            "p = host.data.place\n"
            f"files.put(src={str(self.payload)!r}, dest=f'{{p}}/payload')\n"
            f"files.put(src={str(self.folder / 'noop.py')!r}, dest=f'{{p}}/noop.py')\n"
            f"server.shell(commands=[f'{run}'])\n"
            f"files.get(src=f'{{p}}/result.json', dest=f'{self.folder}/fetched/{{host.name}}.json')\n"
        )
        command = [
            str(python.parent / "pyinfra"), "-y", "--parallel", str(FORKS), str(self.folder / "inventory.py"),
            str(self.folder / "deploy.py"),
        ]  # fmt: skip
        return self._timed(command)

    def ansible(self, python: Path) -> float:
        """The same with Ansible, its connections kept and its modules piped."""
        play = [{
            "hosts": "all", "gather_facts": False, "tasks": [
                {"file": {"path": "{{ home }}/noop", "state": "directory"}},
                {"copy": {"src": str(self.payload), "dest": "{{ home }}/noop/payload"}},
                {"copy": {"src": str(self.folder / "noop.py"), "dest": "{{ home }}/noop/noop.py"}},
                {"command": "{{ ansible_python_interpreter }} {{ home }}/noop/noop.py {{ home }}/noop/payload "
                            "{{ home }}/noop/result.json"},
                {"fetch": {"src": "{{ home }}/noop/result.json", "flat": True,
                           "dest": f"{self.folder}/fetched/{{{{ inventory_hostname }}}}.json"}},
            ],
        }]  # fmt: skip
        (self.folder / "play.json").write_text(json.dumps(play))
        command = [
            str(python.parent / "ansible-playbook"), "-i", str(self.folder / "inventory.ini"), "-f", str(FORKS),
            "-e", f"ansible_python_interpreter={sys.executable}", str(self.folder / "play.json"),
        ]  # fmt: skip
        known = f"-o UserKnownHostsFile={self.user}/.ssh/known_hosts"
        more = {"SSH_ARGS": f"-o ControlMaster=auto -o ControlPersist=60s {known}", "LOCAL_TEMP": f"{self.folder}/tmp"}
        return self._timed(command, ANSIBLE_PIPELINING="1", **{f"ANSIBLE_{name}": text for name, text in more.items()})

    def _timed(self, command: list[str], **more: str) -> float:
        (self.folder / "fetched").mkdir()
        began = time.perf_counter()
        done = subprocess.run(
            command, env=self.environment | more, cwd=self.folder, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - began
        got = len(list((self.folder / "fetched").glob("*.json")))
        assert done.returncode == 0 and got == len(self.boards), (got, done.stdout[-2000:], done.stderr[-2000:])
        return seconds


def be_host(inventory: str, payload: str) -> None:
    """Be the host: one board first, so that what is asked once is not counted, then all; print what it took."""
    from edgepipe import fleet
    from edgepipe import inventory as hosts
    from edgepipe.fleet import plan
    from edgepipe.fleet.lane import Limits
    from edgepipe.journal import Journal

    members = [plan.member(host) for host in hosts.load(Path(inventory)).select("all")]
    for line in Path(inventory).read_text().splitlines()[1:]:
        _pin(line)
    limits = Limits(FORKS, FORKS)
    with kit._no_data():
        one = fleet.run(kit.request(members[:1], plan=kit.short(0)), kit.Silent(), lambda _: None, limits)
        cpu, memory, began = time.process_time(), _peak(), time.perf_counter()
        found = fleet.run(kit.request(members, plan=kit.short(0)), kit.Silent(), lambda _: None, limits)
    wall = time.perf_counter() - began
    assert one.error is None and found.error is None, found.error and found.error.what
    assert {report.measurement.status for report in found.document["reports"]} == {"ok"}
    shutil.copy(found.document["reports"][0].artifact.path, payload)
    told = {"wall": wall, "cpu": time.process_time() - cpu, "bytes": _peak() - memory, "kept": len(Journal().all())}
    print(json.dumps(told))


def _pin(line: str) -> None:
    """Pin the host key of a board."""
    words = dict(word.split("=", 1) for word in line.split()[1:])
    kind, text = Path(words["ansible_ssh_private_key_file"]).with_name("host_key.pub").read_text().split()[:2]
    host = _trust.host_id("127.0.0.1", int(words["ansible_port"]))
    _trust.write_pin(line.split(maxsplit=1)[0], _trust.HostKey(host, kind, base64.b64decode(text)))


def _peak() -> int:
    """The most memory this process has had, in bytes. Not getrusage, which may count what began it."""
    found = memory_peak_bytes()
    assert found, "this system does not tell"
    return found
