"""The store without an agent around it, each of its promises by itself; what a disk is told, and in which order."""

import errno
import hashlib
import os
import stat
import threading
from pathlib import Path

import pytest

from edgepipe.agent import store as module
from edgepipe.agent.disk import Disk
from edgepipe.agent.store import RESERVE_BYTES, Store, check_name, check_sha, sha256_file
from edgepipe.errors import BoardError, IntegrityError

FOLDERS = ["blobs", "partial", "releases", "runs", "sites", "spool", "tmp"]
DATA = b"0123456789" * 10


def sha(data):
    return hashlib.sha256(data).hexdigest()


class Watched(Disk):
    """Notes what is done, by the last two parts of the path; may fail one kind of it."""

    def __init__(self):
        self.done, self.fails, self.error = [], "", errno.EIO

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found):
            return found

        def noted(path, *rest):
            if name == self.fails:
                raise OSError(self.error, os.strerror(self.error), path)
            self.done.append((name, "/".join(Path(path).parts[-2:])))
            return found(path, *rest)

        return noted


@pytest.fixture
def disk():
    return Watched()


@pytest.fixture
def store(tmp_path, disk):
    found = Store(str(tmp_path / "root"), disk)
    found.prepare()
    disk.done.clear()
    return found


def at(store, *parts):
    return Path(store.path(*parts))


def names(store, *folder):
    return sorted(path.name for path in at(store, *folder).iterdir())


def words(raised):
    return raised.value.what, raised.value.where, raised.value.fix


def put(store, data, offset=0, size=None, name=None, pieces=None):
    return store.put(name or sha(data), len(data) if size is None else size, offset, iter(pieces or [data[offset:]]))


def test_a_file_is_hashed_whole_also_where_it_has_many_chunks(tmp_path):
    path = tmp_path / "file"
    for data in (b"", b"x", b"y" * ((1 << 20) + 7)):
        path.write_bytes(data)
        assert sha256_file(str(path)) == sha(data)


def test_a_large_file_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"y" * (3 << 20))
    taken = []

    class Digest:
        def update(self, chunk):
            taken.append(len(chunk))

        def hexdigest(self):
            return ""

    monkeypatch.setattr(module.hashlib, "sha256", Digest)
    sha256_file(str(path))
    assert taken == [1 << 20] * 3


def test_names_and_hashes_are_checked_and_a_long_one_is_cut():
    assert check_sha("a" * 64) == "a" * 64 and check_name("model.onnx") == "model.onnx"
    for bad in ("", "A" * 64, "a" * 63, "a" * 65, "../" + "a" * 61):
        with pytest.raises(IntegrityError) as raised:
            check_sha(bad)
        assert words(raised) == (f"not a sha256: {bad!r}", "request", "")
    for bad in ("", ".x", "a/b", "a" * 65):
        with pytest.raises(IntegrityError) as raised:
            check_name(bad)
        assert words(raised) == (f"not a file name: {bad!r}", "request", "")
    for check, what in ((check_sha, "not a sha256"), (check_name, "not a file name")):
        with pytest.raises(IntegrityError) as raised:
            check("z" * 200)
        assert raised.value.what == f"{what}: {'z' * 80!r}"


def test_a_root_is_made_with_its_folders_for_its_owner_alone(tmp_path, disk):
    store = Store(str(tmp_path / "a" / "root"), disk)
    store.prepare()
    assert names(store) == FOLDERS
    for path in (store.root, *(store.path(name) for name in FOLDERS)):
        assert stat.S_IMODE(os.lstat(path).st_mode) == 0o700
    assert [what for what, _ in disk.done] == ["mkdir"] * len(FOLDERS)


def test_a_root_that_is_there_is_taken_and_looked_at_once(tmp_path, disk):
    root = tmp_path / "root"
    (root / "blobs").mkdir(parents=True)
    (root / "blobs" / "x").write_bytes(b"kept")
    store = Store(str(root), disk)
    store.prepare()
    assert len(disk.done) == len(FOLDERS) - 1 and (root / "blobs" / "x").read_bytes() == b"kept"
    at(store, "tmp").rmdir()
    store.prepare()
    assert not at(store, "tmp").exists()


def test_a_root_that_can_not_be_made_is_told_with_its_path(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BoardError) as raised:
        Store(str(tmp_path / "file" / "root")).prepare()
    assert raised.value.what == "the board's disk failed: Not a directory"
    disk = Watched()
    disk.fails, disk.error = "mkdir", errno.ENOSPC
    store = Store(str(tmp_path / "root"), disk)
    with pytest.raises(BoardError) as raised:
        store.prepare()
    assert raised.value.what.startswith("disk full on the board, ") and raised.value.where == store.root
    disk.fails = ""
    store.prepare()
    assert names(store) == FOLDERS


