"""Measured runs wait on the board's disk until the host says that it has them: ROOT/runs/<id>.<who>, one file each.

A run is kept after each of its processes: a kill, a cut link or a host that goes away costs one process at most.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import List

from edgepipe.agent.disk import disk_full
from edgepipe.agent.store import Store, check_name
from edgepipe.codec import canonical
from edgepipe.errors import BoardError
from edgepipe.schema import Manifest, Plan, RawRun, RunOptions

_FOLDER = "runs"
# None that waits is ever dropped; what bounds the disk is that no more is measured.
MOST = 100
# Free before a run is measured: 100,000 samples take about this as JSON.
ROOM_BYTES = 1 << 20


@dataclass(frozen=True)
class Run:
    """A run as it waits: what was measured how, for whom, and when it was kept (the board's clock, s since 1970)."""

    id: str
    owner: str
    at: float
    manifest: Manifest
    plan: Plan
    options: RunOptions
    raw: RawRun


def reserve(store: Store, run: str, owner: str) -> None:
    """Make sure that a run can be kept, before it is measured.

    Raises:
        BoardError: as many as may wait do so already, or the disk is too full for one more.
    """
    there = store.listing(_FOLDER)
    if _name(run, owner) in there:
        return
    if len(there) >= MOST:
        own = len(waiting(store, owner))
        raise BoardError(
            f"{len(there)} measured runs wait on the board for their hosts, {own} of them for {owner}",
            store.path(_FOLDER),
            "a deploy or bench of those hosts fetches theirs; edgepipe gc --target T --runs drops them all",
        )
    if store.free_bytes() < ROOM_BYTES:
        raise disk_full(store.path(_FOLDER), ROOM_BYTES)


def keep(store: Store, run: Run) -> None:
    """Put a run on the disk, in place of what was kept of it before. It survives a power cut when this returns.

    Raises:
        OSError: the disk is full or fails; what was kept before stays.
    """
    name = _name(run.id, run.owner)
    staging = store.path(_FOLDER, f".{name}")
    store.disk.remove(staging)
    try:
        store.disk.write(staging, canonical(run))
        store.disk.sync(staging)
        store.disk.rename(staging, store.path(_FOLDER, name))
    except OSError:
        store.disk.remove(staging)
        raise
    store.disk.sync(store.path(_FOLDER))


def waiting(store: Store, owner: str) -> List[str]:
    """Ids of the runs that wait for this owner, in the order of their names."""
    end = "." + _who(owner)
    return [name[: -len(end)] for name in store.listing(_FOLDER) if name.endswith(end)]


def path(store: Store, run: str, owner: str) -> str:
    """Where a run of this owner's waits; the file may not be there."""
    return store.path(_FOLDER, _name(run, owner))


def forget(store: Store, runs: List[str], owner: str) -> int:
    """Remove runs that the host has; returns how many were there. Asking again does nothing."""
    there = [path(store, run, owner) for run in runs]
    there = [each for each in there if os.path.isfile(each)]
    for each in there:
        store.disk.unlink(each)
    return len(there)


def drop(store: Store) -> int:
    """Remove every run that waits, whoever it waits for: on a person's word alone. Returns how many there were."""
    there = store.listing(_FOLDER)
    for name in os.listdir(store.path(_FOLDER)):
        store.disk.remove(store.path(_FOLDER, name))
    return len(there)


def _name(run: str, owner: str) -> str:
    return check_name(f"{run}.{_who(owner)}")


def _who(owner: str) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()[:16]
