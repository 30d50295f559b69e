import errno
import multiprocessing
import os
import signal
import time

import pytest

from edgepipe import cache
from edgepipe.cache import Cache
from edgepipe.errors import UsageError

KEY = cache.key("test", a=1)


def write(text):
    def maker(folder):
        (folder / "x.txt").write_text(text)

    return maker


def remains(store):
    """Everything below the cache but locks and empty folders."""
    return sorted(path.name for path in store.root.rglob("*") if path.is_file() and path.parent.name != "locks")


def test_made_once(tmp_path):
    store = Cache(tmp_path)
    folder, found = store.make(KEY, write("one"))
    assert not found
    again, found = store.make(KEY, write("two"))
    assert found
    assert again == folder
    assert (again / "x.txt").read_text() == "one"


def test_keys_depend_on_every_part():
    keys = {cache.key("test", a=1), cache.key("test", a=2), cache.key("other", a=1), cache.key("test", a=1, b=None)}
    assert len(keys) == 4
    assert cache.key("test", a=1, b=2) == cache.key("test", b=2, a=1)


@pytest.mark.parametrize("damage", ["flip", "truncate", "extend", "remove", "surplus", "index", "no index"])
def test_damaged_entries_are_made_again(tmp_path, damage):
    store = Cache(tmp_path)
    folder, _ = store.make(KEY, write("content"))
    file, index = folder / "x.txt", folder / ".entry.json"
    file.chmod(0o644)
    index.chmod(0o644)
    if damage == "flip":
        file.write_text("c0ntent")
    elif damage == "truncate":
        file.write_text("conten")
    elif damage == "extend":
        file.write_text("content!")
    elif damage == "remove":
        file.unlink()
    elif damage == "surplus":
        (folder / "y.txt").write_text("surplus")
    elif damage == "index":
        index.write_text("[1]")
    else:
        index.unlink()
    assert store.get(KEY) is None
    folder, found = store.make(KEY, write("content"))
    assert not found
    assert (folder / "x.txt").read_text() == "content"
    assert store.get(KEY) == folder
    assert not list((tmp_path / "tmp").iterdir())


def test_files_are_read_only(tmp_path):
    folder, _ = Cache(tmp_path).make(KEY, write("content"))
    assert (folder / "x.txt").stat().st_mode & 0o222 == 0


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_failed_maker_leaves_nothing(tmp_path, error):
    store = Cache(tmp_path)

    def maker(folder):
        (folder / "x.txt").write_text("half")
        raise error

    with pytest.raises(type(error)):
        store.make(KEY, maker)
    assert remains(store) == []
    assert store.make(KEY, write("whole"))[1] is False


def test_full_disk_is_a_usage_error_and_leaves_nothing(tmp_path):
    store = Cache(tmp_path)

    def maker(folder):
        (folder / "x.txt").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "x.txt"))

    with pytest.raises(UsageError, match="disk of the work cache is full") as caught:
        store.make(KEY, maker)
    assert "EDGEPIPE_CACHE" in caught.value.fix
    assert remains(store) == []


def test_other_errors_of_the_maker_stay_what_they_are(tmp_path):
    def maker(folder):
        raise FileNotFoundError(errno.ENOENT, "No such file", "x")

    with pytest.raises(FileNotFoundError):
        Cache(tmp_path).make(KEY, maker)


def test_interrupted_publish_leaves_nothing(tmp_path, monkeypatch):
    """Whichever flush the interruption falls on, there is no entry, or a whole one."""
    real = cache._sync
    for fail_at in range(1, 6):
        store = Cache(tmp_path / str(fail_at))
        calls = []

        def sync(path, calls=calls, fail_at=fail_at):
            calls.append(path)
            if len(calls) == fail_at:
                raise KeyboardInterrupt
            real(path)

        monkeypatch.setattr(cache, "_sync", sync)
        try:
            store.make(KEY, write("content"))
        except KeyboardInterrupt:
            found = store.get(KEY)
            assert found is None or (found / "x.txt").read_text() == "content"
            assert not list((store.root / "tmp").iterdir())
        else:
            assert len(calls) < fail_at


