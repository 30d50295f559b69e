"""A stand-in for the agent that misbehaves in one way, named by MODE (put in front of this file when it is sent)."""

import json
import signal
import sys
import time

MODE = globals().get("MODE", "ok")
BOARD = {
    "arch": "x86_64", "cpu": "fake", "isa": [], "cores": 1, "ram_bytes": None, "os": "fake", "kernel": "0",
    "python": "3.11.0", "libc": "glibc 2.36",
}  # fmt: skip
HELLO = {"protocol": 1, "agent": "", "root": "/", "board": BOARD, "free_bytes": 1, "current": None, "previous": None}
STATUS = {
    "current": None, "previous": None, "activated_at": None, "releases": [], "free_bytes": 1, "used_bytes": 0,
    "lock": None, "have": {},
}  # fmt: skip


def say(data):
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def answer(result, **more):
    say(json.dumps({"ok": True, "result": result, **more}).encode() + b"\n")


def misbehave(verb):  # noqa: C901, PLR0912 - a list of cases
    if MODE == "silent":
        time.sleep(60)
    elif MODE == "endless":
        while True:
            say(b"x" * 65536)
    elif MODE == "events":
        while True:
            say(b'{"event": "progress", "phase": "p", "done": 1, "total": 2, "text": "t"}\n')
    elif MODE == "nan":
        say(b'{"ok": true, "result": {"free_bytes": NaN}}\n')
    elif MODE == "inf":
        say(b'{"event": "progress", "phase": "", "done": 1e999, "total": null, "text": ""}\n')
    elif MODE == "wrong-json":
        say(b"{ok: yes}\n")
    elif MODE == "not-object":
        say(b"[1, 2]\n")
    elif MODE == "deep":
        say(b'{"ok": true, "result": ' + b"[" * 200000 + b"]" * 200000 + b"}\n")
    elif MODE == "ansi":
        error = {"kind": "BoardError", "what": "\x1b[2Jcleared\x07\r", "where": "\x1b]0;title\x07", "fix": "\x9b31m"}
        say(json.dumps({"ok": False, "error": error}).encode() + b"\n")
    elif MODE == "blames-link":
        say(b'{"ok": false, "error": {"kind": "LinkError", "what": "x", "where": "", "fix": ""}}\n')
    elif MODE == "unknown-key":
        answer({**STATUS, "extra": 1})
    elif MODE == "wrong-type":
        answer({**STATUS, "free_bytes": "many"})
    elif MODE == "claims":
        answer({**STATUS, "have": dict.fromkeys(verb["args"]["blobs"], 1 << 60)})
    elif MODE == "payload":
        answer({}, size=1 << 50)
    elif MODE == "bye":
        sys.stderr.write("I am \x1b[31mgone\n")
        sys.exit(9)
    elif MODE == "stderr":
        for _ in range(160):
            sys.stderr.write("e" * 65536)
        answer(STATUS)
    else:
        answer(STATUS)


def main():
    if MODE == "never-exits":
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    while True:
        line = sys.stdin.buffer.readline()
        if not line:
            while MODE == "never-exits":
                time.sleep(1)
            return
        verb = json.loads(line)
        if verb["verb"] == "hello":
            answer({**HELLO, "root": "/"})
        else:
            misbehave(verb)


main()
