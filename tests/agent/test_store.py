"""Blobs, releases and links, through the verbs; and what a full disk or a kill leaves behind."""

import contextlib
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time

import pytest

from edgepipe.agent import disk as disk_module
from edgepipe.agent.disk import Disk
from edgepipe.agent.releases import Releases
from edgepipe.agent.store import Store, sha256_file
from edgepipe.errors import BoardError, IntegrityError
from edgepipe.schema import FileRef, SelfTest
from tests.guarantees.figure import report, scale


def test_a_cut_transfer_resumes_where_it_ended(start, tools):
    data = random.Random(1).randbytes(3 << 20)
    digest = tools.sha(data)
    first = start()
    first.good("put", data[:1_000_000], sha256=digest, size=len(data), offset=0)
    args = {"sha256": digest, "size": len(data), "offset": 1_000_000}
    first.raw(json.dumps({"verb": "put", "args": args, "size": 2_000_000}).encode() + b"\n")
    first.raw(data[1_000_000:1_700_000])
    assert tools.eventually(lambda: (first.root / "partial" / digest).stat().st_size == 1_700_000)
    first.kill()
    second = start()
    have = second.good("status", blobs=[digest])["have"][digest]
    assert have == 1_700_000
    assert second.good("put", data[have:], sha256=digest, size=len(data), offset=have) == {
        "have": len(data),
        "complete": True,
    }
    assert second.good("status", blobs=[digest])["have"] == {digest: len(data)}
    assert not list((second.root / "partial").iterdir())


def test_a_complete_blob_is_never_rewritten(agent, tools):
    data = b"model" * 1000
    agent.push(data)
    path = agent.root / "blobs" / tools.sha(data)
    before = path.stat()
    assert agent.good("put", b"other", sha256=tools.sha(data), size=len(data), offset=0)["complete"]
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert path.read_bytes() == data


def test_corrupt_bytes_are_dropped_and_can_be_sent_again(agent, tools):
    data = bytearray(b"weights" * 50_000)
    digest = tools.sha(bytes(data))
    data[12345] ^= 1
    error = agent.bad("put", bytes(data), sha256=digest, size=len(data))
    assert error["kind"] == "IntegrityError"
    assert agent.good("status", blobs=[digest])["have"] == {digest: 0}
    data[12345] ^= 1
    assert agent.good("put", bytes(data), sha256=digest, size=len(data))["complete"]


def test_more_than_promised_gaps_and_huge_sizes_are_refused(agent, tools):
    digest = tools.sha(b"abcdef")
    assert agent.bad("put", b"abcdefgh", sha256=digest, size=6)["kind"] == "IntegrityError"
    assert "gap" in agent.bad("put", b"f", sha256=digest, size=6, offset=5)["what"]
    assert "gap" in agent.bad("put", b"f", sha256=digest, size=6, offset=-1)["what"]
    error = agent.bad("put", b"x", sha256=tools.sha(b"y"), size=1 << 60)
    assert error["kind"] == "BoardError" and "disk full" in error["what"] and str(1 << 60) in error["what"]
    assert agent.good("put", b"abcdef", sha256=digest, size=6)["complete"]
    assert agent.good("put", b"", sha256=tools.sha(b""), size=0)["complete"]


def test_all_bytes_but_no_hash_yet_is_completed_when_needed(agent, tools):
    """The power went between the last byte and the rename."""
    manifest, content = tools.null()
    agent.good("status")
    (agent.root / "partial" / manifest.artifact.sha256).write_bytes(content)
    assert agent.good("activate", manifest=manifest)["changed"]


@pytest.mark.guarantee
def test_no_tampered_blob_is_accepted(tools, tmp_path):
    """Bytes flipped, cut off, added, or another blob's: whatever arrives under a hash has that hash or is dropped."""
    store = Store(str(tmp_path))
    store.prepare()
    source = random.Random(3)
    tries = scale(300, 10_000)
    for _ in range(tries):
        good = source.randbytes(source.randrange(1, 400))
        at = source.randrange(len(good))
        bad = source.choice(
            [
                good[:at] + bytes([good[at] ^ (1 << source.randrange(8))]) + good[at + 1 :],
                good[:at],
                good + source.randbytes(1 + at % 7),
                source.randbytes(len(good)),
            ]
        )
        claimed = source.choice([len(good), len(bad)])
        with contextlib.suppress(IntegrityError):
            store.put(tools.sha(good), claimed, 0, iter([bad]))
        assert not (tmp_path / "blobs" / tools.sha(good)).exists()
        with pytest.raises(IntegrityError):
            store.blob(tools.sha(good))
    report(3, f"0 of {tries:,} accepted", ok=not list((tmp_path / "blobs").iterdir()))


