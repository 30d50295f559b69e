"""The two readers of the protocol under fuzz, what they must hold to, and messages to start from."""

from __future__ import annotations

import dataclasses
import io
import json
import tempfile
import typing
from collections.abc import Callable
from typing import Any

from edgepipe.agent import coding, delta, serve, verbs
from edgepipe.agent.jobs import Jobs
from edgepipe.agent.releases import Releases
from edgepipe.agent.spool import Run
from edgepipe.agent.store import Store
from edgepipe.answers import Freed, Hello, Status, Verified
from edgepipe.codec import from_dict, to_dict
from edgepipe.errors import EdgepipeError, IntegrityError
from edgepipe.link import _protocol
from edgepipe.schema import Manifest, RawRun, Release

Reader = Callable[[bytes], None]
_ANSWERS = (Hello, Status, Verified, Release, RawRun, Freed, Run)


class Agent:
    """The agent's channel with verbs that do nothing but take their arguments, and a payload where there is one."""

    def __init__(self) -> None:
        store = Store(tempfile.mkdtemp(prefix="edgepipe-fuzz-"))
        store.prepare()
        jobs = Jobs(Releases(store), lambda: False, lambda phase, seconds: None)
        self._session = verbs.Session(store, jobs)
        for name, verb in list(verbs.VERBS.items()):
            call = _put if name == "put" else lambda session, args: verbs.Answer({})
            verbs.VERBS[name] = verb._replace(call=call, locks=False)

    def __call__(self, data: bytes) -> None:
        """Serve all of ``data``; each answer is a result or a typed error, and none says that the agent failed."""
        out = io.BytesIO()
        channel = serve._Channel(io.BufferedReader(io.BytesIO(data)), out, lambda: False)  # type: ignore[arg-type]
        try:
            while channel.serve_one(self._session):
                pass
        except serve._BrokenError:
            pass
        for line in out.getvalue().splitlines():
            answer = json.loads(line)
            assert answer["ok"] or not answer["error"]["what"].startswith("the agent failed"), answer


def _put(session: verbs.Session, args: Any) -> verbs.Answer:
    size = max(0, min(args.size - args.offset, 1 << 20))
    pieces = coding.unpack(args.coding, session.payload, delta.MOST_INSTRUCTIONS if args.base else size)
    if args.base:
        pieces = delta.rebuild(__file__, pieces, size)
    got = sum(len(piece) for piece in pieces)
    assert got <= size or not args.base
    return verbs.Answer({"have": got})


class Replay:
    """A channel that plays bytes back."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def line(self, until: float, limit: int) -> bytes:
        """The next line, of ``limit`` bytes at most."""
        line, found, self.data = self.data.partition(b"\n")
        if len(line) > limit or not found:
            raise IntegrityError("too long or at its end")
        return line

    def read(self, count: int, until: float) -> bytes:
        """The next ``count`` bytes."""
        if count > len(self.data):
            raise IntegrityError("at its end")
        return self.data[:count]


def host(data: bytes) -> None:
    """Read ``data`` as a board's reply, and its result as each type of answer."""
    events: list[str] = []
    try:
        result, _ = _protocol.reply(
            Replay(data), 0.0, "board", limit=4096, payload=64,  # type: ignore[arg-type]
            on_event=lambda done, total, text: events.append(text),
        )  # fmt: skip
    except IntegrityError:
        return
    except _protocol.BoardSaid as said:
        assert isinstance(said.error, EdgepipeError)
        assert all(char.isprintable() or char == "\n" for char in said.error.what + said.error.where + said.error.fix)
        return
    finally:
        assert all(text.isprintable() for text in events)
    for kind in _ANSWERS:
        try:
            json.dumps(to_dict(from_dict(kind, result)), allow_nan=False)
        except IntegrityError:
            continue


def example(kind: Any) -> Any:
    """A plain JSON value of a type, with every key there."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return {field.name: example(hints[field.name]) for field in dataclasses.fields(kind)}
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return [example(args[0])]
    if origin is dict:
        return {"a": example(args[1])}
    if origin is typing.Union or args:
        return example(args[0])
    return {int: 1, float: 0.5, str: "a", bool: True}.get(kind, {"a": [1]})


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _requests() -> list[bytes]:
    found = [_line({"verb": name, "args": example(verb.args)}) for name, verb in verbs.VERBS.items()]
    put = {"sha256": "0" * 64, "size": 4, "offset": 0, "coding": ""}
    found.append(_line({"verb": "put", "args": put, "size": 4}) + b"abcd" + _line({"verb": "clock"}))
    told = delta.HEAD.pack(delta.COPY, 5, 9) + delta.HEAD.pack(delta.XOR, 0, 2) + b"ab"
    put |= {"size": 30, "base": "0" * 64}
    found.append(_line({"verb": "put", "args": put, "size": len(told)}) + told)
    return found


def _replies() -> list[bytes]:
    event = {"event": "progress", "phase": "measure", "done": 1.5, "total": 2, "text": "x"}
    error = {"kind": "BoardError", "what": "a", "where": "b", "fix": "c"}
    found = [_line({"ok": True, "result": example(kind), "size": 0}) for kind in (*_ANSWERS, Manifest)]
    return [
        *found,
        _line(event) + _line({"ok": True, "result": {}, "size": 2}) + b"ab",
        _line({"ok": False, "error": error}),
    ]


SEEDS = {"agent": _requests(), "host": _replies()}
READERS: dict[str, Reader] = {"agent": Agent(), "host": host}
WORDS = sorted(
    {*verbs.VERBS, *(key for seed in (*_requests(), *_replies()) for key in json.loads(seed.split(b"\n")[0]))}
)
