"""Nothing measured is lost, and nothing counts twice: host, agent and link fail at each message; replays merge."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgepipe import bench, deploy, leftovers, paths
from edgepipe import board as boards
from edgepipe.agent import spool
from edgepipe.agent.store import Store
from edgepipe.codec import canonical, from_dict
from edgepipe.errors import BoardError, EdgepipeError, IntegrityError, LinkError
from edgepipe.journal import Journal, new_id
from edgepipe.progress import Silent
from edgepipe.schema import Artifact, FileRef, Manifest, Plan, Preprocessing, RunOptions
from edgepipe.targets import Target
from tests.guarantees.figure import report, scale
from tests.unit import report_samples

PLAN = Plan(processes=2, min_seconds=0.02, min_samples=4, warmup_seconds=0.0, warmup_runs=1, warmup_cap_seconds=0.1)
CONTENT = json.dumps({"outputs": [[10]], "sleep_s": 0.001, "note": ""}).encode()
REF = FileRef("model.json", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
MANIFEST = Manifest(
    "m", Artifact("null", REF.name, REF.bytes, 0, REF.sha256, [REF], [], [], Preprocessing(), model="m"), "null"
)


class Fault(Exception):  # noqa: N818  the host dies: nothing of edgepipe's catches it
    pass


class Fuse:
    """Counts the messages that pass through a client's channel, and at one of them host, link or agent fails."""

    def __init__(self, client: boards.BoardClient, at: int, how: str) -> None:
        self.at, self.how, self.passed = at, how, 0
        self._agent = agent_pid()
        channel = client.channel()
        send, line = channel.send, channel.line

        def fused_send(data: bytes, until: float) -> None:
            self._message()
            send(data, until)

        def fused_line(until: float, limit: int) -> bytes:
            found = line(until, limit)
            self._message()
            return found

        channel.send, channel.line = fused_send, fused_line  # type: ignore[method-assign]

    def _message(self) -> None:
        self.passed += 1
        if self.passed == self.at and self.how == "agent":
            os.kill(self._agent, signal.SIGKILL)
        elif self.passed == self.at:
            raise Fault if self.how == "host" else LinkError("cut")


def connect() -> boards.BoardClient:
    return boards.connect(Target("rack", link="local"), "me@desk", Silent())


def agent_pid() -> int:
    """The one agent that serves this test's folder."""
    root = str(paths.data_home()).encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"serve" in words and any(root in word for word in words):
            return int(entry.name)
    raise AssertionError("no agent")


def measure(client: boards.BoardClient, name: str) -> None:
    """What deploy does: push, measure, keep, acknowledge."""
    client.push([(CONTENT, REF)])
    result = bench.measure(client, MANIFEST, PLAN, RunOptions(), None, Silent(), name)
    facts = bench.facts_of(MANIFEST.artifact)
    made = bench.blank_report(facts, MANIFEST.artifact, client.hello().board, "rack", MANIFEST)
    Journal().append_report(replace(made, id=name, measurement=result))
    client.forget([name])


@pytest.mark.guarantee
@pytest.mark.parametrize("how", ["host", "agent", "link"])
def test_a_fault_at_any_message_loses_nothing(how, own_home):
    root = paths.data_home() / "boards" / "local" / ".edgepipe"
    lost = twice = tried = 0
    for at in range(1, 1000, scale(3, 1)):
        name, client = new_id(), connect()
        fuse = Fuse(client, at, how)
        try:
            measure(client, name)
        except (Fault, EdgepipeError):
            pass
        finally:
            client.close()
        measured = list((root / "runs").glob(f"{name}.*"))
        with connect() as client:
            leftovers.collect(client, Silent())
            assert leftovers.collect(client, Silent()) == []
        kept = Counter(one.id for one in Journal().all())
        if fuse.passed < at:
            break
        tried += 1
        lost += bool(measured) and not kept[name]
        twice += kept[name] > 1
        assert not list((root / "runs").iterdir())
    report(
        12, f"{how} failed at {tried} of {at} messages: {lost} lost, {twice} twice", ok=not lost + twice and tried > 2
    )