def test_activate_twice_changes_nothing(agent, tools):
    manifest, content = tools.null()
    agent.push(content)
    assert agent.good("activate", manifest=manifest)["changed"]
    link = os.lstat(agent.root / "current")
    again = agent.good("activate", manifest=manifest)
    assert not again["changed"] and again["id"] == manifest.id
    assert os.lstat(agent.root / "current").st_ino == link.st_ino


def test_a_release_without_its_blob_is_refused_and_leaves_nothing(agent, tools):
    manifest, _ = tools.null()
    assert agent.bad("activate", manifest=manifest)["kind"] == "IntegrityError"
    status = agent.good("status")
    assert status["current"] is None and status["releases"] == []


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "manifest.json", "x" * 65, "a\nb"])
def test_hostile_file_names_are_refused(agent, tools, name):
    data = b"bytes"
    manifest, content = tools.null(extra=[FileRef(name, tools.sha(data), len(data))])
    agent.push(content, data)
    assert agent.bad("activate", manifest=manifest)["kind"] == "IntegrityError"
    assert not list((agent.root / "releases").iterdir())


def test_a_blob_that_rots_is_found_dropped_and_sent_anew(agent, tools):
    manifest, content = tools.null()
    agent.push(content)
    agent.good("activate", manifest=manifest)
    blob = agent.root / "blobs" / manifest.artifact.sha256
    blob.write_bytes(content[::-1])
    error = agent.bad("activate", manifest=manifest)
    assert error["kind"] == "IntegrityError" and "changed on the board's disk" in error["what"]
    assert agent.good("status", blobs=[blob.name])["have"] == {blob.name: 0}
    agent.push(content)
    assert not agent.good("activate", manifest=manifest)["changed"]
    assert (agent.root / "current" / "model.json").read_bytes() == content


@pytest.mark.guarantee
def test_rollback_takes_less_than_a_second(agent, tools):
    for name in ("one", "two"):
        manifest, content = tools.null(name=name)
        agent.push(content)
        agent.good("activate", manifest=manifest)
    began = time.monotonic()
    agent.good("rollback")
    seconds = time.monotonic() - began
    report(6, f"{seconds * 1e3:.0f} ms", ok=seconds < 1)


def test_rollback_goes_back_and_forth_and_needs_a_previous(agent, tools):
    assert agent.bad("rollback")["kind"] == "BoardError"
    (one, bytes_one), (two, bytes_two) = tools.null(name="one"), tools.null(name="two")
    agent.push(bytes_one, bytes_two)
    agent.good("activate", manifest=one)
    assert agent.bad("rollback")["kind"] == "BoardError"
    agent.good("activate", manifest=two)
    began = time.monotonic()
    back = agent.good("rollback")
    assert time.monotonic() - began < 1 and (back["id"], back["previous"]) == (one.id, two.id)
    assert agent.good("rollback")["id"] == two.id
    (agent.root / "previous" / "model.json").unlink()
    assert agent.bad("rollback")["kind"] == "IntegrityError"
    assert agent.good("status")["current"] == two.id


def test_gc_keeps_the_two_and_frees_the_rest(agent, tools):
    releases = [tools.null(name=f"r{number}") for number in range(4)]
    for manifest, content in releases:
        agent.push(content)
        agent.good("activate", manifest=manifest)
    loose = os.urandom(100_000)
    agent.push(loose)
    agent.good("put", b"half", sha256="0" * 64, size=9)
    used = agent.good("status")["used_bytes"]
    done = agent.good("gc")
    assert sorted(done["releases"]) == sorted(manifest.id for manifest, _ in releases[:2])
    assert done["blobs"] == 3 and done["freed_bytes"] > 100_000
    status = agent.good("status")
    assert status["used_bytes"] == used - done["freed_bytes"]
    assert {release["id"] for release in status["releases"]} == {manifest.id for manifest, _ in releases[2:]}
    assert status["activated_at"] == pytest.approx(time.time(), abs=60)
    assert agent.good("rollback")["id"] == releases[2][0].id


