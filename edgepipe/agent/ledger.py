"""What the board remembers beside its releases: whom it trusts, the counter that never goes down, who activated what.

One file, ROOT/ledger.json, replaced as a whole; it is on the disk before a link that depends on it moves.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Dict, Iterable

from edgepipe.agent.store import Store
from edgepipe.codec import canonical, from_dict
from edgepipe.errors import EdgepipeError, IntegrityError

_FILE = "ledger.json"
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Activation:
    """Who made a release current, when by the board's clock, and whose signature was checked (empty: nobody's).

    ``service`` says whether the board's service was well with it: empty where there is none, else pending or well.
    """

    by: str
    at: float
    signer: str = ""
    service: str = ""


@dataclass(frozen=True)
class Ledger:
    """``signers`` is an allowed-signers file, pinned under the name ``target``; both are empty where nothing is pinned.

    ``counter`` is that of the last statement acted upon, ``last`` its digest. ``activations`` go by release id.
    """

    target: str = ""
    signers: str = ""
    counter: int = 0
    last: str = ""
    activations: Dict[str, Activation] = field(default_factory=dict)


def read(store: Store) -> Ledger:
    """The ledger; an empty one where there is none yet.

    Raises:
        IntegrityError: the file is damaged. Taking that for an empty one would forget whom the board trusts.
    """
    path = store.path(_FILE)
    try:
        with open(path, "rb") as file:
            return from_dict(Ledger, json.loads(file.read(_MOST_BYTES).decode()))
    except FileNotFoundError:
        return Ledger()
    except (ValueError, RecursionError, EdgepipeError):
        raise IntegrityError(
            "the board's ledger of signers and activations is damaged",
            path,
            "rollback still works; find out why, then remove the file on the board and pin the signers again",
        ) from None


def shown(store: Store) -> Ledger:
    """The ledger for those who only look: an empty one where it is damaged. Never to decide whether an order passes."""
    try:
        return read(store)
    except IntegrityError:
        return Ledger()


def write(store: Store, ledger: Ledger, keep: Iterable[str]) -> None:
    """Replace the ledger, safe against a power cut; activations of releases not among ``keep`` are forgotten."""
    kept = {name: ledger.activations[name] for name in keep if name in ledger.activations}
    path = store.path(_FILE)
    store.disk.remove(path + ".new")
    store.disk.write(path + ".new", canonical(dataclasses.replace(ledger, activations=kept)))
    store.disk.sync(path + ".new")
    store.disk.rename(path + ".new", path)
    store.disk.sync(store.root)
