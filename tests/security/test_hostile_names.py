from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepipe import board as boards
from edgepipe import paths, targets
from edgepipe.errors import EdgepipeError, IntegrityError, UsageError
from edgepipe.link import _protocol, _trust, parse_address, quote
from edgepipe.progress import Silent
from edgepipe.schema import FileRef
from tests.fuzz.readers import Replay
from tests.guarantees.figure import report, scale

NAMES = [
    "",
    ".",
    "..",
    "../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    ".hidden",
    "a\0b",
    "a b",
    "a;reboot",
    "$(id)",
    "`id`",
    "-rf",
    "a\nb",
    "a" * 65,
    "\x1b[2J",
    "ä",
    "a|b",
    "~root",
    "%s",
    "con\r",
]
ADDRESSES = [
    "",
    "@",
    "@host",
    "user@",
    "-oProxyCommand=id",
    "host:0",
    "host:65536",
    "host:22x",
    "host:",
    "a b",
    "host;id",
    "$(id)",
    "u ser@host",
    "host\n",
    "[fe80::1",
    "[fe80::1]x",
    "[host]",
    "us`er@host",
    "::gg",
    "h" * 300,
    "user@-host",
    "host:٣",
]


@pytest.mark.parametrize("name", NAMES)
def test_target_names_stay_names(name, own_home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for act in (lambda: targets.load(name), lambda: targets.add(name, "rpi4", "host"), lambda: _trust.pin_file(name)):
        if name == "-rf":
            continue
        with pytest.raises(UsageError):
            act()
    assert not (tmp_path / "config").exists() and not paths.data_home().exists()


@pytest.mark.parametrize("text", ADDRESSES)
def test_addresses_are_checked(text):
    if text == "host\n":
        assert str(parse_address(text)) == "host"
        return
    with pytest.raises(UsageError):
        parse_address(text)


@pytest.mark.guarantee
@pytest.mark.parametrize("name", NAMES)
def test_nothing_escapes_from_the_board(name, own_home, board):
    outside = set(board.server.home.parent.rglob("*"))
    digest = hashlib.sha256(b"x").hexdigest()
    with boards.connect(board.pinned(), name or "nobody", Silent()) as client:
        client.push([(b"x", digest)])
        for act in (
            lambda: client.get(name),
            lambda: client.site("onnxruntime", [FileRef(f"{name}/../../../../escaped", digest, 1)]),
            lambda: client.site(f"../{name}", [FileRef("ok.py", digest, 1)]),
            lambda: client.push([(b"x", name)]),
            lambda: client.bench(f"../{name}", boards.Plan(), boards.RunOptions()),
        ):
            with pytest.raises(EdgepipeError):
                act()
    new = set(board.server.home.parent.rglob("*")) - outside
    escaped = [path for path in new if ".edgepipe" not in path.parts and path.name != "log"]
    report(16, f"{len(NAMES)} hostile names through each verb, 0 escapes", ok=not escaped)


@pytest.mark.parametrize("name", [n for n in NAMES if "\0" not in n])
def test_arguments_reach_the_board_as_they_are(name, own_home, board):
    from edgepipe.link import ssh

    link = ssh.open_link(board.pinned().endpoint())
    code = "import sys, json; print(json.dumps(sys.argv[1:]))"
    done = link.run(["python3", "-c", code, name, "end"])
    assert json.loads(done.stdout) == [name, "end"]
    link.close()


def test_a_nul_is_no_argument():
    with pytest.raises(UsageError):
        quote(["echo", "a\0b"])


KEYS = ["ok", "event", "result", "size", "error", "kind", "done", "total", "text", "phase", "x"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner, max_size=5),
    max_leaves=20,
)


MESSAGES = scale(500, 50_000)  # beside the million that tests/fuzz makes, guided by coverage


@settings(max_examples=MESSAGES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=200), max_size=4))
def whatever_a_board_says_is_a_result_or_a_typed_error(lines):
    try:
        result, _ = _protocol.reply(Replay(b"\n".join([*lines, b""])), 0.0, "board", limit=4096, payload=16)  # type: ignore[arg-type]
        assert isinstance(result, dict)
        json.dumps(result, allow_nan=True)
    except IntegrityError:
        pass
    except _protocol.BoardSaid as said:
        text = said.error.what + said.error.where + said.error.fix
        assert all(char.isprintable() or char == "\n" for char in text)


@pytest.mark.guarantee
def test_whatever_a_board_says_is_a_result_or_a_typed_error():
    whatever_a_board_says_is_a_result_or_a_typed_error()
    report(13, f"{MESSAGES:,} messages: results and typed errors only", ok=True)
