"""Send blobs: ask what is there, send the rest in chunks without waiting for each answer, resume after a cut."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from edgepipe.errors import HostKeyError, IntegrityError, LinkError
from edgepipe.link import Channel, Refused, _protocol
from edgepipe.link._packing import Packer
from edgepipe.progress import Progress, Task
from edgepipe.schema import SHA256, FileRef

T = TypeVar("T")
Source = tuple[Path | bytes, FileRef | str]
# With its request line a chunk fills eight SSH packets, whose data is 32 KiB - 64 at most, and no ninth.
CHUNK = 8 * (32768 - 64) - 512
RETRIES = 3
_ASK = 8000
# What is under way when a link is cut may be lost with it: this many bytes at most are sent again.
_AHEAD_BYTES = 1 << 20
_AHEAD = 256
_BACKOFF = 0.5


class Client(Protocol):
    """What pushing needs of a board client."""

    times: Any
    rate_limit: float
    bytes_wire: int

    @property
    def where(self) -> str:
        """Where the board is, for people."""

    def hello(self) -> Any:
        """Return what the agent said of itself."""

    def status(self, blobs: list[str] | None = None) -> Any:
        """Ask how much of each blob the board has."""

    def guarded(self, talk: Callable[[Channel], T]) -> T:
        """Run a talk with the agent."""

    def reconnect(self) -> None:
        """Connect anew."""


@dataclass(frozen=True)
class Blob:
    """One thing to send: where its bytes are, their hash and their number."""

    source: Path | bytes
    sha256: str
    size: int


def push(client: Client, files: list[Source], progress: Progress) -> int:
    """Send what is missing; returns the number of bytes the board took. See `edgepipe.board.BoardClient.push`."""
    blobs = list({blob.sha256: blob for blob in map(_blob, files)}.values())
    with progress.task("push", "B") as task:
        work = _Push(client, blobs, task)
        failures = 0
        while True:
            mark = work.taken
            try:
                if failures:
                    client.reconnect()
                work.attempt()
                return work.taken
            except (HostKeyError, Refused):
                raise
            except IntegrityError:
                # What an earlier run left of a blob may be torn (a power cut): the board dropped it, so send it whole.
                if not work.forget_resumed():
                    raise
            except LinkError as error:
                failures = 1 if work.taken > mark else failures + 1
                if failures > RETRIES:
                    raise
                progress.note(f"{error.what}; trying again ({failures} of {RETRIES})")
                # Random, so that many hosts cut off by one fault do not all come back at once.
                time.sleep(_BACKOFF * 2 ** (failures - 1) * random.uniform(0.5, 1.5))  # noqa: S311


class _Push:
    """What the board has of the blobs, as far as it has said so."""

    def __init__(self, client: Client, blobs: list[Blob], task: Task) -> None:
        self._client = client
        self._blobs = blobs
        self._task = task
        self._have: dict[str, int] = {}
        self._start: int | None = None
        self._resumed = False
        self._packer = Packer(client.hello().codings, client.rate_limit)
        self._began = time.monotonic()

    def forget_resumed(self) -> bool:
        """Whether any blob was begun by an earlier run; only once."""
        resumed, self._resumed = self._resumed, False
        return resumed

    @property
    def taken(self) -> int:
        """Bytes the board took since the push began."""
        return sum(self._have.values()) - (self._start or 0)

    def attempt(self) -> None:
        """Ask, then send the rest."""
        self._ask()
        if self._start is None:
            self._start = sum(self._have.values())
            self._resumed = any(0 < self._have[blob.sha256] < blob.size for blob in self._blobs)
        if missing := [blob for blob in self._blobs if self._have[blob.sha256] < blob.size or not blob.size]:
            self._client.guarded(lambda channel: self._send(channel, missing))

    def _ask(self) -> None:
        for first in range(0, len(self._blobs), _ASK):
            some = self._blobs[first : first + _ASK]
            have = self._client.status([blob.sha256 for blob in some]).have
            for blob in some:
                count = have.get(blob.sha256, 0)
                if not 0 <= count <= blob.size:
                    raise IntegrityError(f"the board claims {count} bytes of a file of {blob.size}", self._client.where)
                self._have[blob.sha256] = count

    def _send(self, channel: Channel, missing: list[Blob]) -> None:
        waiting: deque[tuple[Blob, int]] = deque()
        error: _protocol.BoardSaid | None = None
        ahead = 0
        for blob, offset, chunk in self._chunks(missing):
            while waiting and not error and (len(waiting) >= _AHEAD or ahead + len(chunk) > _AHEAD_BYTES):
                ahead -= waiting[0][1]
                error = self._settle(channel, *waiting.popleft())
            if error:
                break
            args: dict[str, Any] = {"sha256": blob.sha256, "size": blob.size, "offset": offset}
            data, coding = self._packer.pack(chunk)
            if coding:
                args["coding"] = coding
            time.sleep(self._packer.account(len(data)))
            self._client.bytes_wire += len(data)
            channel.send(_protocol.request("put", args, len(data)) + data, self._until())
            waiting.append((blob, len(chunk)))
            ahead += len(chunk)
        # Whatever was asked is answered, also after an error, so that the channel stays usable.
        while waiting:
            error = self._settle(channel, *waiting.popleft()) or error
        if error:
            raise error

    def _settle(self, channel: Channel, blob: Blob, count: int) -> _protocol.BoardSaid | None:
        try:
            result, _ = _protocol.reply(channel, self._until(), self._client.where)
        except _protocol.BoardSaid as said:
            return said
        have, complete = result.get("have"), result.get("complete")
        expected = self._have[blob.sha256] + count
        # More than was sent is fine: somebody else may push the same blob at the same time.
        if not isinstance(have, int) or not expected <= have <= blob.size or complete is not (have == blob.size):
            raise IntegrityError("the board counts other bytes than were sent", self._client.where, "try again")
        self._have[blob.sha256] = expected
        start, total = self._start or 0, sum(one.size for one in self._blobs)
        left = (total - start - self.taken) / max(1.0, self.taken / max(1e-6, time.monotonic() - self._began))
        self._task.update(self.taken, total - start, f"{left:.0f} s left" if left >= 1 else "")
        return None

    def _chunks(self, missing: list[Blob]) -> Iterator[tuple[Blob, int, bytes]]:
        for blob in missing:
            offset = self._have[blob.sha256]
            if isinstance(blob.source, bytes):
                for at in range(offset, max(blob.size, offset + 1), CHUNK):
                    yield blob, at, blob.source[at : at + CHUNK]
                continue
            with blob.source.open("rb") as file:
                file.seek(offset)
                while True:
                    chunk = file.read(min(CHUNK, blob.size - offset))
                    if not chunk and offset < blob.size:
                        raise IntegrityError("the file became shorter while it was sent", str(blob.source), "try again")
                    yield blob, offset, chunk
                    offset += len(chunk)
                    if offset >= blob.size:
                        break

    def _until(self) -> float:
        return time.monotonic() + float(self._client.times.stall)


def _blob(item: Source) -> Blob:
    source, ref = item
    sha256 = ref.sha256 if isinstance(ref, FileRef) else ref
    if not SHA256.match(sha256):
        raise IntegrityError(f"not a sha256: {sha256[:70]!r}", "push")
    try:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
    except OSError as error:
        raise IntegrityError(f"can't read the file to send: {error.strerror}", str(source)) from None
    if isinstance(ref, FileRef) and ref.bytes != size:
        raise IntegrityError(f"the file has {size} bytes, not {ref.bytes}", str(source), "export it again")
    return Blob(source, sha256, size)
