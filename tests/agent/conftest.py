"""A real agent over pipes, as a board runs it: from the zipapp, by any Python."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgepipe import pack
from edgepipe.codec import to_dict
from edgepipe.schema import Artifact, FileRef, Manifest, Plan, Preprocessing, RunOptions, TensorSpec

QUICK = Plan(
    processes=2, min_seconds=0.2, min_samples=20, warmup_seconds=0.1, warmup_cap_seconds=1.0, deadline_seconds=30
)


def sha(data):
    return hashlib.sha256(data).hexdigest()


class Agent:
    """The host's half of the protocol, as plain as can be."""

    def __init__(self, command, root, cwd, sysfs_root="/", **more):
        self.root = Path(root)
        self.process = subprocess.Popen(
            [*command, "serve", "--root", str(root), "--sysfs-root", str(sysfs_root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            **more,
        )
        self.events = []

    def send(self, verb, payload=None, **args):
        request = {"verb": verb, "args": to_dict_deep(args)}
        if payload is not None:
            request["size"] = len(payload)
        self.raw(json.dumps(request).encode() + b"\n" + (payload or b""))

    def raw(self, data):
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def reply(self):
        while True:
            line = self.process.stdout.readline()
            assert line, self.process.stderr.read()[-2000:]
            message = json.loads(line)
            if message.get("event") != "progress":
                break
            self.events.append(message)
        if message.get("size"):
            message["data"] = self.process.stdout.read(message["size"])
        return message

    def ask(self, verb, payload=None, **args):
        self.send(verb, payload, **args)
        return self.reply()

    def good(self, verb, payload=None, **args):
        message = self.ask(verb, payload, **args)
        assert message["ok"], message
        return message["result"]

    def bad(self, verb, payload=None, **args):
        message = self.ask(verb, payload, **args)
        assert not message["ok"], message
        return message["error"]

    def push(self, *contents):
        for content in contents:
            assert self.good("put", content, sha256=sha(content), size=len(content))["complete"]

    def bench(self, manifest, plan=QUICK, options=None, **more):
        return self.good("bench", manifest=manifest, plan=plan, options=options or RunOptions(), **more)

    def children(self):
        """Pids of processes the agent started, and theirs."""
        found, todo = [], [self.process.pid]
        while todo:
            pid = todo.pop()
            try:
                more = [
                    int(each)
                    for task in Path(f"/proc/{pid}/task").iterdir()
                    for each in (task / "children").read_text().split()
                ]
            except OSError:
                continue
            found += more
            todo += more
        return found

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self, seconds=5):
        self.process.stdin.close()
        return self.process.wait(seconds)


def to_dict_deep(args):
    return {
        key: [to_dict(item) for item in value] if isinstance(value, list) else to_dict(value)
        for key, value in args.items()
    }


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def eventually(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(condition())


class Tools:
    """What tests share; a fixture, so that no test module is imported by another."""

    Agent, QUICK = Agent, QUICK
    sha, alive, eventually = staticmethod(sha), staticmethod(alive), staticmethod(eventually)

    @staticmethod
    def null(sleep=0.0, outputs=((10,),), name="model", extra=(), **more):
        """A release of the null format: (manifest, its one file's bytes)."""
        content = json.dumps({"outputs": [list(shape) for shape in outputs], "sleep_s": sleep, "note": name}).encode()
        files = [FileRef("model.json", sha(content), len(content)), *extra]
        artifact = Artifact(
            "null", "model.json", len(content), 0, sha(content), files,
            [TensorSpec("x", [-1, 4])],
            [TensorSpec(f"y{i}", [-1, *it]) for i, it in enumerate(outputs)], Preprocessing(),
        )  # fmt: skip
        return Manifest(name=name, artifact=artifact, runtime="null", **more), content

    @staticmethod
    def artifact(fmt, path, inputs, outputs, files=None, **more):
        """An artifact of files that lie beside each other."""
        paths = [Path(path), *(files or [])]
        refs = [FileRef(each.name, sha(each.read_bytes()), each.stat().st_size) for each in paths]
        pre = more.pop("preprocessing", Preprocessing())
        return Artifact(
            fmt, str(path), sum(ref.bytes for ref in refs), 0, refs[0].sha256, refs, inputs, outputs, pre, **more
        )


@pytest.fixture(scope="session")
def tools():
    return Tools


@pytest.fixture(scope="session")
def pyz(tmp_path_factory):
    content, digest = pack.agent_zipapp()
    path = tmp_path_factory.mktemp("pyz") / f"{digest}.pyz"
    path.write_bytes(content)
    return path


@pytest.fixture
def start(tmp_path, pyz):
    """Start agents; all of them and their children are gone after the test."""
    started = []

    def begin(root=None, python=sys.executable, command=None, pyz=pyz, **more):
        agent = Agent(command or [str(python), str(pyz)], root or tmp_path / "root", tmp_path, **more)
        started.append(agent)
        return agent

    yield begin
    for agent in started:
        pids = agent.children()
        if agent.process.poll() is None:
            agent.kill()
        for pid in pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        for stream in (agent.process.stdin, agent.process.stdout, agent.process.stderr):
            with contextlib.suppress(OSError):
                stream.close()


@pytest.fixture
def agent(start):
    return start()
