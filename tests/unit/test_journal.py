"""The journal under kill -9, torn lines, full disks and many writers, with real processes and files."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgepipe import journal, measurement
from edgepipe.errors import EdgepipeError, UsageError
from edgepipe.journal import Journal
from tests.unit.report_samples import OPTIONS, PLAN, report

ROOT = Path(journal.__file__).parent.parent


def values(book: Journal) -> list[int]:
    return [record.value["n"] for record in book.records("test")]


def child(code: str, home: Path, *arguments: str) -> subprocess.Popen[str]:
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path\n"
    start += "from edgepipe.journal import Journal\nbook = Journal(Path(sys.argv[1]))\n"
    return subprocess.Popen(
        [sys.executable, "-c", start + code, str(home), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_report_comes_back_as_it_was(tmp_path):
    kept = Journal(tmp_path).append_report(replace(report(), id="", created=""))
    assert kept.id and kept.created
    assert Journal(tmp_path).all() == [kept]
    assert Journal(tmp_path).find(kept.id[:12]) == kept
    assert (tmp_path / "journal.jsonl").stat().st_mode & 0o777 == 0o600


def test_an_empty_journal_has_nothing(tmp_path):
    book = Journal(tmp_path / "none")
    assert book.all() == [] and list(book.records()) == []
    with pytest.raises(UsageError):
        book.find("2026")
    assert not (tmp_path / "none").exists()


def test_the_default_folder_is_edgepipes(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPIPE_HOME", str(tmp_path / "home"))
    Journal().append("test", {"n": 1})
    assert (tmp_path / "home" / "journal.jsonl").is_file()


def test_reports_are_latest_first_and_filtered(tmp_path):
    book = Journal(tmp_path)
    failed = measurement.failed("failed", "it died", PLAN, OPTIONS)
    first = book.append_report(report("a", target="pi4", number=1))
    second = book.append_report(report("b", target="pi4", run=failed, number=2))
    third = book.append_report(report("a", target="loopback", number=3))
    assert book.reports() == [third, second, first]
    assert book.all() == [first, second, third]
    assert book.reports(model="a") == [third, first]
    assert book.reports(target="pi4", status="failed") == [second]
    assert book.reports(limit=1) == [third]
    assert book.reports(limit=0) == []
    assert book.reports(model="' OR 1=1 --") == []


def test_an_ambiguous_id_lists_the_runs(tmp_path):
    book = Journal(tmp_path)
    ids = [book.append_report(replace(report(), id=f"20261122-1614{i:02d}-aaaa")).id for i in range(10)]
    with pytest.raises(UsageError) as caught:
        book.find("20261122-16")
    assert ids[-1] in caught.value.fix and "10 runs" in caught.value.what
    assert book.find(ids[3]).id == ids[3]
    with pytest.raises(UsageError):
        book.find("%")


def test_an_id_that_begins_another_is_found(tmp_path):
    book = Journal(tmp_path)
    short = book.append_report(replace(report(), id="20261122-161405-aa"))
    book.append_report(replace(report(), id="20261122-161405-aabb"))
    assert book.find(short.id) == short


def test_a_report_kept_again_replaces_and_a_replay_adds_nothing(tmp_path):
    book = Journal(tmp_path)
    kept = book.append_report(report(number=1))
    other = book.append_report(report(number=2))
    size = book.path.stat().st_size
    assert book.append_report(kept) == kept
    assert book.path.stat().st_size == size
    grown = book.append_report(replace(kept, release=None))
    assert book.reports() == [grown, other]
    assert len(list(book.records())) == 3, "what was written stays"


def test_ids_sort_by_time_and_do_not_collide():
    assert journal.new_id(1_700_000_000) < journal.new_id(1_700_000_001)
    assert journal.new_id(1_700_000_000).startswith("20231114-221320-")
    assert len({journal.new_id() for _ in range(2000)}) == 2000


def test_torn_at_every_byte_of_the_last_line_nothing_else_is_lost(tmp_path):
    book = Journal(tmp_path)
    for n in range(3):
        book.append("test", {"n": n})
    whole = book.path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    for cut in range(start, len(whole)):
        book.path.write_bytes(whole[:cut])
        reader = Journal(tmp_path)
        complete = cut == len(whole) - 1  # only the newline is missing
        assert values(reader) == ([0, 1, 2] if complete else [0, 1])
        assert bool(reader.cautions) is (start < cut < len(whole) - 1)
        writer = Journal(tmp_path)
        writer.append("test", {"n": 9})
        assert values(writer) == ([0, 1, 2, 9] if complete else [0, 1, 9])
        assert book.path.read_bytes().startswith(whole[:start])


def test_a_tail_of_zeros_after_a_power_cut_is_cut_off(tmp_path):
    book = Journal(tmp_path)
    book.append("test", {"n": 1})
    with book.path.open("ab") as file:
        file.write(b"\0" * 4096)
    fresh = Journal(tmp_path)
    fresh.append("test", {"n": 2})
    assert values(fresh) == [1, 2]
    assert [caution.code for caution in fresh.cautions] == ["torn_line"]


def test_a_flipped_byte_costs_its_line_alone(tmp_path):
    book = Journal(tmp_path)
    kept = [book.append_report(report(number=n)) for n in range(1, 6)]
    lines = book.path.read_bytes().splitlines(keepends=True)
    rng = random.Random(1)
    for _ in range(100):
        damaged = bytearray(lines[2])
        damaged[rng.randrange(len(damaged) - 1)] ^= 1 << rng.randrange(7)
        book.path.write_bytes(b"".join([*lines[:2], damaged, *lines[3:]]))
        for index in ("as it was", "made again"):
            if index == "made again":
                book.index.unlink()
            reader = Journal(tmp_path)
            assert reader.all() == [r for r in kept if r is not kept[2]], index
            assert reader.cautions, index
        book.path.write_bytes(b"".join(lines))
        book.index.unlink()
        assert Journal(tmp_path).all() == kept


@pytest.mark.parametrize("damage", ["missing", "garbage", "empty", "of another journal", "stale", "cut"])
def test_the_index_is_made_again(tmp_path, damage):
    book = Journal(tmp_path)
    kept = [book.append_report(report(number=n)) for n in range(1, 5)]
    assert book.reports() == kept[::-1]
    index = book.index
    if damage == "missing":
        index.unlink()
    elif damage == "garbage":
        index.write_bytes(os.urandom(5000))
    elif damage == "empty":
        index.write_bytes(b"")
    elif damage == "of another journal":
        other = Journal(tmp_path / "other")
        for n in range(30):
            other.append_report(report(f"model-{n}"[:60], number=n))
        other.reports()
        index.write_bytes(other.index.read_bytes())
    elif damage == "stale":
        with sqlite3.connect(index) as connection:
            connection.execute("UPDATE lines SET start = start + 7")
    else:
        index.write_bytes(index.read_bytes()[:3000])
    assert Journal(tmp_path).reports() == kept[::-1]


def test_a_replaced_journal_is_seen(tmp_path):
    book = Journal(tmp_path)
    book.append_report(report("a", number=1))
    book.append_report(report("a", number=2))
    assert len(book.reports()) == 2
    book.path.unlink()
    other = book.append_report(report("b", number=3))
    assert book.reports() == [other]


def test_two_writers_lose_nothing(tmp_path):
    code = "for n in range(int(sys.argv[2]), int(sys.argv[2]) + 60): book.append('test', {'n': n})"
    writers = [child(code, tmp_path, str(base)) for base in (0, 1000, 2000)]
    while any(writer.poll() is None for writer in writers):
        reader = Journal(tmp_path)
        list(reader.records())
        reader.reports()
        assert reader.cautions == [], "a reader never sees half a line"
    assert [writer.communicate()[1] for writer in writers] == ["", "", ""]
    assert sorted(values(Journal(tmp_path))) == [*range(60), *range(1000, 1060), *range(2000, 2060)]


def test_a_writer_waits_while_another_has_the_file(tmp_path):
    book = Journal(tmp_path)
    book.append("test", {"n": 1})
    with book.path.open("ab") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        writer = child("book.append('test', {'n': 2})", tmp_path)
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(1.5)
        assert values_unlocked(book) == 1
    assert writer.communicate()[1] == ""
    assert values(Journal(tmp_path)) == [1, 2]


def values_unlocked(book: Journal) -> int:
    return book.path.read_bytes().count(b"\n")


def test_killed_at_any_moment_what_was_acknowledged_is_there(tmp_path):
    rng, acknowledged = random.Random(3), []
    code = (
        "n = int(sys.argv[2])\n"
        "while True:\n    book.append('test', {'n': n, 'pad': 'x' * 20000}); print(n, flush=True); n += 1"
    )
    for attempt in range(8):
        writer = child(code, tmp_path, str(attempt * 10_000))
        assert writer.stdout
        first = writer.stdout.readline()
        time.sleep(rng.random() * 0.05)
        os.kill(writer.pid, signal.SIGKILL)
        # Not by communicate(), which loses the lines that came along with the first one.
        acknowledged += [int(line) for line in (first + writer.stdout.read()).split()]
        writer.communicate()
    found = values(Journal(tmp_path))
    assert len(acknowledged) > 8
    assert set(acknowledged) <= set(found) and len(found) == len(set(found))
    assert len(found) - len(acknowledged) <= 8, "at most one unacknowledged line for each kill"


def test_a_full_disk_is_an_error_in_words_and_harms_nothing(tmp_path):
    """The kernel stops the file at a size, as a full disk does: after a part of the line."""
    book = Journal(tmp_path)
    book.append("test", {"n": 1})
    before = book.path.read_bytes()
    limit = len(before) + 100
    code = (
        f"import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from edgepipe.errors import EdgepipeError\n"
        "try: book.append('test', {'n': 2, 'pad': 'x' * 5000})\n"
        "except EdgepipeError as error: print(error.what, '|', error.fix)"
    )
    out, err = child(code, tmp_path).communicate()
    assert "can't be kept" in out and "free some space" in out, err
    assert book.path.read_bytes() == before
    book.append("test", {"n": 3})
    assert values(Journal(tmp_path)) == [1, 3]


def test_a_folder_that_can_not_be_written_is_an_error_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgepipeError) as caught:
        Journal(tmp_path / "file").append("test", {"n": 1})
    assert caught.value.fix


def test_a_report_of_another_version_is_skipped_with_a_warning(tmp_path):
    book = Journal(tmp_path)
    book.append("report", {"schema": "edgepipe.report/9", "new": True})
    kept = book.append_report(report())
    assert book.all() == [kept]
    assert [caution.code for caution in book.cautions] == ["other_version"]


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        Journal(tmp_path).append("test", {"n": float("nan")})
    assert list(Journal(tmp_path).records()) == []


def test_a_line_is_on_the_disk_before_it_is_acknowledged(tmp_path, monkeypatch):
    """After the line's bytes comes an fsync of the file, and after a new file one of its folder."""
    done: list[tuple[str, str]] = []
    write, fsync = os.write, os.fsync

    def name(handle: int) -> str:
        return Path(f"/proc/self/fd/{handle}").readlink().name

    monkeypatch.setattr(
        os, "write", lambda handle, data: (done.append(("write", name(handle))), write(handle, data))[1]
    )
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append(("fsync", name(handle))), fsync(handle))[1])
    Journal(tmp_path / "home").append("test", {"n": 1})
    assert done == [("write", "journal.jsonl"), ("fsync", "journal.jsonl"), ("fsync", "home")]
    done.clear()
    Journal(tmp_path / "home").append("test", {"n": 2})
    assert done == [("write", "journal.jsonl"), ("fsync", "journal.jsonl")]
