"""One mutating or measuring verb at a time on a board: a flock, which the kernel frees when its holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import time
from types import TracebackType
from typing import Any, Callable, Dict, Optional, Type

from edgepipe.agent.text import clean
from edgepipe.errors import BusyError

# `holder` takes the lock for an instant to see whether it is free; one who wants it tries again for this long.
_PATIENCE_SECONDS = 0.5


Waiting = Callable[[str, float], bool]


class Lock:
    """``with Lock(path, owner):`` holds the board, after up to ``wait`` seconds.

    ``waiting`` is called twice a second meanwhile, with the holder's name and the seconds so far; false gives up.

    Raises:
        BusyError: somebody else holds it; the text names the owner and since when.
    """

    def __init__(self, path: str, owner: str, wait: float = 0.0, waiting: Optional[Waiting] = None) -> None:
        self._path, self._owner = path, owner
        self._wait, self._waiting = max(wait, _PATIENCE_SECONDS), waiting or (lambda *_: True)
        self._handle = -1

    def __enter__(self) -> Lock:
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if not self._acquire():
            owner = _content(self._handle)
            os.close(self._handle)
            raise _busy(owner, self._path)
        content = json.dumps({"owner": self._owner, "pid": os.getpid(), "since": time.time()}).encode()
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, content, 0)
        return self

    def _acquire(self) -> bool:
        """Try until the lock is free, the time is over, or ``waiting`` says that it is in vain."""
        began = time.monotonic()
        while not _try_for(self._handle, _PATIENCE_SECONDS):
            seconds = time.monotonic() - began
            if seconds >= self._wait or not self._waiting(_content(self._handle)["owner"], seconds):
                return False
        return True

    def __exit__(self, kind: Optional[Type[BaseException]], error: Any, trace: Optional[TracebackType]) -> None:
        os.ftruncate(self._handle, 0)
        os.close(self._handle)


def holder(path: str) -> Optional[Dict[str, Any]]:
    """Who holds the lock: ``{owner, since, pid}``, or None while it is free."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return None if _try_for(handle, 0.0) else _content(handle)
    finally:
        os.close(handle)


def _try_for(handle: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.02)


def _content(handle: int) -> Dict[str, Any]:
    """What the holder wrote; it may be in the middle of writing."""
    try:
        data = json.loads(os.pread(handle, 4096, 0).decode("utf-8", "replace"))
        return {"owner": clean(str(data["owner"]), 128), "since": float(data["since"]), "pid": int(data["pid"])}
    except (ValueError, KeyError, TypeError):
        return {"owner": "unknown", "since": 0.0, "pid": 0}


def _busy(owner: Dict[str, Any], path: str) -> BusyError:
    since = time.strftime("%H:%M:%S", time.localtime(owner["since"])) if owner["since"] else "an unknown time"
    return BusyError(
        f"the board is in use by {owner['owner']} since {since}",
        where=path,
        fix="run this again when it has ended, or let it wait: --wait 10m",
    )