def test_a_site_is_put_in_place_whole_and_its_blobs_are_kept(agent, tools):
    files = {"pkg/__init__.py": b"VERSION = 1\n", "pkg/sub/data+1.bin": b"\0" * 10, "pkg-1.0.dist-info/METADATA": b"x"}
    agent.push(*files.values())
    refs = [FileRef(name, tools.sha(data), len(data)) for name, data in files.items()]
    asked = {"runtime": "onnxruntime", "files": refs, "note": "pkg 1.0"}
    assert agent.good("site", **asked, dry_run=True) == {"files": 3, "bytes": 23, "changed": True}
    assert not list((agent.root / "sites").iterdir())
    assert agent.good("site", **asked) == {"files": 3, "bytes": 23, "changed": True}
    for again in ({}, {"dry_run": True}):
        assert agent.good("site", **asked, **again)["changed"] is False
    agent.good("gc")
    for name, data in files.items():
        assert (agent.root / "sites" / "onnxruntime" / name).read_bytes() == data
    agent.push(b"VERSION = 2\n")
    refs[0] = FileRef("pkg/__init__.py", tools.sha(b"VERSION = 2\n"), 12)
    agent.good("site", runtime="onnxruntime", files=refs)
    assert (agent.root / "sites" / "onnxruntime" / "pkg" / "__init__.py").read_bytes() == b"VERSION = 2\n"
    assert len(list((agent.root / "sites").iterdir())) == 2
    for bad in ("../evil", "/etc/x", "a//b", "a/../b", "", "a/.", "site.json", "a\0b", "x" * 201):
        error = agent.bad("site", runtime="tflite", files=[FileRef(bad, refs[0].sha256, 12)])
        assert error["kind"] == "IntegrityError", bad
    assert not (agent.root / "sites" / "tflite").exists()


def test_runtimes_are_found_in_their_site_first(agent, tools):
    data = b"Name: onnxruntime"
    agent.push(data)
    agent.good(
        "site",
        runtime="onnxruntime",
        files=[FileRef("onnxruntime-9.9.9.dist-info/METADATA", tools.sha(data), len(data))],
    )
    found = {runtime["name"]: runtime for runtime in agent.good("hello", owner="x")["board"]["runtimes"]}
    assert found["onnxruntime"]["version"] == "9.9.9" and found["onnxruntime"]["site"]


def test_a_virtual_environment_counts_where_there_is_no_site(agent, tools):
    own = "python{}.{}".format(*sys.version_info[:2])
    packages = agent.root / "venvs" / "onnxruntime" / "lib" / own / "site-packages"
    (packages / "onnxruntime-8.8.8.dist-info").mkdir(parents=True)

    def version():
        found = {runtime["name"]: runtime for runtime in agent.good("hello", owner="x")["board"]["runtimes"]}
        return found["onnxruntime"]["version"]

    assert version() == "8.8.8"
    data = b"Name: onnxruntime"
    agent.push(data)
    ref = FileRef("onnxruntime-9.9.9.dist-info/METADATA", tools.sha(data), len(data))
    agent.good("site", runtime="onnxruntime", files=[ref])
    assert version() == "9.9.9"


def test_a_failed_self_test_leaves_the_old_release_and_is_redone(agent, tools, tmp_path):
    import io

    import numpy as np

    def npz(**arrays):
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    inputs, right, wrong = (
        npz(x=np.zeros((3, 4), "f")),
        npz(**{"0": np.zeros((3, 10), "f")}),
        npz(**{"0": np.ones((3, 10), "f")}),
    )
    old, content = tools.null(name="old", selftest=SelfTest(tools.sha(inputs), tools.sha(right), 1e-6))
    agent.push(content, inputs, right, wrong)
    assert agent.good("activate", manifest=old)["changed"]
    new, content = tools.null(name="new", selftest=SelfTest(tools.sha(inputs), tools.sha(wrong), 1e-6))
    agent.push(content)
    for _ in range(2):
        error = agent.bad("activate", manifest=new)
        assert error["kind"] == "IntegrityError" and "differ by 1, allowed is 1e-06" in error["what"]
    status = agent.good("status")
    assert status["current"] == old.id and [release["id"] for release in status["releases"]] == [old.id]
    agent.good("gc")
    assert agent.good("status", blobs=[tools.sha(inputs)])["have"][tools.sha(inputs)] == len(inputs)


def complete(root):
    """The release ``current`` names, every blob of it hashed; None if there is none."""
    store = Store(str(root))
    releases = Releases(store)
    name = releases.links().current
    if not os.path.lexists(root / "current"):
        return None
    assert name, "current does not resolve"
    for ref in releases.read(name).artifact.files:
        assert sha256_file(f"{releases.folder(name)}/{ref.name}") == ref.sha256
    return name


@pytest.mark.guarantee
@pytest.mark.parametrize("seed", range(4))
def test_kill_9_at_any_moment_leaves_a_complete_release(start, tools, seed, tmp_path):
    """A deploy (put, activate, gc) over and over, cut at random."""
    source = random.Random(seed)
    cycle, before, seen = 0.03, None, 0
    kills = scale(10, 251)
    for number in range(kills):
        agent = start()
        agent.good("hello", owner="x")
        extra = source.randbytes(200_000)
        manifest, content = tools.null(
            name=f"r{seed}-{number}", extra=[FileRef("extra.bin", tools.sha(extra), len(extra))]
        )
        began = time.monotonic()
        agent.send("put", extra, sha256=tools.sha(extra), size=len(extra))
        agent.send("put", content, sha256=tools.sha(content), size=len(content))
        agent.send("activate", manifest=manifest)
        agent.send("gc")
        if number == 0:
            assert all(agent.reply()["ok"] for _ in range(4))
            cycle = time.monotonic() - began
        else:
            time.sleep(source.uniform(0, 1.1 * cycle))
        agent.kill()
        now = complete(agent.root)
        assert now in (before, manifest.id)
        seen += now == manifest.id
        before = now
    assert seen >= 1
    report(1, f"4 x {kills} kills, 0 violations", ok=True)


