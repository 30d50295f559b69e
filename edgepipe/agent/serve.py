"""The agent's loop: one request after another over stdin and stdout, until stdin ends: see docs/agent-protocol.md."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
from typing import Any, BinaryIO, Callable, Dict, Iterator, Optional

from edgepipe.agent import tuning
from edgepipe.agent.disk import board_error
from edgepipe.agent.jobs import Jobs
from edgepipe.agent.lock import Lock
from edgepipe.agent.releases import Releases
from edgepipe.agent.store import Store, sha256_file
from edgepipe.agent.text import clean, error_text
from edgepipe.agent.verbs import VERBS, Answer, Session
from edgepipe.agent.worker import CancelledError
from edgepipe.codec import from_dict
from edgepipe.errors import BoardError, EdgepipeError, IntegrityError, UsageError

LINE_BYTES = 1 << 20
REPLY_BYTES = 64 << 20
PAYLOAD_BYTES = 64 << 20
_PIECE = 1 << 18


class _BrokenError(Exception):
    """The channel can't be used any more; the text says why."""


def main(root: str = "~/.edgepipe", sysfs_root: str = "/") -> int:
    """Serve until stdin ends. Returns the exit code."""
    stdin = os.fdopen(os.dup(0), "rb", buffering=_PIECE)
    stdout = _protected_stdout()
    gone = threading.Event()
    threading.Thread(target=_watch, args=(stdin.fileno(), gone), name="hang-up", daemon=True).start()
    os.umask(0o077)
    # Ctrl-C is for the host, which then closes stdin.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = _Channel(stdin, stdout, gone.is_set)
    store = Store(root)
    tuning.recover(store.root, sysfs_root)
    jobs = Jobs(Releases(store), gone.is_set, channel.progress, sysfs_root)
    session = Session(store=store, jobs=jobs, agent=_own_hash(), sysfs_root=sysfs_root)
    try:
        while channel.serve_one(session):
            pass
    except (_BrokenError, BrokenPipeError, ConnectionResetError):
        return 1
    return 0


def _protected_stdout() -> BinaryIO:
    """Take stdout for the channel alone: whatever else is printed in this process goes to stderr."""
    own = os.fdopen(os.dup(1), "wb", buffering=_PIECE)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return own


def _watch(handle: int, gone: threading.Event) -> None:
    """Set ``gone`` as soon as the other end of stdin is closed, also while a verb runs and nobody reads."""
    poll = select.poll()
    poll.register(handle, select.POLLRDHUP)
    while not poll.poll():
        pass
    gone.set()


def _own_hash() -> str:
    """The sha256 of the zipapp this runs from, or nothing if it runs from a folder."""
    archive = getattr(globals().get("__loader__"), "archive", None)
    return sha256_file(archive) if archive else ""


class _Channel:
    """Requests in, replies out."""

    def __init__(self, stdin: BinaryIO, stdout: BinaryIO, gone: Callable[[], bool]) -> None:
        self._in, self._out, self._gone = stdin, stdout, gone
        self._left = 0

    def serve_one(self, session: Session) -> bool:
        """Read one request and answer it. False when stdin is at its end.

        Raises:
            _BrokenError: the channel can't be used any more.
        """
        line = self._in.readline(LINE_BYTES + 1)
        if not line:
            return False
        try:
            self._answer(self._handle(session, line))
        except CancelledError:
            raise _BrokenError("the host went away") from None
        except (_BrokenError, BrokenPipeError, ConnectionResetError):
            raise
        except EdgepipeError as error:
            self._refuse(error)
        except OSError as error:
            self._refuse(board_error(error, session.store.root))
        except Exception as error:
            what = f"the agent failed: {type(error).__name__}: {error_text(error)}"
            self._refuse(BoardError(what, "agent", "please report this"))
        for _ in self._payload():
            pass
        return True

    def _handle(self, session: Session, line: bytes) -> Answer:
        request = self._parse(line)
        verb = VERBS.get(str(request.get("verb")))
        if verb is None:
            raise UsageError(
                f"no such verb: {clean(str(request.get('verb')), 64)}", "agent", f"known: {', '.join(VERBS)}"
            )
        args: Any = from_dict(verb.args, request.get("args", {}))
        session.payload = self._payload()
        session.store.prepare()
        if not verb.locks:
            return verb.call(session, args)
        with Lock(session.store.path("lock"), session.owner, session.wait, self._waiting):
            session.store.clear_scratch()
            tuning.restore(session.store.root, session.sysfs_root)
            return verb.call(session, args)

    def _parse(self, line: bytes) -> Dict[str, Any]:
        """A request line as an object; afterwards ``_left`` is the size of its payload.

        Raises:
            IntegrityError: it is too long, not JSON, or not an object of the three keys.
            _BrokenError: the size of the payload is not one, so that the next request can't be found.
        """
        self._left = 0
        if len(line) > LINE_BYTES:
            while line and not line.endswith(b"\n"):
                line = self._in.readline(LINE_BYTES)
            raise IntegrityError(f"a request of more than {LINE_BYTES} bytes", "agent")
        try:
            request = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            raise IntegrityError("a request that is not JSON", "agent") from None
        if not isinstance(request, dict) or not set(request) <= {"verb", "args", "size"}:
            raise IntegrityError("a request that is not an object of verb, args and size", "agent")
        size = request.get("size", 0)
        if type(size) is not int or not 0 <= size <= PAYLOAD_BYTES:
            self._refuse(IntegrityError(f"a payload must have 0 to {PAYLOAD_BYTES} bytes; closing", "agent"))
            raise _BrokenError("no way to find the next request")
        self._left = size
        return request

    def _payload(self) -> Iterator[bytes]:
        """What is left of this request's raw bytes, in pieces as they arrive. Ends early if stdin does."""
        while self._left:
            piece = self._in.read1(min(self._left, _PIECE))  # type: ignore[attr-defined]
            if not piece:
                raise _BrokenError("stdin ended inside a payload")
            self._left -= len(piece)
            yield piece

    def _waiting(self, owner: str, seconds: float) -> bool:
        self.progress(f"wait for {owner}", seconds)
        return not self._gone()

    def progress(self, phase: str, seconds: float) -> None:
        """Send a progress event: the phase a child is in and the seconds since it began."""
        event = {"event": "progress", "phase": phase, "done": round(seconds, 1), "total": None, "text": ""}
        self._send(event, None)

    def _answer(self, answer: Answer) -> None:
        size = os.path.getsize(answer.file) if answer.file else 0
        self._send({"ok": True, "result": answer.result, "size": size}, answer.file)

    def _refuse(self, error: EdgepipeError) -> None:
        wire = {key: clean(value, 1000) for key, value in error.to_wire().items()}
        self._send({"ok": False, "error": wire}, None)

    def _send(self, message: Dict[str, Any], file: Optional[str]) -> None:
        data = json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        if len(data) > REPLY_BYTES:
            raise BoardError(f"a reply of more than {REPLY_BYTES} bytes", "agent", "measure for a shorter time")
        self._out.write(data)
        if file:
            left = int(message["size"])
            with open(file, "rb") as source:
                while left:
                    piece = source.read(min(left, _PIECE))
                    if not piece:
                        raise _BrokenError("a file shrank while it was sent")
                    self._out.write(piece)
                    left -= len(piece)
        self._out.flush()