def test_flushes_files_and_folders_before_the_rename(tmp_path, monkeypatch):
    events = []
    real_sync, real_rename = cache._sync, cache.Path.rename
    monkeypatch.setattr(cache, "_sync", lambda path: (events.append(("sync", path.name)), real_sync(path))[1])
    monkeypatch.setattr(
        cache.Path, "rename", lambda path, to: (events.append(("rename", path.name)), real_rename(path, to))[1]
    )
    folder, _ = Cache(tmp_path).make(KEY, write("content"))
    kinds = [kind for kind, _ in events]
    before = events[: kinds.index("rename")]
    assert {"x.txt", ".entry.json"} <= {name for _, name in before}
    assert any(name.startswith(KEY) for _, name in before)
    assert events[-1] == ("sync", folder.parent.name)


def _slow(root, queue):
    def maker(folder):
        queue.put("made")
        time.sleep(0.3)
        (folder / "x.txt").write_text("content")

    Cache(root).make(KEY, maker)


def test_concurrent_makers_do_the_work_once(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_slow, args=(tmp_path, queue)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
        assert worker.exitcode == 0
    assert queue.get(timeout=1) == "made"
    time.sleep(0.1)
    assert queue.empty()


def _stuck(root, queue):
    def maker(folder):
        (folder / "x.txt").write_text("half")
        queue.put("started")
        time.sleep(60)

    Cache(root).make(KEY, maker)


def test_a_killed_maker_blocks_nobody_and_its_rest_is_swept(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=_stuck, args=(tmp_path, queue))
    worker.start()
    queue.get(timeout=10)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(10)
    assert len(list((tmp_path / "tmp").iterdir())) == 1
    folder, found = Cache(tmp_path).make(KEY, write("whole"))
    assert not found
    assert (folder / "x.txt").read_text() == "whole"
    assert not list((tmp_path / "tmp").iterdir())


def test_versions_and_code(tmp_path):
    assert cache.versions(("numpy", "no-such-distribution"))["no-such-distribution"] is None
    assert cache.versions(("numpy",))["numpy"]
    one, other = tmp_path / "a.py", tmp_path / "b.py"
    one.write_text("x = 1")
    other.write_text("y = 1")
    before = cache.code(one, other)
    assert before == cache.code(other, one, None)
    other.write_text("y = 2")
    assert cache.code(one, other) != before


def aged(store, name, seconds, text="x" * 100):
    """An entry last used so long ago."""
    folder, _ = store.make(cache.key("test", name=name), write(text))
    then = time.time() - seconds
    os.utime(folder, (then, then))
    return folder


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    store = Cache(tmp_path)
    old, older, oldest = (aged(store, name, age) for name, age in (("a", 7200), ("b", 8200), ("c", 9200)))
    store.make(cache.key("test", name="c"), write("never"))  # used again
    fresh = aged(store, "d", 10)
    found = store.trim(300)
    assert (found.entries, found.freed_bytes, found.left_bytes) == (1, 100, 300)
    assert [folder.exists() for folder in (old, older, oldest, fresh)] == [True, False, True, True]
    assert store.trim(0).entries == 1
    assert [folder.exists() for folder in (old, oldest, fresh)] == [False, True, True], "the last hour is kept"
    assert store.make(cache.key("test", name="b"), write("again"))[1] is False


def test_what_dead_makers_left_goes_and_what_is_being_made_stays(tmp_path):
    store = Cache(tmp_path)
    folder = aged(store, "a", 9000)
    for name in (folder.name, "dead"):
        (tmp_path / "tmp" / f"{name}-x").mkdir(parents=True)
    with store._locked(folder.name):
        assert store.trim(0).entries == 0
        assert (tmp_path / "tmp" / f"{folder.name}-x").exists()
    assert not (tmp_path / "tmp" / "dead-x").exists()
    assert store.trim(0).entries == 1


def test_the_bound_holds_without_being_asked(tmp_path, monkeypatch):
    store = Cache(tmp_path)
    old = aged(store, "a", 2 * 86400)
    monkeypatch.setenv("EDGEPIPE_CACHE_LIMIT", "150")
    cache._bounded.discard(tmp_path)
    store.make(KEY, write("y" * 100))
    assert not old.exists()
    assert store.get(KEY)


@pytest.mark.parametrize(("text", "bytes_"), [("0", 0), ("500M", 5 * 10**8), ("20G", 2 * 10**10), ("12", 12)])
def test_sizes(text, bytes_):
    assert cache.size(text, "here") == bytes_


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5G", "G", "1 G"])
def test_no_sizes(text):
    with pytest.raises(UsageError, match="not a size"):
        cache.size(text, "here")
