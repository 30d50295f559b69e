"""Send blobs: ask what is there, send the rest in chunks without waiting for each answer, resume after a cut."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from edgepipe.errors import HostKeyError, IntegrityError, LinkError
from edgepipe.link import Channel, Refused, _delta, _protocol, _sent
from edgepipe.link._packing import Packer
from edgepipe.progress import Progress, Task
from edgepipe.schema import SHA256, DeltaSent, FileRef

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
    deltas: list[DeltaSent]

    @property
    def where(self) -> str:
        """Where the board is, for people."""

    def hello(self) -> Any:
        """Return what the agent said of itself."""

    def status(self, blobs: list[str] | None = None) -> Any:
        """Ask how much of each blob the board has."""

    def manifest(self, release: str | None = None) -> Any:
        """Fetch the manifest of a release the board holds."""

    def guarded(self, talk: Callable[[Channel], T]) -> T:
        """Run a talk with the agent."""

    def reconnect(self) -> None:
        """Connect anew."""


@dataclass(frozen=True)
class Blob:
    """One thing to send: where its bytes are, their hash and their number. A file of a model has a ``ref``."""

    source: Path | bytes
    sha256: str
    size: int
    ref: FileRef | None = None

    @property
    def keepable(self) -> bool:
        """Whether a later version of it may be told against it. Files in folders are those of Python packages."""
        return bool(self.ref and "/" not in self.ref.name and _delta.LEAST <= self.size <= _delta.MOST)


class _Part(NamedTuple):
    """What one request carries of a blob: bytes ``start`` to ``end`` of it, as ``data``."""

    blob: Blob
    start: int
    end: int
    data: bytes
    more: dict[str, str]  # of the request's arguments

    @property
    def weight(self) -> int:
        """Bytes that a cut may make us send again."""
        return len(self.data) if "base" in self.more else self.end - self.start


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
                return work.finished()
            except (HostKeyError, Refused):
                raise
            except IntegrityError:
                # The board has not what a delta stands on, or can't read it; then the blob goes whole.
                # What an earlier run left of a blob may be torn (a power cut): the board dropped it, so send it whole.
                if not work.forget_deltas() and not work.forget_resumed():
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
        self._links: list[str | None] = []
        self._start: int | None = None
        self._resumed = False
        self._plans: dict[str, _delta.Plan] | None = None
        self._keeper: threading.Thread | None = None
        self._packer = Packer(client.hello().codings, client.rate_limit)
        self._began = time.monotonic()

    def forget_deltas(self) -> bool:
        """Send what is left whole; False if nothing went as a delta."""
        used, self._plans = bool(self._plans), {}
        self._resumed |= used  # what came of one may be wrong, and is known to be only at its end
        return used

    def finished(self) -> int:
        """Note what went as a delta; returns the bytes taken."""
        self._client.deltas += [plan.said(sha256) for sha256, plan in (self._plans or {}).items()]
        if self._keeper:
            self._keeper.join()
        return self.taken

    def _keep(self) -> None:
        """Keep copies, for the next version to be told against, while the link is busy."""
        kept = [(one.source, one.sha256) for one in self._blobs if one.keepable and isinstance(one.source, Path)]

        def keep() -> None:
            for source, sha256 in kept:
                _sent.keep(source, sha256)

        if kept:
            self._keeper = threading.Thread(target=keep, name="keep", daemon=True)
            self._keeper.start()

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
        missing = [blob for blob in self._blobs if self._have[blob.sha256] < blob.size or not blob.size]
        if self._plans is None:
            self._plans = self._planned(missing)
            self._keep()
        if missing:
            self._client.guarded(lambda channel: self._send(channel, missing))

    def _planned(self, missing: list[Blob]) -> dict[str, _delta.Plan]:
        """What is quickly told against a file of a release that the board has."""
        fresh = [blob for blob in missing if blob.keepable and not self._have[blob.sha256]]
        if not fresh or not any(self._links):
            return {}
        releases = _delta.releases_of(self._client, self._links)
        codings = self._client.hello().codings
        plans = {one.sha256: _delta.plan(one.source, one.ref, releases, codings) for one in fresh if one.ref}
        return {sha256: plan for sha256, plan in plans.items() if plan}

    def _ask(self) -> None:
        for first in range(0, len(self._blobs), _ASK):
            some = self._blobs[first : first + _ASK]
            status = self._client.status([blob.sha256 for blob in some])
            have, self._links = status.have, [status.current, status.previous]
            for blob in some:
                count = have.get(blob.sha256, 0)
                if not 0 <= count <= blob.size:
                    raise IntegrityError(f"the board claims {count} bytes of a file of {blob.size}", self._client.where)
                self._have[blob.sha256] = count

    def _send(self, channel: Channel, missing: list[Blob]) -> None:
        waiting: deque[_Part] = deque()
        error: _protocol.BoardSaid | None = None
        ahead = 0
        for part in self._parts(missing):
            while waiting and not error and (len(waiting) >= _AHEAD or ahead + part.weight > _AHEAD_BYTES):
                ahead -= waiting[0].weight
                error = self._settle(channel, waiting.popleft())
            if error:
                break
            args = {"sha256": part.blob.sha256, "size": part.blob.size, "offset": part.start, **part.more}
            time.sleep(self._packer.account(len(part.data)))
            self._client.bytes_wire += len(part.data)
            channel.send(_protocol.request("put", args, len(part.data)) + part.data, self._until())
            waiting.append(part)
            ahead += part.weight
        # Whatever was asked is answered, also after an error, so that the channel stays usable.
        while waiting:
            error = self._settle(channel, waiting.popleft()) or error
        if error:
            raise error

    def _settle(self, channel: Channel, part: _Part) -> _protocol.BoardSaid | None:
        try:
            result, _ = _protocol.reply(channel, self._until(), self._client.where)
        except _protocol.BoardSaid as said:
            return said
        blob, have, complete = part.blob, result.get("have"), result.get("complete")
        # More than was sent is fine: somebody else may push the same blob at the same time.
        if not isinstance(have, int) or not part.end <= have <= blob.size or complete is not (have == blob.size):
            raise IntegrityError("the board counts other bytes than were sent", self._client.where, "try again")
        self._have[blob.sha256] = part.end
        start, total = self._start or 0, sum(one.size for one in self._blobs)
        left = (total - start - self.taken) / max(1.0, self.taken / max(1e-6, time.monotonic() - self._began))
        self._task.update(self.taken, total - start, f"{left:.0f} s left" if left >= 1 else "")
        return None

    def _parts(self, missing: list[Blob]) -> Iterator[_Part]:
        """What is to be sent, as instructions against what the board has, or packed where that pays."""
        for blob in missing:
            if plan := (self._plans or {}).get(blob.sha256):
                yield from _told(blob, plan, self._have[blob.sha256])
                continue
            for start, chunk in _chunks(blob, self._have[blob.sha256]):
                data, coding = self._packer.pack(chunk)
                yield _Part(blob, start, start + len(chunk), data, {"coding": coding} if coding else {})

    def _until(self) -> float:
        return time.monotonic() + float(self._client.times.stall)


def _told(blob: Blob, plan: _delta.Plan, have: int) -> Iterator[_Part]:
    for piece in plan.pieces:
        if piece.end > have:  # one that is here in part is made again
            more = {"base": plan.base, **({"coding": piece.coding} if piece.coding else {})}
            yield _Part(blob, piece.start, piece.end, piece.data, more)


def _chunks(blob: Blob, offset: int) -> Iterator[tuple[int, bytes]]:
    if isinstance(blob.source, bytes):
        for at in range(offset, max(blob.size, offset + 1), CHUNK):
            yield at, blob.source[at : at + CHUNK]
        return
    with blob.source.open("rb") as file:
        file.seek(offset)
        while True:
            chunk = file.read(min(CHUNK, blob.size - offset))
            if not chunk and offset < blob.size:
                raise IntegrityError("the file became shorter while it was sent", str(blob.source), "try again")
            yield offset, chunk
            offset += len(chunk)
            if offset >= blob.size:
                break


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
    return Blob(source, sha256, size, ref if isinstance(ref, FileRef) else None)
