from __future__ import annotations

import dataclasses
import sys
import types

import pytest

from edgepipe import provision
from edgepipe.errors import BoardError, LinkError, UsageError
from edgepipe.link import Result
from edgepipe.progress import Silent
from edgepipe.provision import Platform, platform_of, resolve
from edgepipe.schema import Board, Runtime

BOARD = Board("aarch64", "cpu", [], 4, None, "os", "k", "3.10.12", "glibc 2.35")
PI = Platform("aarch64", (3, 10), 35)


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPIPE_HOME", str(tmp_path))


def test_every_tag_up_to_the_boards_glibc():
    tags = PI.tags()
    assert tags[0] == "manylinux_2_35_aarch64" and tags[-1] == "linux_aarch64"
    assert "manylinux_2_17_aarch64" in tags and "manylinux2014_aarch64" in tags and "manylinux_2_36_aarch64" not in tags
    assert not any("manylinux1" in tag or "2010" in tag for tag in tags)
    assert {"manylinux1_x86_64", "manylinux2010_x86_64", "manylinux_2_5_x86_64"} < set(
        Platform("x86_64", (3, 11), 36).tags()
    )


def test_platform_comes_from_what_the_board_says():
    assert platform_of(BOARD) == PI
    for change in ({"libc": "musl 1.2"}, {"libc": ""}, {"python": "three"}):
        with pytest.raises(BoardError):
            platform_of(dataclasses.replace(BOARD, **change))


def fake_pip(monkeypatch, status, said="", files=()):
    calls = []

    def run(self, argv, stdin=b"", deadline=0):
        calls.append(argv)
        folder = provision.Path(argv[argv.index("--target") + 1])
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
        return Result(status, b"", said.encode())

    monkeypatch.setattr(provision.LocalLink, "run", run)
    return calls


def test_sites_are_made_once_and_trimmed(monkeypatch):
    files = (
        "pkg/__init__.py",
        "pkg/tests/test_x.py",
        "pkg/x.pyi",
        "pkg-1.0.dist-info/METADATA",
        "bin/tool",
        "pkg/lib.so.1",
    )
    calls = fake_pip(monkeypatch, 0, files=files)
    folder, found = resolve(["pkg==1.0"], PI)
    assert [file.name for file in found] == ["pkg-1.0.dist-info/METADATA", "pkg/__init__.py", "pkg/lib.so.1"]
    assert resolve(["pkg==1.0"], PI) == (folder, found) and len(calls) == 1
    assert resolve(["pkg==1.0"], Platform("aarch64", (3, 11), 35))[0] != folder
    assert calls[0][:4] == [sys.executable, "-m", "pip", "install"] and "--only-binary=:all:" in calls[0]
    assert provision._version(found, ("PKG",)) == "PKG 1.0"


@pytest.mark.parametrize(
    ("said", "kind", "what"),
    [
        ("/usr/bin/python3: No module named pip", UsageError, "no pip"),
        (
            "WARNING: Retrying (Retry(total=1...\nERROR: No matching distribution found for x",
            LinkError,
            "package index",
        ),
        ("ERROR: No matching distribution found for x==9", BoardError, "no wheels of x==9 fit Python 3.10"),
        ("\x1b[31mERROR: disk\x1b[0m", BoardError, "pip failed"),
    ],
)
def test_pips_troubles_in_words(monkeypatch, said, kind, what, tmp_path):
    fake_pip(monkeypatch, 1, said)
    with pytest.raises(kind, match=what) as caught:
        resolve(["x==9"], PI)
    assert "\x1b" not in caught.value.what + caught.value.fix
    assert list((tmp_path / "cache" / "sites").iterdir()) == []


class Client:
    """A board that takes everything; ``runtimes`` is what it shows."""

    def __init__(self, runtimes):
        self.runtimes = runtimes
        self.pushed, self.sites = [], []

    def hello(self):
        return types.SimpleNamespace(board=dataclasses.replace(BOARD, runtimes=self.runtimes))

    def refresh(self):
        self.runtimes = [Runtime("onnxruntime", "1.23.2", "onnxruntime", True)]
        return self.hello()

    def push(self, files):
        self.pushed += files
        return sum(ref.bytes for _, ref in files)

    def site(self, runtime, files, note):
        self.sites.append((runtime, note))
        return types.SimpleNamespace(files=len(files), bytes=sum(ref.bytes for ref in files))


def test_a_missing_runtime_is_pushed(monkeypatch):
    fake_pip(monkeypatch, 0, files=("onnxruntime/__init__.py", "onnxruntime-1.23.2.dist-info/METADATA"))
    client = Client([])
    target = types.SimpleNamespace(name="rpi4", link="ssh")
    (done,) = provision.provision(target, client, ["onnxruntime"], Silent())
    assert (done.state, done.version, done.files) == ("installed", "onnxruntime 1.23.2", 2)
    assert client.sites == [("onnxruntime", "onnxruntime 1.23.2")]


def test_what_is_there_is_left_alone_and_local_is_told(monkeypatch):
    calls = fake_pip(monkeypatch, 1)
    target = types.SimpleNamespace(name="rpi4", link="ssh")
    (done,) = provision.provision(target, Client([Runtime("onnxruntime", "1.0")]), ["onnxruntime"], Silent())
    assert done.state == "present" and not calls
    with pytest.raises(BoardError, match="own environment"):
        provision.provision(types.SimpleNamespace(name="local", link="local"), Client([]), ["onnxruntime"], Silent())
