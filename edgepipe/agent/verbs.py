"""The verbs of the agent: what each is asked, in a frozen dataclass, and what it does; see docs/agent-protocol.md."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Union

from edgepipe.agent import (
    coding,
    delta,
    health,
    ledger,
    lock,
    power,
    probe,
    rules,
    runtimes,
    service,
    sites,
    spool,
    trust,
)
from edgepipe.agent.jobs import Jobs
from edgepipe.agent.orders import Signed
from edgepipe.agent.releases import Releases
from edgepipe.agent.requests import (
    Activate,
    Bench,
    Collect,
    Forget,
    Get,
    Hello,
    Nothing,
    Profile,
    Put,
    Run,
    Signers,
    Site,
    Status,
    Verify,
    Which,
)
from edgepipe.agent.store import Store
from edgepipe.agent.text import clean
from edgepipe.codec import to_dict
from edgepipe.errors import BoardError, EdgepipeError, UsageError
from edgepipe.schema import Manifest, RawRun, Release, RunOptions, ServiceState, digest

PROTOCOL = 1
_SELFTEST_SECONDS = 120.0


@dataclass
class Session:
    """What the verbs of one connection share.

    ``agent`` is the sha256 of the zipapp, or empty. ``payload`` is the raw bytes of the request being served.
    """

    store: Store
    jobs: Jobs
    agent: str = ""
    owner: str = "unknown"
    wait: float = 0.0
    sysfs_root: str = "/"
    payload: Iterator[bytes] = field(default_factory=lambda: iter(()))

    def __post_init__(self) -> None:
        self.releases = Releases(self.store)


class Answer(NamedTuple):
    """The result of a verb, and the path of a file whose bytes follow it, or None."""

    result: Any
    file: Optional[str] = None


def hello(session: Session, args: Hello) -> Answer:
    """Facts of the board; quick, since no runtime is imported."""
    session.owner, session.wait = clean(args.owner, 128) or "unknown", args.wait
    links = session.releases.links()
    found = {name: sites.path(session.store, name) for name in runtimes.names()}
    board = probe.board({name: path for name, path in found.items() if path}, session.sysfs_root)
    return Answer(
        {
            "protocol": PROTOCOL,
            "agent": session.agent,
            "root": session.store.root,
            "board": to_dict(board),
            "free_bytes": session.store.free_bytes(),
            "current": links.current,
            "previous": links.previous,
            "trust": _trust(session),
            "runs": spool.waiting(session.store, session.owner),
            "codings": coding.known(),
        }
    )


def _trust(session: Session) -> Optional[Dict[str, Any]]:
    """Under which name the board trusts whom, and its counter; null where no signers are pinned."""
    known = ledger.shown(session.store)
    if not known.signers:
        return None
    return {"target": known.target, "counter": known.counter, "signers": trust.signers_digest(known)}


def doctor(session: Session, _args: Nothing) -> Answer:
    """Look at the board closely. It holds the lock: imports would disturb a measurement."""
    return Answer(to_dict(health.examine(session.store, session.jobs, session.sysfs_root)))


def status(session: Session, args: Status) -> Answer:
    """What is active, what is here, who holds the board."""
    links = session.releases.links()
    return Answer(
        {
            "current": links.current,
            "previous": links.previous,
            "activated_at": session.releases.activated_at(),
            "releases": session.releases.all(),
            "activations": to_dict(ledger.shown(session.store))["activations"],
            "free_bytes": session.store.free_bytes(),
            "used_bytes": session.store.used_bytes(),
            "lock": lock.holder(session.store.path("lock")),
            "have": {sha: session.store.have(sha) for sha in args.blobs},
        }
    )


def put(session: Session, args: Put) -> Answer:
    """Append a piece of a blob."""
    most = max(0, args.size - args.offset)
    pieces = coding.unpack(args.coding, session.payload, delta.MOST_INSTRUCTIONS if args.base else most)
    if args.base:
        pieces = delta.rebuild(session.store.blob(args.base), pieces, most)
    have, complete = session.store.put(args.sha256, args.size, args.offset, pieces)
    return Answer({"have": have, "complete": complete})


def get(session: Session, args: Get) -> Answer:
    """Send a blob or a spooled file."""
    return Answer({}, session.store.fetch(args.sha256))


def manifest(session: Session, args: Which) -> Answer:
    """Say what a release is."""
    return Answer({"manifest": to_dict(session.releases.read(args.release))})


def verify(session: Session, args: Verify) -> Answer:
    """Run samples on the board."""
    _check(session, "release", digest(args.manifest), args.signed)
    session.releases.stage(args.manifest)
    options = RunOptions(threads=args.threads, optimize=args.optimize)
    return Answer(session.jobs.infer(args.manifest, args.inputs, options, args.deadline_seconds))


def activate(session: Session, args: Activate) -> Answer:
    """Stage, hash, self-test, then move the links. What fails leaves the old release active."""
    began = time.monotonic()
    name = args.manifest.id
    checked = _check(session, "release", digest(args.manifest), args.signed)
    session.releases.verify(args.manifest)
    session.releases.stage(args.manifest)
    before, wanted = session.releases.links(), service.read(session.store)
    changed = name != before.current
    if changed:
        try:
            if args.manifest.selftest:
                session.jobs.selftest(args.manifest, _SELFTEST_SECONDS)
        except EdgepipeError:
            session.releases.discard(name)
            raise
        event = ledger.Activation(
            session.owner, round(time.time(), 3), checked.signer, service.PENDING if wanted else ""
        )
        _note_activation(session, name, checked.ledger, event)
        session.releases.activate(name)
    state = _serve(session, wanted, name, before if changed else rules.withdrawn(before)) if wanted else None
    return _release(session, changed, began, state)


def _serve(session: Session, wanted: service.Service, name: str, back: rules.Links) -> Optional[ServiceState]:
    """Restart the board's service with the new release, unless it was well with it before.

    A cut may have come before it was known to be well: then this is done again.

    Raises:
        BoardError: it was not well; the links are ``back``, and the service runs the release before.
    """
    known = ledger.read(session.store)
    event = known.activations.get(name)
    if event is None or event.service != service.PENDING:
        return None
    try:
        state = service.restart(wanted)
    except EdgepipeError as error:
        session.releases.restore(back)
        session.releases.discard(name)
        raise BoardError(f"{error.what}; {_gone_back(wanted, back)}", error.where, error.fix) from None
    _note_activation(session, name, known, replace(event, service=service.WELL))
    return state


def _gone_back(wanted: service.Service, back: rules.Links) -> str:
    """Restart the service with the release before, and say how that went."""
    if back.current is None:
        return "no release is active, as before"
    try:
        service.restart(wanted)
    except EdgepipeError as error:
        return f"release {back.current} is active again, and with it, too: {error.what}"
    return f"release {back.current} is active again, and {wanted.unit} is well with it"


def _check(session: Session, verb: str, subject: str, signed: Optional[Signed]) -> trust.Checked:
    return trust.check(session.store, ledger.read(session.store), verb, subject, signed)


def _note_activation(session: Session, name: str, known: ledger.Ledger, event: ledger.Activation) -> None:
    """Write down who activates what, and the counter, before a link moves."""
    links = session.releases.links()
    known = replace(known, activations={**known.activations, name: event})
    ledger.write(session.store, known, [kept for kept in (name, links.current, links.previous) if kept])


def rollback(session: Session, _args: Nothing) -> Answer:
    """Go back to the previous release, and restart the board's service with it."""
    began = time.monotonic()
    links, wanted = session.releases.rollback(), service.read(session.store)
    try:
        state = service.restart(wanted) if wanted else None
    except EdgepipeError as error:
        raise BoardError(f"release {links.current} is active again, but {error.what}", error.where, error.fix) from None
    return _release(session, True, began, state)


