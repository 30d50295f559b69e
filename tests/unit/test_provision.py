"""Provisioning: real pip on small wheels in a folder, a board that takes everything, and all that may go wrong."""

from __future__ import annotations

import dataclasses
import shutil
import types
from pathlib import Path

import pytest

from edgepipe import provision, wheelhouse
from edgepipe.agent.health import Clocks, Health, Interpreter, Trial
from edgepipe.errors import BoardError, LinkError, UsageError
from edgepipe.link import Result
from edgepipe.progress import Silent
from edgepipe.provision import Order
from edgepipe.schema import Board, Runtime
from edgepipe.wheelhouse import resolve
from edgepipe.wheels import Platform
from tests.wheel_kit import library, wheel

A72 = ["fp", "asimd", "evtstrm", "crc32", "cpuid"]
BOARD = Board("aarch64", "Cortex-A72", A72, 4, None, "os", "k", "3.11.2", "glibc 2.36")
PI = Platform("aarch64", (3, 11), 36)
TAG = "cp311-cp311-manylinux_2_28_aarch64"
PLAIN = {"onnxruntime/__init__.py": b"", "onnxruntime/ort.so": library(versions=(b"GLIBC_2.28",))}
EXTRA = {"onnxruntime/tests/test_x.py": b"", "onnxruntime/x.pyi": b"", "onnxruntime/x.h": b""}
TARGET = types.SimpleNamespace(name="rpi4", link="ssh")


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPIPE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EDGEPIPE_CACHE", raising=False)


@pytest.fixture
def house(tmp_path):
    """A folder of wheels: ONNX Runtime and what it needs."""
    folder = tmp_path / "house"
    wheel(folder, "onnxruntime", "1.31.1", TAG, {**PLAIN, **EXTRA}, "helper")
    wheel(folder, "helper", "2.0", "py3-none-any", {"helper.py": b"x = 1\n"})
    return folder


class Client:
    """A board that takes everything; ``trials`` is what its doctor says, ``free`` its room."""

    def __init__(self, board=BOARD, trials=(), free=10**9, numpy=""):
        self.board, self.trials, self.free, self.numpy = board, list(trials), free, numpy
        self.pushed, self.sites, self.have = [], [], {}

    def hello(self):
        return types.SimpleNamespace(board=self.board)

    def doctor(self):
        own = Interpreter("/usr/bin/python3", "3.11.2", "", self.numpy, own=True)
        return Health([own], self.trials, Clocks("absent"), [], 30, "", "", None, None, 10**9, self.free)

    def refresh(self):
        found = [Runtime(name, "1", name, True) for name in ("onnxruntime", "tflite")]
        self.board = dataclasses.replace(self.board, runtimes=found)
        return self.hello()

    def status(self, blobs):
        return types.SimpleNamespace(have={sha: self.have.get(sha, 0) for sha in blobs}, free_bytes=self.free)

    def push(self, files):
        new = {ref.sha256: ref.bytes for _, ref in files if ref.sha256 not in self.have}
        self.have.update(new)
        self.pushed += files
        return sum(new.values())

    def site(self, runtime, files, note, dry_run=False):
        changed = (runtime, note) not in self.sites
        if not dry_run and changed:
            self.sites.append((runtime, note))
        return types.SimpleNamespace(files=len(files), bytes=sum(ref.bytes for ref in files), changed=changed)


def give(client, names=("onnxruntime",), **order):
    return provision.provision(TARGET, client, list(names) if names else None, Silent(), Order(**order))


def test_wheels_become_the_files_a_board_needs_once(house, monkeypatch):
    found = resolve(["onnxruntime<=1.31.1"], PI, house)
    names = [file.name for file in found.files]
    assert {"onnxruntime/__init__.py", "onnxruntime/ort.so", "helper.py"} < set(names)
    assert not any(part in name for name in names for part in ("tests/", ".pyi", ".h", "pyc"))
    assert [each.name for each in found.wheels] == ["helper 2.0", "onnxruntime 1.31.1"]
    assert all(len(each.sha256) == 64 for each in found.wheels)
    assert not any(str(house).encode() in path.read_bytes() for path in found.folder.rglob("*") if path.is_file())
    # Made anew it is the same to the byte, so a board that has it is left alone.
    shutil.rmtree(found.folder)
    assert resolve(["onnxruntime<=1.31.1"], PI, house) == found
    monkeypatch.setattr(wheelhouse, "_pip", lambda *_: pytest.fail("what is there is taken"))
    assert resolve(["onnxruntime<=1.31.1"], PI, house) == found