def waiting(store: Store, name: str, raw: object) -> None:
    spool.keep(store, spool.Run(name, "me@desk", 1.0, MANIFEST, PLAN, RunOptions(), raw))  # type: ignore[arg-type]


def test_a_lost_link_stands_in_the_record_until_the_board_hands_the_run_over(own_home):
    name, client = new_id(), connect()
    client.push([(CONTENT, REF)])
    facts, artifact = bench.facts_of(MANIFEST.artifact), MANIFEST.artifact
    blank = replace(bench.blank_report(facts, artifact, client.hello().board, "rack", MANIFEST), id=name)
    candidate = SimpleNamespace(report=blank, manifest=MANIFEST, artifact=artifact, inputs=None, export=None)
    client.channel().line = lambda until, limit: (_ for _ in ()).throw(LinkError("cut"))  # type: ignore[method-assign]
    with pytest.raises(LinkError, match="cut"):
        deploy.measure(candidate, SimpleNamespace(plan=PLAN, options=RunOptions()), client, Silent())
    (lost,) = [one.measurement for one in Journal().all() if one.id == name]
    assert lost and (lost.status, lost.reason, lost.latency_ms) == ("unreachable", "cut", None)
    raw = report_samples.raw(report_samples.steady(random.Random(3), calls=5))
    waiting(Store(str(paths.data_home() / "boards" / "local" / ".edgepipe")), name, raw)  # its agent went on
    client.close()
    with connect() as again:
        assert leftovers.collect(again, Silent()) == [name]
    (found,) = [one.measurement for one in Journal().all() if one.id == name]
    assert found and found.status != "unreachable" and found.latency_ms


def collect(board: SimpleNamespace) -> None:
    with contextlib.suppress(Fault, LinkError):
        leftovers.collect(board, Silent())  # type: ignore[arg-type]


RUNS = scale(150, 10_000)


@pytest.mark.guarantee
def test_of_many_runs_none_is_lost_or_counted_twice(tmp_path, monkeypatch):
    """Replies lost, acknowledgements lost, hosts that die before or after their journal's fsync."""
    monkeypatch.setenv("EDGEPIPE_HOME", str(tmp_path / "home"))
    store = Store(str(tmp_path / "board"))
    store.prepare()
    source = random.Random(12)
    raw = report_samples.raw(report_samples.steady(source, calls=5))

    def fetch(name: str) -> spool.Run:
        return from_dict(spool.Run, json.loads(Path(spool.path(store, name, "me@desk")).read_bytes()))

    def forget(names: list[str]) -> int:
        if source.random() < 0.3:
            raise LinkError("cut before it arrived")
        done = spool.forget(store, names, "me@desk")
        if source.random() < 0.3:
            raise LinkError("cut after it arrived")
        return done

    facts = report_samples.report().board
    board = SimpleNamespace(
        where="board",
        target=SimpleNamespace(name="rack"),
        hello=lambda: SimpleNamespace(runs=spool.waiting(store, "me@desk"), board=facts),
        run=fetch,
        forget=forget,
    )
    append = Journal.append_report

    def failing(self: Journal, made: object) -> object:
        fate = source.random()
        if fate < 0.2:
            raise Fault
        done = append(self, made)  # type: ignore[arg-type]
        if fate < 0.4:
            raise Fault
        return done

    monkeypatch.setattr(Journal, "append_report", failing)
    names = []
    for number in range(RUNS):
        names.append(f"run-{number:05d}")
        waiting(store, names[-1], raw)
        for _ in range(source.randrange(3)):
            collect(board)
    while spool.waiting(store, "me@desk"):
        collect(board)
    kept = Counter(one.id for one in Journal().all())
    lost, twice = sum(not kept[name] for name in names), sum(count > 1 for count in kept.values())
    report(12, f"{RUNS:,} runs: {lost} lost, {twice} twice", ok=not lost + twice)


