"""The agent's protocol, host side: requests out, replies in. A reply is hostile until it has been checked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from edgepipe.errors import BoardError, EdgepipeError, IntegrityError, LinkError, from_wire
from edgepipe.link import Channel
from edgepipe.link._stream import printable

LINE = 1 << 20
LONG_LINE = 64 << 20
_MAX_DEPTH = 32
OnProgress = Callable[[float, "float | None", str], None]


@dataclass(frozen=True)
class Event:
    """How far a verb is on the board."""

    event: str
    phase: str = ""
    done: float = 0.0
    total: float | None = None
    text: str = ""


class BoardSaid(Exception):  # noqa: N818 - not an error of the protocol: the reply was whole, and says no
    """The board's answer is an error; the channel is in step and can be used on."""

    def __init__(self, error: EdgepipeError) -> None:
        super().__init__(error.what)
        self.error = error


def request(verb: str, args: dict[str, Any], payload: int = 0) -> bytes:
    """Build the line of one request that ``payload`` raw bytes are to follow.

    Raises:
        IntegrityError: the line is longer than the agent reads.
    """
    body: dict[str, Any] = {"verb": verb, "args": args}
    if payload:
        body["size"] = payload
    line = json.dumps(body, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    if len(line) > LINE:
        raise IntegrityError(f"the request {verb} is too long to send", "agent", "send fewer names at once")
    return line


def reply(
    channel: Channel,
    until: float,
    where: str,
    *,
    limit: int = LINE,
    payload: int = 0,
    on_event: OnProgress | None = None,
) -> tuple[dict[str, Any], bytes]:
    """Read replies up to the final one: its result, and at most ``payload`` bytes that follow.

    Raises:
        IntegrityError: not the protocol. BoardSaid: an error the board sent, in its own class.
    """
    while True:
        found = parse(channel.line(until, limit), where)
        if "event" in found:
            event = _event(found, where)
            if on_event:
                on_event(event.done, event.total, event.text or event.phase)
            continue
        if found.get("ok") is False:
            raise BoardSaid(_error(found, where))
        result, size = found.get("result"), found.get("size", 0)
        if (
            found.get("ok") is not True
            or not isinstance(result, dict)
            or not _whole(size)
            or set(found) - {"ok", "result", "size"}
        ):
            raise IntegrityError("the board's reply is not one of the agent's", where)
        if size > payload:
            raise IntegrityError(f"the board wants to send {size} bytes, {payload} are allowed", where)
        return result, channel.read(size, until) if size else b""


def parse(line: bytes, where: str) -> dict[str, Any]:
    """Read one JSON object; numbers are finite, nesting is bounded, texts hold nothing a terminal would obey.

    Raises:
        IntegrityError: anything else.
    """
    try:
        found = _clean(json.loads(line, parse_constant=_not_finite), 0)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"the board's reply is not valid JSON: {printable(str(error))[:100]}", where) from None
    if not isinstance(found, dict):
        raise IntegrityError("the board's reply is not an object", where)
    return found


def _clean(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return value if value.isprintable() else printable(value)
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, list):
        return [_clean(item, depth + 1) if isinstance(item, str | list | dict) else item for item in value]
    if isinstance(value, dict):
        return {key if key.isprintable() else printable(key): _clean(item, depth + 1) for key, item in value.items()}
    return value


def _event(found: dict[str, Any], where: str) -> Event:
    for key in ("done", "total"):
        if _whole(found.get(key)):
            found[key] = float(min(found[key], 1 << 60))
    kinds: dict[str, Any] = {"event": str, "phase": str, "done": float, "total": float | None, "text": str}
    for key, value in found.items():
        if (
            key not in kinds
            or not isinstance(value, kinds[key])
            or (isinstance(value, float) and not math.isfinite(value))
        ):
            raise IntegrityError("the board's progress report is not one of the agent's", where)
    event = Event(**found)
    return replace(event, phase=event.phase[:200], text=event.text[:200].replace("\n", " "))


def _error(found: dict[str, Any], where: str) -> EdgepipeError:
    data = found.get("error")
    if not isinstance(data, dict) or not all(isinstance(part, str) for part in data.values()):
        return IntegrityError("the board's error is not one of the agent's", where)
    error = from_wire(data)
    if isinstance(error, LinkError):
        # Only this side knows whether the link is at fault; a board that says so must not make the host try again.
        error = BoardError(error.what, error.where, error.fix)
    error.where = error.where or where
    return error


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _not_finite(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