def _release(session: Session, changed: bool, began: float, state: Optional[ServiceState]) -> Answer:
    links = session.releases.links()
    event = ledger.shown(session.store).activations.get(links.current or "")
    release = Release(
        id=links.current or "",
        previous=links.previous,
        activated_at=session.releases.activated_at(),
        seconds=round(time.monotonic() - began, 6),
        changed=changed,
        signer=event.signer if event else "",
        service=state,
    )
    return Answer(to_dict(release))


def bench(session: Session, args: Bench) -> Answer:
    """Measure a release. Given as a manifest it is staged, and the active one stays what it is."""
    if args.run:
        spool.reserve(session.store, args.run, session.owner)
    manifest = _staged(session, args)
    watch = power.Watch(args.meter, args.rail, session.sysfs_root)

    def keep(raw: RawRun) -> None:
        # A full disk is no reason to lose a run that can still be sent.
        if args.run:
            with contextlib.suppress(OSError):
                spool.keep(
                    session.store,
                    spool.Run(args.run, session.owner, time.time(), manifest, args.plan, args.options, raw),
                )

    return Answer(to_dict(session.jobs.bench(manifest, args.plan, args.options, args.inputs, watch, keep)))


def _staged(session: Session, args: Union[Bench, Profile]) -> Manifest:
    """The release to be measured, made ready: one given as a manifest, or one that is here."""
    if args.manifest and args.release:
        raise UsageError("both a manifest and a release to measure", "bench", "give one of them")
    if args.manifest:
        _check(session, "release", digest(args.manifest), args.signed)
    found: Manifest = args.manifest or session.releases.read(args.release)
    session.releases.stage(found)
    return found