@pytest.mark.parametrize(("minor", "python"), [(13, ">=3.12"), (9, "<3.10")])
def test_the_boards_python_decides_not_this_hosts(tmp_path, minor, python):
    tag = f"cp3{minor}-cp3{minor}-manylinux_2_28_aarch64"
    wheel(tmp_path / "house", "onnxruntime", "1.31.1", tag, PLAIN, python=python)
    found = resolve(["onnxruntime"], dataclasses.replace(PI, python=(3, minor)), tmp_path / "house")
    assert [each.name for each in found.wheels] == ["onnxruntime 1.31.1"]


def test_the_other_machine_and_all_its_tags_are_asked_for(monkeypatch):
    calls = []

    def run(self, argv, stdin=b"", deadline=0):
        calls.append(argv)
        return Result(1, b"", b"ERROR: No matching distribution found")

    monkeypatch.setattr(wheelhouse.LocalLink, "run", run)
    with pytest.raises(BoardError, match=r"no wheels of x==1 fit Python 3\.11, aarch64, glibc 2\.36"):
        resolve(["x==1"], PI)
    (argv,) = calls
    assert argv[1:4] == ["-m", "pip", "download"] and "--only-binary=:all:" in argv
    assert argv[argv.index("--python-version") + 1] == "3.11"
    tags = [argv[at + 1] for at, part in enumerate(argv) if part == "--platform"]
    assert tags == PI.tags() and {"manylinux_2_36_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"} < set(
        tags
    )


@pytest.mark.parametrize(
    "tag",
    ["cp310-cp310-manylinux_2_28_aarch64", "cp311-cp311-manylinux_2_28_x86_64", "cp311-cp311-manylinux_2_39_aarch64"],
)
def test_a_wheel_for_another_abi_is_a_typed_error(tmp_path, tag):
    wheel(tmp_path / "house", "onnxruntime", "1.31.1", tag, PLAIN)
    client = Client()
    with pytest.raises(BoardError) as caught:
        give(client, source=tmp_path / "house")
    assert tag in caught.value.what and "Python 3.11, aarch64, glibc 2.36" in caught.value.what
    assert "cp311" in caught.value.fix and not client.pushed
    (none,) = (each for each in give(client, None, source=tmp_path / "house") if each.runtime == "onnxruntime")
    assert none.state == "none" and tag in none.reason


@pytest.mark.parametrize(
    ("content", "platform", "says"),
    [
        (library(62), PI, "is for x86_64, and the board is aarch64"),
        (library(), dataclasses.replace(PI, glibc=31), r"needs glibc 2\.34, and the board has 2\.31"),
        (library(), dataclasses.replace(PI, libstdcxx=28), r"needs GLIBCXX_3\.4\.30, .*ends at 3\.4\.28"),
    ],
)
def test_a_wheel_that_holds_less_than_it_promises(tmp_path, content, platform, says):
    wheel(tmp_path / "house", "onnxruntime", "1.31.1", TAG, {"onnxruntime/liblie.so.1": content})
    with pytest.raises(BoardError, match=says) as caught:
        resolve(["onnxruntime"], platform, tmp_path / "house")
    assert caught.value.where == "onnxruntime/liblie.so.1"
    assert list((tmp_path / "home/cache/sites").iterdir()) == []


def test_a_wheel_that_changed_since_it_was_hashed_is_refused(house, monkeypatch):
    real = wheelhouse._download

    def meddled(*arguments):
        found = real(*arguments)
        path = arguments[2] / found[1].file
        path.write_bytes(path.read_bytes() + b"\0")
        return found

    monkeypatch.setattr(wheelhouse, "_download", meddled)
    with pytest.raises(BoardError, match="pip failed"):
        resolve(["onnxruntime"], PI, house)


def test_a_folder_that_is_none_and_one_that_lacks_a_wheel(tmp_path, house):
    with pytest.raises(UsageError, match="no such folder"):
        resolve(["onnxruntime"], PI, tmp_path / "absent")
    (house / "helper-2.0-py3-none-any.whl").unlink()
    with pytest.raises(BoardError, match="no wheels of onnxruntime fit"):
        resolve(["onnxruntime"], PI, house)


@pytest.mark.parametrize(
    ("said", "kind", "what"),
    [
        ("/usr/bin/python3: No module named pip", UsageError, "no pip"),
        (
            "WARNING: Retrying (Retry(total=1...\nERROR: No matching distribution found for x",
            LinkError,
            "package index",
        ),
        ("\x1b[31mERROR: disk\x1b[0m", BoardError, "pip failed"),
    ],
)
def test_pips_troubles_in_words(monkeypatch, said, kind, what, tmp_path):
    monkeypatch.setattr(wheelhouse.LocalLink, "run", lambda *_, **__: Result(1, b"", said.encode()))
    with pytest.raises(kind, match=what) as caught:
        resolve(["x==9"], PI)
    assert "\x1b" not in caught.value.what + caught.value.fix
    assert list((tmp_path / "home/cache/sites").iterdir()) == []


