"""Pulling the plug of a whole emulated board, in the middle of each phase, never leaves it without a working release.

The machine has a kernel, an ext4 file system and a drive whose cache a cut empties, keeps or writes in part. `PULLS`
in the environment says how often for each phase; the plug is pulled at a random moment of the time the phase takes.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edgepipe import board as boards
from edgepipe import pack
from edgepipe.answers import Times
from edgepipe.errors import LinkError
from edgepipe.link import _push
from edgepipe.progress import Silent
from edgepipe.schema import Manifest, Plan, RunOptions
from lab import drive, host, machine
from tests.delta_kit import digest_of, released

pytestmark = [pytest.mark.lab, pytest.mark.timeout(7200)]
PULLS = int(os.environ.get("PULLS", "1"))
SIZE = 1_000_000
QUICK = Plan(processes=2, min_seconds=0.5, min_samples=5, warmup_seconds=0.1, warmup_runs=1)
SHORT = Plan(processes=1, min_seconds=0.01, min_samples=2, warmup_seconds=0.01, warmup_runs=1)


@dataclass
class Board:
    """The machine, what its board must hold by now, and what every release's file is."""

    machine: machine.Machine
    folder: Path
    rng: random.Random
    current: str = ""
    previous: str | None = None
    latest: str = ""
    contents: dict[str, bytes] = field(default_factory=dict)  # by sha256
    seen: Counter[str] = field(default_factory=Counter)

    def connect(self) -> boards.BoardClient:
        times = Times(start=120, quick=120, stall=120, work=240)
        return boards.connect(self.machine.target("plug"), "me@test", Silent(), times)

    def version(self, old: bytes = b"") -> tuple[Manifest, Path]:
        """A release nobody has, of the null runtime: of noise, or of ``old`` with some more weights in its middle."""
        at = self.rng.randrange(100, SIZE)
        fresh = {"outputs": [[10]], "sleep_s": 0.001, "weights": self.rng.randbytes(SIZE // 2).hex()}
        new = old[:at] + self.rng.randbytes(16).hex().encode() + old[at:] if old else json.dumps(fresh).encode()
        path = self.folder / "model.json"
        path.write_bytes(new)
        self.latest = digest_of(new)
        self.contents[self.latest] = new
        return released("model.json", new), path

    def put(self, client: boards.BoardClient, old: bytes = b"") -> Manifest:
        manifest, path = self.version(old)
        client.push([(path, manifest.artifact.files[0])])
        return manifest

    def active(self, client: boards.BoardClient) -> bytes:
        return self.contents[client.manifest().artifact.sha256]

    def activated(self, client: boards.BoardClient, manifest: Manifest) -> None:
        assert client.activate(manifest).id == manifest.id
        self.current, self.previous = manifest.id, self.current or None

    def works(self, client: boards.BoardClient) -> None:
        """What the links name is there to its last byte, passes the board's own check, and can be measured."""
        status = client.status()
        assert status.current
        for name in filter(None, (status.current, status.previous)):
            manifest = client.manifest(name)
            assert manifest.id == name
            (file,) = manifest.artifact.files
            assert client.get(file.sha256) == self.contents[file.sha256]
        client.activate(client.manifest())
        assert client.status().current == status.current
        assert client.bench(None, SHORT, RunOptions()).processes
        self.current, self.previous = status.current, status.previous


Act = Callable[[boards.BoardClient], object]
Phase = Callable[[Board, boards.BoardClient], tuple[Act, set[str], str]]
# Each makes ready, and returns what is to be cut, what may be active after it, and what must be if it was answered.


def push(board: Board, client: boards.BoardClient) -> tuple[Act, set[str], str]:
    manifest, path = board.version()
    return lambda it: it.push([(path, manifest.artifact.files[0])]), {board.current}, board.current


def delta(board: Board, client: boards.BoardClient) -> tuple[Act, set[str], str]:
    old = board.active(client)
    manifest, path = board.version(old)

    def act(it: boards.BoardClient) -> None:
        it.push([(path, manifest.artifact.files[0])])
        assert it.deltas

    return act, {board.current}, board.current


def activate(board: Board, client: boards.BoardClient) -> tuple[Act, set[str], str]:
    manifest = board.put(client)
    return lambda it: it.activate(manifest), {board.current, manifest.id}, manifest.id


def rollback(board: Board, client: boards.BoardClient) -> tuple[Act, set[str], str]:
    if not board.previous or board.previous == board.current:  # a cut came between the links
        board.activated(client, board.put(client))
    assert board.previous
    return lambda it: it.rollback(), {board.current, board.previous}, board.previous


def gc(board: Board, client: boards.BoardClient) -> tuple[Act, set[str], str]:
    for _ in range(2):
        board.activated(client, board.put(client))
    return lambda it: it.gc(), {board.current}, board.current


def bench(board: Board, client: boards.BoardClient) -> tuple[Act, set[str], str]:
    return lambda it: it.bench(None, QUICK, RunOptions(), run="plugged"), {board.current}, board.current


PHASES: list[Phase] = [push, delta, activate, rollback, gc, bench]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """A machine with two releases."""
    if why := host.missing("machine"):
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("plug")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPIPE_HOME", str(folder / "home"))
        patch.setattr(_push, "RETRIES", 0)
        (folder / "vm").mkdir()
        found = Board(machine.Machine(folder / "vm"), folder, random.Random(int(os.environ.get("SEED", "1"))))
        found.machine.start()
        try:
            with found.connect() as client:
                for _ in range(2):
                    found.activated(client, found.put(client))
            yield found
        finally:
            found.machine.pull(drive.KEPT, found.rng)


def pulled(board: Board, client: boards.BoardClient, act: Act, after: float, how: str) -> float | None:
    """Pull the plug so many seconds into the act; in how many it was answered, None where the cut came before."""
    began, answered, failures = time.monotonic(), [], []

    def run() -> None:
        try:
            act(client)
            answered.append(time.monotonic() - began)
        except LinkError:  # the cut
            pass
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(after)
    said = answered[0] if answered else None
    lost = board.machine.pull(how, board.rng)
    thread.join(60)
    assert not thread.is_alive() and not failures, failures
    board.seen["in the middle" if said is None else "after its answer"] += 1
    board.seen["with unflushed data"] += lost > 0
    return said


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
def test_the_plug_in_the_middle_of(phase: Phase, board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    """`PULLS` cuts in its middle; those that come after the answer are not counted, and must have lost nothing."""
    board.seen.clear()
    client = board.connect()
    act, *_ = phase(board, client)
    began = time.monotonic()
    act(client)
    takes = time.monotonic() - began
    board.works(client)
    for _ in range(4 * PULLS):
        act, may, must = phase(board, client)
        how = board.rng.choice([drive.LOST, drive.PART, drive.KEPT])
        said = pulled(board, client, act, board.rng.uniform(0, takes), how)
        takes = min(takes, said or takes)  # the first time took longer than later ones
        client.close()
        board.machine.start()
        client = board.connect()
        board.works(client)
        assert board.current in (may if said is None else {must}), how
        if said is not None and phase in (push, delta):
            assert client.status([board.latest]).have == {board.latest: len(board.contents[board.latest])}
        board.seen["changed" if board.current == must and len(may) > 1 else "as before"] += 1
        if board.seen["in the middle"] == PULLS:
            break
    client.close()
    with capsys.disabled():
        print(f"\n{phase.__name__}: {dict(board.seen)}, of {takes:.2f} s")
    assert board.seen["in the middle"] == PULLS


def test_an_agent_that_forgets_to_flush_is_caught(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with the same kernel and drive, an answered activation is gone after a cut."""
    forgetful = (Path(pack.__file__).parent / "agent" / "disk.py").read_bytes().replace(b"os.fsync(handle)", b"pass")
    assert b"pass" in forgetful
    real = pack.bare
    monkeypatch.setattr(pack, "bare", lambda source: real(forgetful if b"os.fsync(handle)" in source else source))
    monkeypatch.setattr(pack, "agent_zipapp", pack.packed.__wrapped__)
    with board.connect() as client:
        before = board.current
        manifest = board.put(client)
        assert client.activate(manifest).id == manifest.id
        board.machine.pull(drive.LOST, board.rng)
    monkeypatch.undo()
    board.machine.start()
    with board.connect() as client:
        assert client.status().current in {before, None}