def profile(session: Session, args: Profile) -> Answer:
    """Time each node of a release, in a run of its own."""
    found = _staged(session, args)
    return Answer({"ops": session.jobs.profile(found, args.runs, args.options, args.inputs, args.deadline_seconds)})


def run(session: Session, args: Run) -> Answer:
    """Send a measured run that waits here."""
    path = spool.path(session.store, args.run, session.owner)
    if not os.path.isfile(path):
        raise UsageError(f"no run {args.run[:64]!r} waits here", "run", "hello lists those that do")
    return Answer({}, path)


def forget(session: Session, args: Forget) -> Answer:
    """Remove runs that the host has."""
    return Answer({"forgotten": spool.forget(session.store, args.runs, session.owner)})


def clock(_session: Session, _args: Nothing) -> Answer:
    """The board's monotonic clock, so that a host can find where its own stands beside it."""
    return Answer({"monotonic": time.monotonic()})


def collect(session: Session, args: Collect) -> Answer:
    """Free what no link needs."""
    before = session.store.used_bytes()
    dropped = spool.drop(session.store) if args.drop_runs else 0
    removed, blobs = session.releases.gc(args.keep_spool)
    freed = before - session.store.used_bytes()
    return Answer({"freed_bytes": freed, "releases": removed, "blobs": blobs, "runs": dropped})


def site(session: Session, args: Site) -> Answer:
    """Put a runtime's packages in place, or say whether that would change anything."""
    what = {"runtime": args.runtime, "files": [to_dict(ref) for ref in args.files], "note": args.note}
    checked = None if args.dry_run else _check(session, "site", digest(what), args.signed)
    changed = sites.install(session.store, args.runtime, args.files, args.note, args.dry_run)
    if checked and checked.signer:
        _keep(session, checked.ledger)
    return Answer({"files": len(args.files), "bytes": sum(ref.bytes for ref in args.files), "changed": changed})


def signers(session: Session, args: Signers) -> Answer:
    """Pin whose signatures the board takes. Once there are any, only an order they signed may change them."""
    checked = _check(session, "signers", digest({"target": args.target, "signers": args.signers}), args.signed)
    _keep(session, trust.pinned(session.store, checked.ledger, args.target, args.signers))
    return Answer({"trust": _trust(session)})


def _keep(session: Session, known: ledger.Ledger) -> None:
    ledger.write(session.store, known, list(known.activations))


class Verb(NamedTuple):
    """The type of a verb's arguments, its function, and whether it needs the board for itself."""

    args: type
    call: Callable[[Session, Any], Answer]
    locks: bool


VERBS: Dict[str, Verb] = {
    "hello": Verb(Hello, hello, False),
    "doctor": Verb(Nothing, doctor, True),
    "status": Verb(Status, status, False),
    "put": Verb(Put, put, False),
    "get": Verb(Get, get, False),
    "manifest": Verb(Which, manifest, False),
    "verify": Verb(Verify, verify, True),
    "activate": Verb(Activate, activate, True),
    "bench": Verb(Bench, bench, True),
    "profile": Verb(Profile, profile, True),
    "run": Verb(Run, run, False),
    "forget": Verb(Forget, forget, False),
    "clock": Verb(Nothing, clock, False),
    "rollback": Verb(Nothing, rollback, True),
    "gc": Verb(Collect, collect, True),
    "site": Verb(Site, site, True),
    "signers": Verb(Signers, signers, True),
}