def test_a_missing_runtime_is_pushed_and_the_second_time_nothing_changes(house):
    client = Client()
    (done,) = give(client, source=house)
    assert (done.state, done.version) == ("installed", "onnxruntime 1.31.1")
    assert done.bytes_sent == done.bytes_missing > 0 and len(done.wheels) == 2
    assert client.sites == [("onnxruntime", "onnxruntime 1.31.1")]
    (again,) = give(client, source=house)
    assert (again.state, again.bytes_sent, again.bytes_missing) == ("unchanged", 0, 0)


def test_a_check_says_what_would_be_done_and_does_nothing(house):
    client = Client()
    (done,) = give(client, check=True, source=house)
    assert done.state == "would install" and done.bytes_missing > 0 and done.bytes_sent == 0
    assert not client.pushed and not client.sites
    give(client, source=house)
    (again,) = give(client, check=True, source=house)
    assert again.state == "unchanged" and again.bytes_missing == 0


def test_no_room_is_told_before_any_byte_is_sent(house):
    client = Client(free=100_000)
    for order in ({"check": True}, {}):
        with pytest.raises(
            BoardError, match=r"no room for onnxruntime: it needs 1\.\d MB, and 0\.1 MB are free"
        ) as caught:
            give(client, source=house, **order)
        assert "edgepipe gc --target rpi4" in caught.value.fix
    with pytest.raises(BoardError, match="no room"):
        give(client, None, source=house)
    assert not client.pushed and not client.sites


def test_a_full_disk_does_not_matter_where_all_is_there(house):
    client = Client()
    give(client, source=house)
    client.free = 0
    assert give(client, source=house)[0].state == "unchanged"


def test_a_version_known_to_die_there_is_not_sent(tmp_path):
    wheel(tmp_path / "house", "onnxruntime", "1.21.0", TAG, PLAIN)
    client = Client()
    with pytest.raises(BoardError, match="would not run on Cortex-A72: it dies with SIGILL on a CPU without atomics"):
        give(client, source=tmp_path / "house")
    assert not client.pushed
    newer = Client(dataclasses.replace(BOARD, isa=[*A72, "atomics"]))
    assert give(newer, source=tmp_path / "house")[0].state == "installed"


def test_what_works_in_the_boards_own_python_is_left_alone_and_what_dies_is_replaced(house):
    works = Trial("onnxruntime", "onnxruntime", "1.30.0", "", True)
    (done,) = give(Client(trials=[works]), source=house)
    assert (done.state, done.version) == ("present", "1.30.0")
    dies = dataclasses.replace(works, imports=False, signal="SIGSEGV")
    assert give(Client(trials=[dies]), source=house)[0].state == "installed"


def test_numpy_of_the_board_on_32_bits(tmp_path):
    house = tmp_path / "house"
    tag = "cp311-cp311-manylinux_2_34_armv7l"
    wheel(house, "tflite-runtime", "2.14.0", tag, {"tflite_runtime/__init__.py": b""}, "numpy>=1.23.2")
    board = dataclasses.replace(BOARD, arch="armv7l", isa=["neon", "vfpv4"])
    assert give(Client(board, numpy="1.24.2"), ["tflite"], source=house)[0].version == "tflite-runtime 2.14.0"
    with pytest.raises(BoardError, match="apt-get install python3-numpy"):
        give(Client(board), ["tflite"], source=house)
    with pytest.raises(
        BoardError, match=r"no onnxruntime for this board: onnxruntime 1\.31\.1 has no wheel for armv7l"
    ):
        give(Client(board), ["onnxruntime"], source=house)


def test_local_is_told_how_to_help_itself():
    with pytest.raises(BoardError, match="own environment"):
        provision.provision(types.SimpleNamespace(name="local", link="local"), Client(), ["onnxruntime"], Silent())


def test_a_board_that_does_not_find_what_it_was_given(house, monkeypatch):
    client = Client()
    monkeypatch.setattr(client, "refresh", client.hello)
    with pytest.raises(BoardError, match="does not find it"):
        give(client, source=house)


def test_the_flags_reach_the_order(monkeypatch, tmp_path, capsys):
    import contextlib
    import json

    from edgepipe import board, cli

    seen = []

    def stand_in(place, client, wanted, progress, order):
        seen.append((wanted, order))
        return [provision.Provisioned("onnxruntime", "would install", "onnxruntime 1.31.1")]

    monkeypatch.setattr(provision, "provision", stand_in)
    monkeypatch.setattr(board, "connect", lambda *_: contextlib.nullcontext(Client()))
    flags = ["--check", "--wheelhouse", str(tmp_path), "--runtime", "onnxruntime", "--json"]
    monkeypatch.setattr("sys.argv", ["edgepipe", "provision", "-t", "rpi4", "--host", "pi@pi", *flags])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0 and seen == [(["onnxruntime"], Order(True, Path(tmp_path)))]
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "edgepipe.provision/1" and document["check"] is True