class FullDisk(Disk):
    """Fails the n-th change with ENOSPC; a write leaves its first half."""

    def __init__(self, fail_at):
        self.left = fail_at

    def _count(self):
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    def write(self, path, data, offset=0):
        self.left -= 1
        if self.left == 0:
            super().write(path, data[: len(data) // 2], offset)
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(path, data, offset)

    def mkdir(self, path):
        self._count()
        super().mkdir(path)

    def sync(self, path):
        self._count()
        super().sync(path)

    def rename(self, old, new):
        self._count()
        super().rename(old, new)

    def link(self, old, new):
        self._count()
        super().link(old, new)

    def symlink(self, target, path):
        self._count()
        super().symlink(target, path)


def deploy(store, manifest, contents):
    releases = Releases(store)
    for digest, content in contents.items():
        have = store.have(digest)
        store.put(digest, len(content), have, iter([content[have : have + 100], content[have + 100 :]]))
    releases.verify(manifest)
    releases.stage(manifest)
    releases.activate(manifest.id)


@pytest.mark.guarantee
def test_a_full_disk_at_any_change_leaves_the_old_release_and_recovers(tools, tmp_path):
    old, content = tools.null(name="old")
    first = Store(str(tmp_path / "root"))
    first.prepare()
    deploy(first, old, {old.artifact.sha256: content})
    new, content = tools.null(name="new")
    failed = 0
    for fail_at in range(1, 100):
        root = tmp_path / f"root{fail_at}"
        shutil.copytree(tmp_path / "root", root, symlinks=True)
        store = Store(str(root), FullDisk(fail_at))
        try:
            deploy(store, new, {new.artifact.sha256: content})
        except (OSError, BoardError):
            failed += 1
        else:
            break
        assert complete(root) in (old.id, new.id)
        deploy(Store(str(root)), new, {new.artifact.sha256: content})
        assert complete(root) == new.id and Releases(Store(str(root))).links().previous == old.id
    report(7, f"full at each of {failed} changes: the old one stays, recovers", ok=failed >= 15)


def test_a_disk_that_is_really_full(start, tools, tmp_path):
    if os.geteuid():
        pytest.skip("needs root to mount a tmpfs")
    mount = tmp_path / "mnt"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)], check=False).returncode:
        pytest.skip("can't mount a tmpfs here")
    try:
        agent = start(root=mount / "root")
        manifest, content = tools.null()
        agent.push(content)
        agent.good("activate", manifest=manifest)
        big = os.urandom(4 << 20)
        error = agent.bad("put", big, sha256=tools.sha(big), size=len(big))
        assert error["kind"] == "BoardError" and "disk full" in error["what"] and "gc" in error["fix"]
        fits = os.urandom(900_000)
        agent.good("put", fits[:500_000], sha256=tools.sha(fits), size=len(fits))
        (mount / "filler").write_bytes(b"x" * (agent.good("status")["free_bytes"] - 4096))
        error = agent.bad("put", fits[500_000:], sha256=tools.sha(fits), size=len(fits), offset=500_000)
        assert "disk full" in error["what"]
        assert complete(agent.root) == manifest.id
        (mount / "filler").unlink()
        have = agent.good("status", blobs=[tools.sha(fits)])["have"][tools.sha(fits)]
        assert have == 500_000
        assert agent.good("put", fits[have:], sha256=tools.sha(fits), size=len(fits), offset=have)["complete"]
        agent.end()
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def test_enospc_inside_a_write_keeps_what_arrived(tools, tmp_path, monkeypatch):
    store = Store(str(tmp_path), FullDisk(100))
    store.prepare()
    store.disk.left = 3
    data = os.urandom(4000)
    with pytest.raises(BoardError, match="disk full on the board, 2000 bytes needed"):
        store.put(tools.sha(data), 4000, 0, iter([data[:1000], data[1000:2000], data[2000:]]))
    assert store.have(tools.sha(data)) == 3000
    monkeypatch.setattr(disk_module, "free_bytes", lambda path: 0)
    assert store.put(tools.sha(data), 4000, 3000, iter([data[3000:]])) == (4000, True)
    with pytest.raises(IntegrityError):
        store.blob("0" * 64)