def test_the_root_may_be_below_the_home_and_is_absolute(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store("~/.edgepipe").root == str(tmp_path / ".edgepipe")
    monkeypatch.chdir(tmp_path)
    assert Store("root").path("a", "b") == str(tmp_path / "root" / "a" / "b")
    assert type(Store("root").disk) is Disk


def test_scratch_is_cleared_and_nothing_else(store):
    at(store, "tmp", "child").mkdir()
    for name in ("tmp/child/x", "tmp/y", "spool/z"):
        at(store, name).touch()
    store.clear_scratch()
    assert names(store, "tmp") == [] and names(store, "spool") == ["z"]


def test_free_bytes_are_those_of_the_file_system(store):
    found = os.statvfs(store.root)
    assert abs(store.free_bytes() - found.f_bavail * found.f_frsize) < 1 << 30


def test_a_file_with_two_names_counts_once(store, monkeypatch):
    put(store, DATA)
    os.link(store.path("blobs", sha(DATA)), store.path("releases", "name"))
    at(store, "spool", "other").write_bytes(b"x" * 7)
    assert store.used_bytes() == len(DATA) + 7
    real = os.lstat

    def vanishing(path, **rest):
        if str(path).endswith("gone"):
            raise FileNotFoundError(path)
        return real(path, **rest)

    monkeypatch.setattr(module.os, "lstat", vanishing)
    monkeypatch.setattr(module.os, "walk", lambda _root: [(store.path("spool"), [], ["gone", "other"])])
    assert store.used_bytes() == 7


def test_what_is_here_is_told_whole_partly_or_not_at_all(store):
    assert store.have(sha(DATA)) == 0
    put(store, DATA, size=len(DATA) + 1, name=sha(b"other"))
    assert store.have(sha(b"other")) == len(DATA)
    put(store, DATA)
    assert store.have(sha(DATA)) == len(DATA)
    at(store, "partial", sha(DATA)).write_bytes(b"left")
    assert store.have(sha(DATA)) == len(DATA)
    with pytest.raises(IntegrityError, match="not a sha256"):
        store.have("../x")


def test_a_blob_in_pieces_is_written_flushed_hashed_and_named(store, disk):
    name = sha(DATA)
    assert put(store, DATA, size=100, pieces=[DATA[:30], DATA[30:60]]) == (60, False)
    assert disk.done == [("write", f"partial/{name}")] * 2
    disk.done.clear()
    assert put(store, DATA, offset=60) == (100, True)
    assert disk.done == [
        ("write", f"partial/{name}"),
        ("sync", f"partial/{name}"),
        ("rename", f"partial/{name}"),
        ("sync", "root/blobs"),
    ]
    assert at(store, "blobs", name).read_bytes() == DATA


def test_a_resume_may_go_back_but_leaves_no_gap(store):
    put(store, DATA, size=100, pieces=[DATA[:50]])
    assert put(store, DATA, offset=20, size=100, pieces=[DATA[20:40]]) == (50, False)
    for offset, have in ((51, 50), (-1, 50)):
        with pytest.raises(IntegrityError) as raised:
            store.put(sha(DATA), 100, offset, iter([b"x"]))
        assert words(raised) == (
            f"a piece at offset {offset} would leave a gap: {have} bytes are here",
            store.path("partial", sha(DATA)),
            "ask status, then resume",
        )
    assert put(store, DATA, offset=50, pieces=[DATA[50:70], DATA[70:]]) == (100, True)


def test_a_partial_longer_than_the_blob_is_begun_anew(store):
    at(store, "partial", sha(DATA)).write_bytes(b"x" * 101)
    with pytest.raises(IntegrityError, match="a piece at offset 1 would leave a gap: 0 bytes are here"):
        put(store, DATA, offset=1)
    assert put(store, DATA) == (100, True)
    at(store, "partial", sha(b"x" * 100)).write_bytes(b"x" * 100)
    assert store.put(sha(b"x" * 100), 100, 100, iter([])) == (100, True)


def test_pieces_of_a_blob_that_is_here_are_not_read(store):
    put(store, DATA)

    def pieces():
        raise AssertionError("read")
        yield b""

    assert store.put(sha(DATA), 5, 0, pieces()) == (100, True)


def test_more_than_promised_is_refused(store):
    with pytest.raises(IntegrityError) as raised:
        put(store, DATA, size=99)
    assert words(raised) == ("more than the 99 bytes promised", f"blob {sha(DATA)}", "")
    assert store.have(sha(DATA)) == 0
    assert put(store, DATA, pieces=[DATA[:99], DATA[99:]]) == (100, True)


def test_an_empty_blob_is_a_blob(store):
    assert store.put(sha(b""), 0, 0, iter([])) == (0, True)
    assert at(store, "blobs", sha(b"")).read_bytes() == b""
    assert store.put(sha(b"x"), 1, 0, iter([])) == (0, False)
    assert not at(store, "partial", sha(b"x")).exists()


def test_other_bytes_than_promised_are_dropped(store):
    with pytest.raises(IntegrityError) as raised:
        put(store, DATA, name=sha(b"else"))
    assert words(raised) == (
        "the bytes that arrived have another hash; they were dropped",
        f"blob {sha(b'else')}",
        "send the blob again",
    )
    assert store.have(sha(b"else")) == 0


def test_a_blob_must_leave_the_reserve_free(store, monkeypatch):
    assert RESERVE_BYTES == 256 * 1024
    monkeypatch.setattr(module, "free_bytes", lambda root: RESERVE_BYTES + 60 if root == store.root else 0)
    with pytest.raises(BoardError) as raised:
        put(store, DATA, size=100, pieces=[DATA[:10]])
    assert raised.value.what.startswith("disk full on the board, 100 bytes needed, ")
    assert raised.value.where == store.root
    monkeypatch.setattr(module, "free_bytes", lambda _root: RESERVE_BYTES + 100)
    assert put(store, DATA, size=100, pieces=[DATA[:40]]) == (40, False)
    monkeypatch.setattr(module, "free_bytes", lambda _root: RESERVE_BYTES + 59)
    with pytest.raises(BoardError, match="disk full on the board, 60 bytes needed"):
        put(store, DATA, offset=40)
    monkeypatch.setattr(module, "free_bytes", lambda _root: RESERVE_BYTES + 60)
    assert put(store, DATA, offset=40) == (100, True)


def test_a_disk_that_fills_says_how_much_is_missing_and_keeps_what_came(store, disk):
    put(store, DATA, size=100, pieces=[DATA[:30]])
    disk.fails, disk.error = "write", errno.ENOSPC
    with pytest.raises(BoardError) as raised:
        put(store, DATA, offset=30)
    assert raised.value.what.startswith("disk full on the board, 70 bytes needed, ")
    assert raised.value.where == store.root
    assert store.have(sha(DATA)) == 30


def test_a_flush_that_fails_is_told_and_the_blob_is_not_named(store, disk):
    disk.fails = "sync"
    with pytest.raises(BoardError, match="the board's disk failed: Input/output error"):
        put(store, DATA)
    assert names(store, "blobs") == []
    disk.fails = ""
    assert put(store, DATA, offset=100, pieces=[b""]) == (100, True)


def test_flushing_and_hashing_go_on_at_the_same_time(store, disk, monkeypatch):
    """Each waits until the other has begun: one after the other would end at the time-out."""
    both = threading.Barrier(2, timeout=20)
    real_hash, real_sync = sha256_file, disk.sync

    def hashing(path):
        both.wait()
        return real_hash(path)

    def syncing(path):
        assert path.endswith("blobs") or threading.current_thread().name == "flush"
        if not path.endswith("blobs"):
            both.wait()
        real_sync(path)

    monkeypatch.setattr(module, "sha256_file", hashing)
    monkeypatch.setattr(disk, "sync", syncing)
    assert put(store, DATA) == (100, True)


def test_a_blob_is_found_and_one_that_was_only_not_named_yet_is_completed(store):
    with pytest.raises(IntegrityError) as raised:
        store.blob(sha(DATA))
    absent = ("a blob is not on the board", f"blob {sha(DATA)}", "push it, then try again")
    assert words(raised) == absent
    at(store, "partial", sha(DATA)).write_bytes(DATA[:50])
    with pytest.raises(IntegrityError) as raised:
        store.blob(sha(DATA))
    assert words(raised) == absent and store.have(sha(DATA)) == 50
    at(store, "partial", sha(DATA)).write_bytes(DATA)
    assert store.blob(sha(DATA)) == store.path("blobs", sha(DATA)) and names(store, "partial") == []
    assert store.blob(sha(DATA)) == store.path("blobs", sha(DATA))
    with pytest.raises(IntegrityError, match="not a sha256"):
        store.blob("../../etc/passwd")


def test_a_rotten_blob_is_dropped_for_good(store, disk):
    put(store, DATA)
    assert store.verified(sha(DATA)) == store.path("blobs", sha(DATA))
    at(store, "blobs", sha(DATA)).write_bytes(b"x" + DATA[1:])
    disk.done.clear()
    with pytest.raises(IntegrityError) as raised:
        store.verified(sha(DATA))
    assert words(raised) == (
        "a blob changed on the board's disk; it was dropped",
        f"blob {sha(DATA)}",
        "run the same command again: it sends the blob anew. If it comes back, check the board's disk",
    )
    assert disk.done == [("unlink", f"blobs/{sha(DATA)}"), ("sync", "root/blobs")]
    assert store.have(sha(DATA)) == 0


def test_a_result_waits_under_its_hash_and_is_fetched_before_a_blob(store, disk):
    path = store.path("tmp", "outputs")
    Path(path).write_bytes(DATA)
    assert store.spool(path) == sha(DATA)
    assert disk.done == [("sync", "tmp/outputs"), ("rename", "tmp/outputs"), ("sync", "root/spool")]
    assert store.fetch(sha(DATA)) == store.path("spool", sha(DATA))
    at(store, "spool", sha(DATA)).unlink()
    put(store, DATA)
    assert store.fetch(sha(DATA)) == store.path("blobs", sha(DATA))
    with pytest.raises(IntegrityError, match="a blob is not on the board"):
        store.fetch(sha(b"none"))
    with pytest.raises(IntegrityError, match="not a sha256"):
        store.fetch("x")


def test_a_listing_is_sorted_and_leaves_hidden_names_out(store):
    for name in ("b", "a", ".c", "a.b"):
        at(store, "runs", name).touch()
    assert store.listing("runs") == ["a", "a.b", "b"]
