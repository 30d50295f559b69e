"""Measured runs wait on the board's disk until the host says that it has them: ROOT/runs/<id>.<who>, one file each.

A run is kept after each of its processes: a kill, a cut link or a host that goes away costs one process at most.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import List

from edgepipe.agent.store import Store, check_name
from edgepipe.codec import canonical
from edgepipe.schema import Manifest, Plan, RawRun, RunOptions

_FOLDER = "runs"
# Of hosts that never came back; beyond it the oldest go, so that the disk stays bounded.
MOST = 100


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
    there = store.listing(_FOLDER)
    for old in sorted(there, key=lambda each: _age(store, each))[: max(0, len(there) - MOST)]:
        store.disk.remove(store.path(_FOLDER, old))


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


def _name(run: str, owner: str) -> str:
    return check_name(f"{run}.{_who(owner)}")


def _who(owner: str) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()[:16]


def _age(store: Store, name: str) -> float:
    try:
        return os.lstat(store.path(_FOLDER, name)).st_mtime
    except OSError:
        return 0.0
