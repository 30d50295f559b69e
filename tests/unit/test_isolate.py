import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgepipe import isolate
from edgepipe.errors import BoardError, DeadlineError, GateError

TARGETS = """
import os, sys, time, pathlib
from edgepipe.errors import GateError

def add(a, b): return {"sum": a + b, "kind": type(a).__name__}
def noisy(): print("x" * 100000); print("chatter", file=sys.stderr); return 1
def die(signal): print("last \\x1b[31mwords"); sys.stdout.flush(); os.kill(os.getpid(), signal)
def leave(): os._exit(3)
def fail(): raise KeyError("lost")
def refuse(): raise GateError("no", "there", "do this")
def hang(pidfile): pathlib.Path(pidfile).write_text(str(os.getpid())); time.sleep(60)
def environment(): return {name: os.environ.get(name) for name in ("CI", "NNCF_CI", "HF_HUB_OFFLINE")}
"""


@pytest.fixture(autouse=True)
def targets(tmp_path, monkeypatch):
    (tmp_path / "isolate_targets.py").write_text(TARGETS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("EDGEPIPE_HOME", str(tmp_path / "home"))


def call(name, **kwargs):
    options = {key: kwargs.pop(key) for key in ("deadline", "tick") if key in kwargs}
    return isolate.call(f"isolate_targets:{name}", kwargs, **options)


def nothing_left(tmp_path):
    return not list((tmp_path / "home" / "cache" / "jobs").iterdir())


def test_returns_the_value(tmp_path):
    assert call("add", a=1, b=2) == {"sum": 3, "kind": "int"}
    assert call("add", a=Path("/x"), b="y") == {"sum": "/xy", "kind": "str"}
    assert nothing_left(tmp_path)


def test_chatter_stays_out(capfd):
    assert call("noisy") == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGILL, signal.SIGABRT, signal.SIGKILL, signal.SIGBUS])
def test_a_crash_is_a_typed_error(number, tmp_path):
    with pytest.raises(BoardError) as caught:
        call("die", signal=int(number))
    assert number.name in caught.value.what
    assert "last words" in caught.value.fix
    assert "\x1b" not in caught.value.fix
    log = Path(caught.value.where.split("log: ")[1].rstrip(")"))
    assert b"last" in log.read_bytes()
    assert nothing_left(tmp_path)


def test_errors_of_python():
    with pytest.raises(BoardError, match="KeyError: 'lost'"):
        call("fail")
    with pytest.raises(BoardError, match="code 3"):
        call("leave")
    with pytest.raises(BoardError, match="AttributeError"):
        call("no_such_function")


def test_our_own_errors_come_through():
    with pytest.raises(GateError) as caught:
        call("refuse")
    assert (caught.value.what, caught.value.where, caught.value.fix) == ("no", "there", "do this")


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def gone(pid, within=5.0):
    end = time.monotonic() + within
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def test_deadline(tmp_path):
    start = time.monotonic()
    ticks = []
    with pytest.raises(DeadlineError, match="did not end within 1 s"):
        call("hang", pidfile=tmp_path / "pid", deadline=1.0, tick=ticks.append)
    assert time.monotonic() - start < 3
    assert len(ticks) > 3
    assert gone(int((tmp_path / "pid").read_text()))
    assert nothing_left(tmp_path)


def test_an_interruption_kills_the_child(tmp_path):
    def tick(_):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call("hang", pidfile=tmp_path / "pid", tick=tick)
    assert gone(int((tmp_path / "pid").read_text()))
    assert nothing_left(tmp_path)


def test_the_child_dies_with_its_parent(tmp_path):
    code = (
        f"from edgepipe import isolate; isolate.call('isolate_targets:hang', {{'pidfile': {str(tmp_path / 'pid')!r}}})"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(isolate.__file__).parent.parent)])
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})
    end = time.monotonic() + 10
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < end:
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    assert gone(int((tmp_path / "pid").read_text()))


def test_no_usage_statistics():
    assert call("environment") == {"CI": "true", "NNCF_CI": "1", "HF_HUB_OFFLINE": "1"}


def test_only_the_last_logs_are_kept(tmp_path):
    logs = tmp_path / "home" / "cache" / "logs"
    logs.mkdir(parents=True)
    for number in range(30):
        (logs / f"20200101-0000{number:02}-1-x.log").write_text("old")
    with pytest.raises(BoardError):
        call("fail")
    assert len(list(logs.iterdir())) == 20
    assert any("isolate-targets" in path.name for path in logs.iterdir())
