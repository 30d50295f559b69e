"""Files told against older ones: they come out as they were, short where they can be; nothing hostile is followed."""

from __future__ import annotations

import dataclasses
import random
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepipe import codec, deploy
from edgepipe.agent import coding, delta
from edgepipe.errors import DeadlineError, IntegrityError, LinkError, UsageError
from edgepipe.link import _align, _delta, _sent
from edgepipe.progress import Silent
from edgepipe.report import rows
from edgepipe.schema import DeltaSent, FileRef, Release
from tests.delta_kit import digest_of, released


def rebuilt(folder, old: bytes, pieces: list[_delta.Piece], size: int) -> bytes:
    """What the board makes of the pieces."""
    base = folder / "base"
    base.write_bytes(old)
    found = b""
    for piece in pieces:
        assert piece.start == len(found) and len(piece.data) <= coding.MOST_PACKED
        opened = coding.unpack(piece.coding, iter([piece.data]), delta.MOST_INSTRUCTIONS)
        found += b"".join(delta.rebuild(str(base), opened, size - piece.start))
        assert len(found) == piece.end
    return found


def made(old: bytes, new: bytes, codings=("zlib",)) -> list[_delta.Piece]:
    return list(_delta._pieces(np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8), list(codings)))


@st.composite
def pairs(draw):
    """An old file, and a new one that is cut, copied, moved and written over out of it."""
    seed = draw(st.integers(0, 1 << 30))
    rng = random.Random(seed)
    old = rng.randbytes(rng.choice([0, 1, 500, 5000, 40_000])) + bytes(rng.choice([0, 3000])) + rng.randbytes(2000)
    new = bytearray(old)
    for _ in range(draw(st.integers(0, 6))):
        at, count = rng.randrange(len(new) + 1), rng.choice([1, 3, 100, 2000])
        what = rng.randrange(4)
        if what == 0:
            new[at:at] = rng.randbytes(count)
        elif what == 1:
            del new[at : at + count]
        elif what == 2:
            new[at:at] = new[rng.randrange(len(new) + 1) :][:count]
        else:
            new[at : at + count] = rng.randbytes(len(new[at : at + count]))
    return old, bytes(new) or b"x"


@settings(max_examples=150, deadline=None)
@given(pairs(), st.sampled_from([(), ("zlib",), ("zstd", "zlib")]))
def test_what_is_told_is_what_it_was(tmp_path_factory, pair, codings):
    old, new = pair
    codings = [one for one in codings if one in coding.known()]
    assert rebuilt(tmp_path_factory.getbasetemp(), old, made(old, new, codings), len(new)) == new


def test_bounds_of_a_piece_hold_for_large_files(tmp_path):
    old = random.Random(1).randbytes(1 << 20) * 40
    new = bytearray(old)
    new[30_000_000:33_000_000] = random.Random(2).randbytes(3_000_000)
    new[5:5] = b"moved"
    pieces = made(old, bytes(new))
    assert all(piece.end - piece.start <= delta.MOST_OUTPUT for piece in pieces) and len(pieces) >= 5
    assert sum(len(piece.data) for piece in pieces) < 3_100_000
    assert rebuilt(tmp_path, old, pieces, len(new)) == new


def test_runs_find_what_moved():
    rng = random.Random(3)
    parts = [rng.randbytes(9000) for _ in range(4)]
    old = b"".join(parts)
    new = parts[0] + b"+" * 10 + parts[2] + parts[1][:5000] + parts[3]
    found = _align.runs(np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8))
    assert [run.start for run in found] == [0, *(run.end for run in found[:-1])] and found[-1].end == len(new)
    shifts = {
        at: next(run.shift for run in found if run.start <= at < run.end) for at in (4000, 12_000, 20_000, 30_000)
    }
    assert shifts == {4000: 0, 12_000: 9000 - 10, 20_000: -9010, 30_000: len(old) - len(new)}


def head(kind: int, offset: int, length: int) -> bytes:
    return struct.pack(">BQI", kind, offset, length)