def test_a_damaged_run_stays_and_is_told(own_home):
    with connect() as client:
        client.status([])
        store = Store(str(paths.data_home() / "boards" / "local" / ".edgepipe"))
        waiting(store, "torn", report_samples.raw(report_samples.steady(random.Random(1), calls=5)))
        path = Path(spool.path(store, "torn", "me@desk"))
        path.write_bytes(path.read_bytes()[:-5])
        client.refresh()
        assert leftovers.collect(client, Silent()) == [] and path.exists()
        with pytest.raises(IntegrityError, match="damaged"):
            client.run("torn")


def test_what_waits_is_never_dropped_and_no_more_is_measured(own_home, tmp_path):
    """Hosts that never come back bound what may be measured, and a person frees the board."""
    with connect() as client:
        client.status([])
        store = Store(str(paths.data_home() / "boards" / "local" / ".edgepipe"))
        raw = report_samples.raw([])
        for number in range(spool.MOST):
            waiting(store, f"r{number:03d}", raw)
        client.push([(CONTENT, REF)])
        refused = bench.measure(client, MANIFEST, PLAN, RunOptions(), None, Silent(), "one-more")
        assert refused.status == "failed" and "100 measured runs wait on the board" in refused.reason
        assert len(spool.waiting(store, "me@desk")) == spool.MOST and spool.waiting(store, "another@desk") == []
        assert client.gc().runs == 0 and len(spool.waiting(store, "me@desk")) == spool.MOST
        assert client.gc(drop_runs=True).runs == spool.MOST and spool.waiting(store, "me@desk") == []
        client.push([(CONTENT, REF)])
        assert bench.measure(client, MANIFEST, PLAN, RunOptions(), None, Silent(), "one-more").samples


def test_a_run_is_not_measured_where_it_could_not_be_kept(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    store.prepare()
    monkeypatch.setattr(store, "free_bytes", lambda: spool.ROOM_BYTES - 1)
    with pytest.raises(BoardError, match="disk full on the board, 1048576 bytes needed"):
        spool.reserve(store, "new", "me@desk")
    waiting(store, "begun", report_samples.raw([]))
    spool.reserve(store, "begun", "me@desk")


_WRITER = """
import json, sys
from edgepipe.agent import spool
from edgepipe.agent.store import Store
from edgepipe.codec import from_dict
run = json.loads(sys.stdin.read())
for number in range(10_000):
    run["id"] = f"{sys.argv[2]}-{number}"
    spool.keep(Store(sys.argv[1]), from_dict(spool.Run, run))
    print(run["id"], flush=True)
"""


@pytest.mark.guarantee
def test_killed_writers_lose_no_run_that_they_said_was_kept(tmp_path):
    """Three agents keep runs side by side, and are killed at random: what each said it kept is there, whole, once."""
    store = Store(str(tmp_path))
    store.prepare()
    raw = report_samples.raw(report_samples.steady(random.Random(2), calls=50))
    one = canonical(spool.Run("x", "me@desk", 1.0, MANIFEST, PLAN, RunOptions(), raw))  # type: ignore[arg-type]
    source, said = random.Random(5), []
    rounds = scale(2, 40)
    for turn in range(rounds):
        writers = []
        for who in range(3):
            command = [sys.executable, "-c", _WRITER, str(tmp_path), f"w{turn}-{who}"]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            process.stdin.write(one)
            process.stdin.close()
            writers.append(process)
        writers[0].stdout.readline()
        time.sleep(source.uniform(0, 0.3))
        for process in writers:
            process.kill()
            said += [line for line in process.stdout.read().decode().split("\n")[:-1] if line]
            process.stdout.close()
            process.wait()
    there = spool.waiting(store, "me@desk")
    lost = [name for name in said if name not in set(there)]
    whole = sum(
        from_dict(spool.Run, json.loads(Path(spool.path(store, name, "me@desk")).read_bytes())).id == name
        for name in there
    )
    report(
        12,
        f"{3 * rounds} writers killed after {len(said):,} runs: {len(lost)} lost, {len(there) - whole} torn",
        ok=len(said) > 3 * rounds and not lost and whole == len(there),
    )
