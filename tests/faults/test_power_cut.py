"""A power cut at any operation of a deploy leaves the old release or the new one, complete; every fsync is needed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepipe.agent import ledger
from edgepipe.agent.releases import Releases
from edgepipe.agent.rules import Links
from edgepipe.agent.store import _FOLDERS, Store
from edgepipe.errors import IntegrityError
from edgepipe.schema import Artifact, FileRef, Manifest, Preprocessing
from tests.faults.disk_model import MODES, Recorder, cuts, syncs
from tests.guarantees.figure import report


def manifest(tag: str) -> tuple[Manifest, dict[str, bytes]]:
    """A release of two files whose contents end in ``tag``."""
    contents = {"model.xml": b"x" * 40 + tag.encode(), "model.bin": b"weights" * 9 + tag.encode()}
    refs = [FileRef(name, hashlib.sha256(data).hexdigest(), len(data)) for name, data in contents.items()]
    total = sum(ref.bytes for ref in refs)
    artifact = Artifact("openvino", "model.xml", total, total, refs[0].sha256, refs, [], [], Preprocessing())
    return Manifest("m-openvino", artifact, "openvino"), contents


def push(store: Store, disk: Recorder, contents: dict[str, bytes]) -> None:
    for data in contents.values():
        sha = hashlib.sha256(data).hexdigest()
        half = len(data) // 2
        store.put(sha, len(data), 0, iter([data[:half]]))
        store.put(sha, len(data), half, iter([data[half:]]))
        disk.acknowledge(f"blob {sha}")


def note(store: Store, releases: Releases, name: str) -> None:
    """What the agent writes down before the links move: who, and a counter that never goes down."""
    known, links = ledger.read(store), releases.links()
    event = ledger.Activation("ann@desk", 1.0, "ann")
    known = dataclasses.replace(known, counter=known.counter + 1, activations={**known.activations, name: event})
    ledger.write(store, known, [kept for kept in (name, links.current, links.previous) if kept])


class Story:
    """Three deploys and a rollback on a real folder, recorded."""

    def __init__(self, root: Path) -> None:
        self.disk = Recorder(str(root))
        store = Store(str(root), self.disk)
        store.prepare()
        self.disk.done.clear()  # the folders are there before the story begins
        releases = Releases(store)
        self.states: list[tuple[str | None, str | None]] = [(None, None)]
        for tag in ("a", "b", "c"):
            release, contents = manifest(tag)
            push(store, self.disk, contents)
            releases.verify(release)
            releases.stage(release)
            note(store, releases, release.id)
            releases.activate(release.id)
            self._settled(releases, f"current {release.id}")
        releases.rollback()
        self._settled(releases, f"current {releases.links().current}")

    def _settled(self, releases: Releases, what: str) -> None:
        links = releases.links()
        self.states.append((links.current, links.previous))
        self.disk.acknowledge(what)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return Story(tmp_path_factory.mktemp("board") / "root")


def wrong(root: Path, story: Story, acknowledged: list[str]) -> str:
    """What is wrong with a board found in this state; empty if nothing is."""
    store = Store(str(root))
    links = Releases(store).links()
    step = sum(item.startswith("current") for item in acknowledged)
    old = story.states[step]
    new = story.states[min(step + 1, len(story.states) - 1)]
    between = {(old[0], None), (new[0], None)}  # both links on one release: it works, and there is no way back
    if (links.current, links.previous) not in {old, new} | between or (old[0] and not links.current):
        return f"links are {links}, neither {old} nor {new}"
    for name in {links.current, links.previous} - {None}:
        if problem := _broken(root / "releases" / str(name)):
            return problem
    if problem := _forgotten(store, links, step):
        return problem
    for path in (root / "blobs").iterdir():
        if hashlib.sha256(path.read_bytes()).hexdigest() != path.name:
            return f"blob {path.name[:8]} is not its hash"
    gone = [item for item in acknowledged if item.startswith("blob") and not (root / "blobs" / item[5:]).exists()]
    return f"{gone[0]} was acknowledged and is gone" if gone else ""


def _forgotten(store: Store, links: Links, step: int) -> str:
    """What the ledger should know and does not."""
    try:
        known = ledger.read(store)
    except IntegrityError:
        return "the ledger is torn"
    if known.counter < min(step, 3):
        return f"the counter went down to {known.counter}"
    return "" if links.current is None or links.current in known.activations else "nobody activated the current release"


def _broken(folder: Path) -> str:
    try:
        record = json.loads((folder / "manifest.json").read_bytes())
    except ValueError:
        return "the manifest is torn"
    for ref in record["artifact"]["files"]:
        file = folder / ref["name"]
        if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != ref["sha256"]:
            return f"{ref['name']} of an active release is missing or torn"
    return ""


def violations(story: Story, place: Path, skip: int | None = None) -> Iterator[tuple[int, str, str]]:
    for at, mode, model in cuts(_FOLDERS, story.disk.done, skip):
        model.after_cut(mode, place)
        if found := wrong(place, story, model.acknowledged):
            yield at, mode, found
        shutil.rmtree(place)


@pytest.mark.guarantee
def test_a_cut_at_any_operation_leaves_a_working_board(story: Story, tmp_path: Path) -> None:
    states = sum(1 for _ in cuts(_FOLDERS, story.disk.done))
    assert states >= len(story.disk.done) * len(MODES)
    found = list(violations(story, tmp_path / "cut"))
    report(2, f"{len(story.disk.done)} operations, {states} states, {len(found)} violations", ok=not found)


@pytest.mark.guarantee
def test_every_fsync_is_needed(story: Story, tmp_path: Path) -> None:
    """Leave any one of them out, and some cut breaks a promise."""
    positions = syncs(story.disk.done)
    assert len(positions) >= 20
    idle = [story.disk.done[at] for at in positions if next(violations(story, tmp_path / "cut", at), None) is None]
    report(2, f"{len(positions) - len(idle)} of {len(positions)} fsyncs proven needed", ok=not idle)


def test_the_same_deploy_again_mends_whatever_a_cut_left(story: Story, tmp_path: Path) -> None:
    release, contents = manifest("b")
    place = tmp_path / "cut"
    for at, mode, model in cuts(_FOLDERS, story.disk.done):
        if at % 7:
            continue
        model.after_cut(mode, place)
        disk = Recorder(str(place))
        store = Store(str(place), disk)
        for data in contents.values():
            sha = hashlib.sha256(data).hexdigest()
            have = store.have(sha)
            try:
                store.put(sha, len(data), have, iter([data[have:]]))
            except IntegrityError:
                # What the cut left of it was torn. It is dropped, and the host sends the blob from its start.
                assert have and store.have(sha) == 0, (at, mode)
                store.put(sha, len(data), 0, iter([data]))
        releases = Releases(store)
        releases.verify(release)
        releases.stage(release)
        releases.activate(release.id)
        assert releases.links().current == release.id, (at, mode)
        assert _broken(place / "releases" / release.id) == "", (at, mode)
        assert not os.path.lexists(place / "releases" / f".{release.id}")
        shutil.rmtree(place)


def test_a_cut_while_an_activation_is_taken_back_leaves_a_working_board(tmp_path: Path) -> None:
    """The service was not well with the new release: the links go back to what they were."""
    disk = Recorder(str(tmp_path / "root"))
    store = Store(str(tmp_path / "root"), disk)
    store.prepare()
    disk.done.clear()
    releases, names = Releases(store), []
    for tag in ("a", "b", "c"):
        release, contents = manifest(tag)
        push(store, disk, contents)
        releases.stage(release)
        before = releases.links()
        releases.activate(release.id)
        names.append(release.id)
    disk.acknowledge("active")
    releases.restore(before)
    disk.acknowledge("back")
    for at, mode, model in cuts(_FOLDERS, disk.done):
        if "active" not in model.acknowledged:
            continue
        model.after_cut(mode, tmp_path / "cut")
        links = Releases(Store(str(tmp_path / "cut"))).links()
        assert links.current in ({names[1]} if "back" in model.acknowledged else {names[1], names[2]}), (at, mode)
        assert _broken(tmp_path / "cut" / "releases" / links.current) == "", (at, mode)
        shutil.rmtree(tmp_path / "cut")
    assert releases.links() == before == Links(names[1], names[0])
    releases.restore(Links())
    assert not any(os.path.lexists(store.path(name)) for name in ("current", "previous"))