@pytest.mark.parametrize(
    "bad",
    [
        head(delta.COPY, 0, 1001),
        head(delta.COPY, 1000, 1),
        head(delta.COPY, (1 << 64) - 1, 2),
        head(delta.COPY, 0, 0),
        head(delta.XOR, 999, 2) + b"ab",
        head(delta.XOR, 0, 5) + b"abcd",
        head(delta.INSERT, 0, 5) + b"abcd",
        head(delta.INSERT, 7, 2) + b"ab",
        head(3, 0, 1) + b"a",
        head(delta.INSERT, 0, (1 << 32) - 1) + b"ab",
        head(delta.COPY, 0, 10)[:-1],
        head(delta.COPY, 0, 900) * 10,
        b"\0",
    ],
)
def test_hostile_instructions_are_refused_before_a_byte_is_made(tmp_path, bad):
    base = tmp_path / "base"
    base.write_bytes(bytes(1000))
    for before in (b"", head(delta.COPY, 0, 100)):
        found = delta.rebuild(str(base), iter([before, bad]), 5000)
        with pytest.raises(IntegrityError):
            next(found)


def test_memory_and_output_are_bounded_whatever_is_sent(tmp_path):
    base = tmp_path / "base"
    base.write_bytes(bytes(8 << 20))
    with pytest.raises(IntegrityError, match="more than"):
        list(delta.rebuild(str(base), iter([bytes(700_000)] * 2), 1 << 40))
    with pytest.raises(IntegrityError, match="too much"):  # 75 thousand times 8 MiB
        list(delta.rebuild(str(base), iter([head(delta.COPY, 0, 8 << 20) * 75_000]), 1 << 50))
    tracemalloc.start()
    total = sum(map(len, delta.rebuild(str(base), iter([head(delta.COPY, 0, 8 << 20) * 2]), 1 << 40)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 16 << 20 and peak < 4 << 20


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400))
def test_any_bytes_end_in_a_typed_error_or_within_the_bounds(tmp_path_factory, data, most):
    base = tmp_path_factory.getbasetemp() / "small"
    base.write_bytes(b"weights" * 10)
    try:
        found = b"".join(delta.rebuild(str(base), iter([data]), most))
    except IntegrityError:
        return
    assert len(found) <= most


