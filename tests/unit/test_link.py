from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from edgepipe.errors import BoardError, DeadlineError, IntegrityError
from edgepipe.link import Address, parse_address
from edgepipe.link._protocol import parse
from edgepipe.link._stream import printable
from edgepipe.link._trust import _matches, host_id
from edgepipe.link.local import LocalLink

LINK = LocalLink(sys.executable, "/nowhere")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host", Address("host")),
        ("pi@host:2222", Address("host", "pi", 2222)),
        ("fe80::1%eth0", Address("fe80::1%eth0")),
        ("pi@[::1]:22", Address("::1", "pi", 22)),
        ("a@b@host", Address("host", "a@b")),
        ("192.0.2.1", Address("192.0.2.1")),
    ],
)
def test_addresses_round_trip(text, address):
    assert parse_address(text) == address == parse_address(str(address))


@pytest.mark.parametrize(
    ("names", "host", "found"),
    [
        ("host", "host", True),
        ("other,host", "host", True),
        ("*.lan", "pi.lan", True),
        ("*.lan,!pi.lan", "pi.lan", False),
        ("[host]:2222", "[host]:2222", True),
        ("[host]:2222", "host", False),
        ("|1|bad", "host", False),
        ("h?st", "host", True),
    ],
)
def test_known_hosts_patterns(names, host, found):
    assert _matches(names, host) is found


def test_host_id_is_openssh_s():
    assert host_id("Host", 22) == "host" and host_id("host", 2222) == "[host]:2222"


def test_a_command_gets_its_stdin_and_both_streams_are_read():
    done = LINK.run(["sh", "-c", "cat; echo oops >&2; exit 4"], b"x" * 5_000_000)
    assert (done.status, len(done.stdout), done.stderr) == (4, 5_000_000, b"oops")


def test_a_command_that_reads_nothing_is_no_dead_lock():
    with pytest.raises(DeadlineError):
        LINK.run(["sleep", "20"], b"x" * 20_000_000, deadline=0.5)


def test_output_and_lines_are_capped():
    with pytest.raises(IntegrityError, match="more than"):
        LINK.run(["head", "-c", "20000000", "/dev/zero"])
    channel = LINK.open(["head", "-c", "5000000", "/dev/zero"])
    with pytest.raises(IntegrityError, match="longer"):
        channel.line(time.monotonic() + 5, 1000)
    channel.close()


def test_the_whole_group_is_killed(tmp_path):
    channel = LINK.open(["sh", "-c", "sleep 300 & echo $!; trap '' TERM HUP; sleep 300"])
    child = int(channel.line(time.monotonic() + 5, 100))
    channel.close()
    time.sleep(0.1)
    with pytest.raises((ProcessLookupError, AssertionError)):
        os.kill(child, 0)
        assert Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_an_end_in_the_middle_names_status_and_last_words():
    channel = LINK.open(["sh", "-c", "printf half; echo why >&2; exit 5"])
    with pytest.raises(BoardError, match=r"status 5\): why"):
        channel.line(time.monotonic() + 5, 100)
    channel.close()


def test_missing_program():
    with pytest.raises(BoardError, match="can't start"):
        LINK.run(["/no/such/program"])


def test_control_characters_are_stripped():
    assert printable("a\x1b[31mb\x07\r\nc\u202ed") == "a[31mb\ncd"
    assert parse(b'{"a": ["\\u001b[2J", {"b\\u0007": "\\u009b1m"}]}', "x") == {"a": ["[2J", {"b": "1m"}]}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b"[" * 100_000,
        b"\xff",
        b'{"a":' * 40 + b"1" + b"}" * 40,
        b"9" * 5000,
    ],
)
def test_bad_json_is_an_integrity_error(line):
    with pytest.raises(IntegrityError):
        parse(line, "board")
