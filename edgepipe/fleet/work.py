"""What is done on one board, by whoever runs jobs: greet, deliver, measure, leave. A connection is kept between jobs.

Nothing here touches the journal. A measured run stays on the board until a later job says that the planner has it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe import bench, board, executed, measurement, verify
from edgepipe.answers import Times
from edgepipe.errors import BoardError, DeadlineError, EdgepipeError, IntegrityError, LinkError
from edgepipe.progress import Silent
from edgepipe.schema import SHA256, Artifact, Board, Manifest, Plan, RunOptions

if TYPE_CHECKING:
    from edgepipe.agent.spool import Run
    from edgepipe.board import BoardClient
    from edgepipe.data import Dataset
    from edgepipe.link._push import Source
    from edgepipe.record import Accuracy, Measurement, Rung
    from edgepipe.targets import Target
    from edgepipe.verify import Ladder


@dataclass(frozen=True)
class Where:
    """A board, who asks, and how long its answers may take. ``kept`` are runs that the board may forget.

    Connections are kept by ``session``: fleets that share a process don't share them.
    """

    target: Target
    owner: str
    times: Times = field(default_factory=Times)
    kept: tuple[str, ...] = ()
    session: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What the connection goes by."""
        return self.session, self.target.name


@dataclass(frozen=True)
class Package:
    """What a board needs for one candidate: the release, its files, and the samples that show it computes the same.

    ``samples`` is an npz blob with its sha256; ``artifact`` says where the files lie on the host.
    """

    manifest: Manifest
    files: list[Source]
    samples: tuple[bytes, str] | None = None
    dataset: Dataset | None = None
    ladder: Ladder | None = None
    task: str = ""
    max_drop: float | None = None
    artifact: Artifact | None = None


@dataclass(frozen=True)
class Greeting:
    """Who answered: its facts, the fingerprint of its host key, and the runs asked for that waited there."""

    facts: Board
    fingerprint: str = ""
    waiting: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """What a trial came to. ``broken``: the agent or the link ended with it. ``fetched``: it was measured before."""

    measurement: Measurement
    accuracy: Accuracy | None = None
    parity: tuple[Rung, ...] = ()
    broken: bool = False
    fetched: bool = False


_clients: dict[tuple[str, str], BoardClient] = {}
_lock = threading.Lock()


def greet(where: Where, runs: frozenset[str]) -> Greeting:
    """Connect anew, and look for ``runs`` that an earlier host measured and did not take.

    Raises:
        LinkError, BusyError, DeadlineError, BoardError, IntegrityError: as `board.connect`.
    """
    close(*where.key)
    with connected(where) as client:
        waiting = tuple(name for name in client.hello().runs if name in runs)
        return Greeting(client.hello().board, client.fingerprint, waiting)


def deliver(where: Where, package: Package) -> int:
    """Send what the board lacks of a package; returns the bytes it took.

    Raises:
        LinkError, DeadlineError, BoardError, IntegrityError: as `BoardClient.push`.
    """
    with connected(where) as client:
        return client.push([*package.files, *([package.samples] if package.samples else [])])


def measure(where: Where, package: Package, trial: str, plan: Plan, options: RunOptions) -> Found:
    """Run the samples, then time the release. A run of this trial that waits on the board is taken instead.

    A fault of the model or its runtime is a result.

    Raises:
        LinkError, BusyError, IntegrityError: nothing was measured.
    """
    with connected(where) as client:
        if trial in client.hello().runs and (run := _waiting(client, trial)):
            return Found(bench.concluded(run.raw, run.plan, run.options), fetched=True)
        accuracy, parity, fault = verified(client, package, options)
        if fault:
            status = "timeout" if isinstance(fault, DeadlineError) else "failed"
            failed = measurement.failed(status, f"{fault.what} ({fault.where})", plan, options)
            return Found(failed, accuracy, parity, _broken(client))
        inputs = package.samples[1] if package.samples else None
        result = bench.measure(client, package.manifest, plan, options, inputs, Silent(), trial)
        if package.artifact and Path(package.artifact.path).is_file():
            result = executed.judged(result, package.artifact)
        return Found(result, accuracy, parity, _broken(client))


def leave(where: Where) -> None:
    """Say which runs are kept, and close the connection. Never raises: the board is asked again some day."""
    if where.kept:
        with contextlib.suppress(EdgepipeError), connected(where):
            pass
    close(*where.key)


def close(session: str, name: str) -> None:
    """Close a board's connection, if it has one."""
    with _lock:
        client = _clients.pop((session, name), None)
    if client:
        client.close()


def close_all(session: str = "") -> None:
    """Close every connection of a session."""
    for key in [each for each in list(_clients) if each[0] == session]:
        close(*key)


@contextmanager
def connected(where: Where) -> Iterator[BoardClient]:
    """The open connection to a board, or a new one; closed when anything goes wrong."""
    client = _clients.get(where.key)
    if client and _broken(client):
        close(*where.key)
        client = None
    if client is None:
        client = board.connect(where.target, where.owner, Silent(), where.times)
        with _lock:
            _clients[where.key] = client
    try:
        if where.kept:
            client.forget(list(where.kept))
        yield client
    except BaseException:
        close(*where.key)
        raise


def _broken(client: BoardClient) -> bool:
    try:
        client.channel()
    except LinkError:
        return True
    return False


def _waiting(client: BoardClient, trial: str) -> Run | None:
    """A run that waits on the board; None where it is damaged, so that it is measured anew."""
    try:
        run = client.run(trial)
    except IntegrityError:
        return None
    return run if run.id == trial and any(each.samples_ns for each in run.raw.processes) else None


def verified(
    client: BoardClient, package: Package, options: RunOptions
) -> tuple[Accuracy | None, tuple[Rung, ...], EdgepipeError | None]:
    """Whether the board gives the host's answers; a fault of the model or its runtime comes back as the error.

    Raises:
        LinkError: the board is gone. IntegrityError: it does not speak as agreed.
    """
    ladder, dataset, samples = package.ladder, package.dataset, package.samples
    if ladder is None or dataset is None or samples is None:
        return None, (), None
    name = package.manifest.name
    try:
        answer = client.verify(package.manifest, samples[1], options)
        outputs = client.arrays(answer.outputs) if SHA256.match(answer.outputs) else []
    except (BoardError, DeadlineError) as error:
        return ladder.accuracy, tuple(ladder.parity), error
    try:
        found = verify.on_device(ladder, outputs, dataset, package.task)
        verify.judge(found, package.max_drop, f"{name} on {client.target.name}")
    except EdgepipeError as error:
        return ladder.accuracy, tuple(ladder.parity), error
    return found.accuracy, tuple(found.parity), None