def test_a_base_that_is_gone_or_became_shorter_is_an_integrity_error(tmp_path):
    with pytest.raises(IntegrityError, match="can't be read"):
        list(delta.rebuild(str(tmp_path / "none"), iter([head(delta.COPY, 0, 1)]), 5))
    base = tmp_path / "base"
    base.write_bytes(bytes(1 << 20))
    found = delta.rebuild(str(base), iter([head(delta.COPY, 0, 1 << 20)]), 1 << 20)
    next(found)
    base.write_bytes(b"")
    with pytest.raises(IntegrityError, match="shorter"):
        list(found)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Keep a file as one sent before; returns the release it belongs to."""
    monkeypatch.setenv("EDGEPIPE_CACHE", str(tmp_path / "cache"))

    def keep(data: bytes, name: str = "model.onnx"):
        path = tmp_path / name
        path.write_bytes(data)
        _sent.keep(path, digest_of(data))
        return released(name, data)

    return keep


def planned(new: bytes, *releases, name: str = "model.onnx"):
    ref = FileRef(name, digest_of(new), len(new))
    return _delta.plan(new, ref, list(releases), ["zlib"])


def test_a_delta_is_made_only_where_it_saves_more_than_half(kept):
    rng = random.Random(5)
    old = rng.randbytes(400_000)
    release = kept(old)
    close, far = bytearray(old), rng.randbytes(400_000)
    close[70_000:70_004] = b"1234"
    plan = planned(bytes(close), release)
    assert plan and plan.base == digest_of(old) and plan.wire < 3000 and plan.whole >= 400_000
    assert plan.said("f" * 64).bytes_saved == plan.whole - plan.wire
    assert planned(far, release) is None
    assert planned(old[:170_000] + far[170_000:], release) is None
    assert planned(old[:230_000] + far[230_000:], release)
    assert planned(bytes(close[:5000]), release) is None  # too small to be worth a question
    assert planned(bytes(close), release, name="model.tflite") is None


def test_floats_that_all_moved_a_little_are_told_by_their_differences(kept):
    old = np.random.default_rng(0).integers(-127, 127, 300_000).astype(np.int8)
    new = old.copy()
    some = np.random.default_rng(1).choice(len(old), len(old) // 20, replace=False)
    new[some] += 1
    plan = planned(new.tobytes(), kept(old.tobytes()))
    assert plan and plan.wire < 0.5 * plan.whole


def test_a_copy_that_is_no_longer_what_it_was_is_not_used(kept):
    old = random.Random(6).randbytes(200_000)
    release, new = kept(old), old[:100_000] + b"!" + old[100_000:]
    assert planned(new, release)
    _sent.find(digest_of(old)).write_bytes(old[:-1] + b"?")
    assert planned(new, release) is None
    _sent.find(digest_of(old)).unlink()
    assert planned(new, release) is None


def test_copies_are_bounded_and_those_of_the_cache_take_no_room(kept, tmp_path):
    for number in range(6):
        kept(bytes([number]) * 100_000)
    _sent.trim(250_000)
    assert _sent.find(digest_of(bytes([5]) * 100_000)) and not _sent.find(digest_of(bytes([3]) * 100_000))
    fixed = tmp_path / "fixed"
    fixed.write_bytes(zlib.compress(b"x"))
    fixed.chmod(0o444)
    _sent.keep(fixed, "a" * 64)
    assert _sent.find("a" * 64).samefile(fixed)
    _sent.keep(tmp_path / "none", "b" * 64)  # never raises
    assert _sent.find("b" * 64) is None


def test_a_release_whose_manifest_is_not_to_be_had_is_passed_over():
    good = released("model.onnx", b"x")

    class Board:
        def manifest(self, name):
            if name == "good":
                return good
            raise {"gone": UsageError, "cut": LinkError, "late": DeadlineError}[name]("x", "y")

    assert _delta.releases_of(Board(), ["gone", None, "good"]) == [good]
    for name, kind in (("cut", LinkError), ("late", DeadlineError)):
        with pytest.raises(kind):
            _delta.releases_of(Board(), [name])


def test_a_base_is_a_hash_and_never_a_path():
    ref, path = FileRef("model.onnx", "a" * 64, 1), "../../secret"
    files = [FileRef("model.onnx", path, 1), FileRef("b.onnx", "b" * 64, 1), FileRef("model.onnx", "c" * 64, 1)]
    release = released("model.onnx", b"x")
    release = dataclasses.replace(release, artifact=dataclasses.replace(release.artifact, files=files))
    assert list(dict.fromkeys(_delta.bases(ref, [release]))) == ["c" * 64, "b" * 64]


def test_the_record_says_what_went_as_a_delta(tmp_path):
    told = DeltaSent("a" * 64, "b" * 64, 5_000_000, 1234, 4_000_000)

    class Board:
        bytes_wire, deltas = 100, [told]

        def push(self, files):
            self.bytes_wire, self.deltas = 1334, [told, told]
            return 5_000_000

    candidate, notes = deploy.Candidate(None, released("m", b"x"), None), Notes()
    deploy._send(candidate, [], Board(), notes)
    assert (candidate.bytes_sent, candidate.bytes_wire, candidate.deltas) == (5_000_000, 1234, [told])
    assert "sent as 1,234: a delta against bbbbbbbbbbbb, 4,000,000 saved" in notes.said[0]
    release = Release("r", bytes_sent=5_000_000, deltas=candidate.deltas)
    assert rows._sent(release).endswith("sent; 5,000,000 of them as 1,234: delta against bbbbbbbbbbbb, 4,000,000 saved")
    known = codec.to_dict(release)
    assert codec.from_dict(Release, known) == release
    del known["deltas"]  # written by a version that had none
    assert codec.from_dict(Release, known).deltas == []


class Notes(Silent):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)
