"""Signed orders: what is tampered with, by another key, for another board or replayed is refused. On a real agent."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgepipe import board as boards
from edgepipe import paths, signing
from edgepipe.agent import ledger, trust
from edgepipe.agent.orders import Signed, Statement
from edgepipe.agent.store import Store
from edgepipe.codec import canonical
from edgepipe.errors import BoardError, IntegrityError, UsageError
from edgepipe.progress import Silent
from edgepipe.schema import Artifact, FileRef, Manifest, Preprocessing, digest
from edgepipe.targets import Target
from tests.guarantees.figure import report, scale

pytestmark = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="no ssh-keygen on this machine")


def keygen(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("keys")
    return keygen(folder / "ann"), keygen(folder / "mallory")


def release(name: str) -> tuple[Manifest, bytes]:
    content = json.dumps({"outputs": [[10]], "sleep_s": 0, "note": name}).encode()
    ref = FileRef("model.json", hashlib.sha256(content).hexdigest(), len(content))
    return Manifest(
        name, Artifact("null", ref.name, ref.bytes, 0, ref.sha256, [ref], [], [], Preprocessing()), "null"
    ), content


@pytest.fixture
def connect(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], boards.BoardClient]:
    """A local board per name, all in one home: agents that share what is on the disk."""
    monkeypatch.delenv(signing.KEY_VARIABLE, raising=False)

    def begin(name: str = "rack-7") -> boards.BoardClient:
        target = Target(name, link="local")
        return boards.connect(target, "ann@desk", Silent())

    return begin


def deploy(client: boards.BoardClient, name: str) -> boards.Release:
    manifest, content = release(name)
    client.push([(content, manifest.artifact.files[0])])
    return client.activate(manifest)


def refused(client: boards.BoardClient, manifest: Manifest, signed: Signed | None, match: str) -> None:
    with pytest.raises(IntegrityError, match=match):
        client._ask("activate", {"manifest": dataclasses.asdict(manifest), "signed": wire(signed)}, boards.Release, 60)


def wire(signed: Signed | None) -> dict[str, object] | None:
    return dataclasses.asdict(signed) if signed else None


def order(manifest: Manifest, target: str, counter: int, key: Path, **other: str) -> Signed:
    statement = Statement(other.get("verb", "release"), other.get("subject", digest(manifest)), target, counter)
    return Signed(statement, signing.sign(canonical(statement), key))


def test_a_board_with_signers_takes_signed_orders_only(connect, keys):
    ann, mallory = keys
    with connect() as client:
        assert deploy(client, "before").signer == ""
        signing.remember("rack-7", ann)
        facts = client.signers(signing.allowed_line(ann, "ann@desk"))
        assert facts.trust and (facts.trust.target, facts.trust.counter) == ("rack-7", 0)
        assert deploy(client, "one").signer == "ann@desk"
        one = client._signer.order("release", digest(release("one")[0]), 0)
        assert deploy(client, "two").signer == "ann@desk"
        two, _ = release("two")
        client.rollback()  # needs no signature: the board took that release before
        manifest, content = release("evil")
        client.push([(content, manifest.artifact.files[0])])
        refused(client, manifest, None, "not signed")
        refused(client, manifest, order(manifest, "rack-7", 9, mallory), "not pinned")
        refused(client, manifest, order(manifest, "rack-8", 9, ann), "rack-8.*rack-7")
        refused(client, manifest, order(manifest, "rack-7", 2, ann), "replay")
        refused(client, manifest, order(manifest, "rack-7", 1 << 60, ann), "replay")
        refused(client, manifest, order(manifest, "rack-7", 9, ann, verb="site"), "not what is asked")
        refused(client, manifest, order(two, "rack-7", 9, ann), "not what is asked")
        refused(client, manifest, Signed(order(manifest, "rack-7", 9, ann).statement, one.signature), "does not fit")
        refused(client, release("one")[0], one, "replay")
        state = client.status()
        assert state.current == release("one")[0].id and client.refresh().trust.counter == 2
        assert state.activations[two.id].signer == "ann@desk" and state.activations[two.id].by == "ann@desk"
        assert deploy(client, "two").signer == "ann@desk" and client.refresh().trust.counter == 2
        assert deploy(client, "three").signer == "ann@desk" and client.refresh().trust.counter == 3


def test_measuring_and_provisioning_need_a_signature_too(connect, keys):
    with connect() as client:
        signing.remember("rack-7", keys[0])
        client.signers(signing.allowed_line(keys[0], "ann"))
        manifest, content = release("m")
        client.push([(content, manifest.artifact.files[0])])
        plan, options = (
            boards.Plan(processes=1, min_seconds=0.05, min_samples=5, warmup_seconds=0.01),
            boards.RunOptions(),
        )
        assert client.bench(manifest, plan, options).processes
        signing.remember("rack-7", keys[1])
        other, content = release("other")
        client.push([(content, other.artifact.files[0])])
        for act in (
            lambda: client.bench(other, plan, options),
            lambda: client.verify(other, "0" * 64),
            lambda: client.site("onnxruntime", [FileRef("a.py", other.artifact.sha256, len(content))]),
            lambda: client.signers(signing.allowed_line(keys[1], "mallory")),
            lambda: client.signers(""),
        ):
            with pytest.raises(IntegrityError, match="not pinned"):
                act()
        assert client.status().current is None and not list(
            (paths.data_home() / "boards" / "local" / ".edgepipe" / "sites").iterdir()
        )


def test_signers_change_only_by_those_pinned(connect, keys):
    ann, mallory = keys
    with connect() as client:
        signing.remember("rack-7", ann)
        client.signers(signing.allowed_line(ann, "ann"))
        both = signing.allowed_line(ann, "ann") + signing.allowed_line(mallory, "bob")
        assert client.signers(both).trust.counter == 1
        signing.remember("rack-7", mallory)
        assert client.signers(signing.allowed_line(mallory, "bob")).trust.counter == 2
        assert deploy(client, "by-bob").signer == "bob"
        assert client.signers("").trust is None
        assert deploy(client, "by-anyone").signer == ""
        # The counter is kept: what was signed long ago stays old.
        assert client.signers(signing.allowed_line(ann, "ann")).trust.counter == 4


def test_no_key_and_no_signers_file_are_clear_errors(connect, keys, own_home, monkeypatch):
    with connect() as client:
        for bad in ("ann", "ann ssh-ed25519 AAAA", "ann ssh-ed25519", "\0", "x" * 70000):
            with pytest.raises(IntegrityError):
                client.signers(bad)
        client.signers(signing.allowed_line(keys[0], "ann"))
        with pytest.raises(UsageError, match="no key is named"):
            deploy(client, "x")
        monkeypatch.setenv(signing.KEY_VARIABLE, str(own_home / "none"))
        with pytest.raises(UsageError, match="no public key"):
            deploy(client, "x")
        monkeypatch.setenv(signing.KEY_VARIABLE, str(keys[0]))
        assert deploy(client, "x").signer == "ann"
    with connect("rack-8") as client, pytest.raises(IntegrityError, match="signed for 'rack-8'"):
        deploy(client, "y")


def test_a_damaged_ledger_refuses_orders_but_not_a_rollback(connect):
    with connect() as client:
        deploy(client, "one"), deploy(client, "two")
        path = paths.data_home() / "boards" / "local" / ".edgepipe" / "ledger.json"
        path.write_bytes(path.read_bytes()[:-9])
        client.refresh()
        with pytest.raises(IntegrityError, match="ledger"):
            deploy(client, "three")
        assert client.rollback().id == release("one")[0].id


def test_a_board_without_ssh_keygen_says_so(tmp_path, keys, monkeypatch):
    store = Store(str(tmp_path))
    store.prepare()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(trust, "_PLACES", str(tmp_path))
    with pytest.raises(BoardError, match="no ssh-keygen"):
        trust.pinned(store, ledger.Ledger(), "b", signing.allowed_line(keys[0], "ann"))


TRIES = scale(60, 10_000)


@pytest.mark.guarantee
def test_no_tampered_order_is_accepted(tmp_path, keys):
    """Any change to the manifest, the statement or the signature, and any other key, board or counter."""
    ann, mallory = keys
    store = Store(str(tmp_path))
    store.prepare()
    known = trust.pinned(store, ledger.Ledger(counter=5), "rack-7", signing.allowed_line(ann, "ann"))
    manifest, _ = release("good")
    good = order(manifest, "rack-7", 6, ann)
    foreign = order(manifest, "rack-7", 6, mallory)
    assert trust.check(store, known, "release", digest(manifest), good).signer == "ann"
    source, accepted = random.Random(8), 0
    for _ in range(TRIES):
        subject, signed = tampered(source, manifest, good, foreign)
        try:
            trust.check(store, known, "release", subject, signed)
            accepted += 1
        except IntegrityError:
            pass
    assert not list((tmp_path / "tmp").iterdir())
    report(8, f"{accepted} of {TRIES:,} tampered orders accepted", ok=accepted == 0)


def test_an_sshsig_of_another_version_is_refused(tmp_path, keys):
    """The version is in front of what is signed, and ssh-keygen lets 0 pass."""
    store = Store(str(tmp_path))
    store.prepare()
    known = trust.pinned(store, ledger.Ledger(counter=5), "rack-7", signing.allowed_line(keys[0], "ann"))
    manifest, _ = release("good")
    good = order(manifest, "rack-7", 6, keys[0])
    first, *body, last = good.signature.strip().splitlines()
    data = bytearray(base64.b64decode("".join(body)))
    assert data[:10] == b"SSHSIG\0\0\0\1"
    data[9] = 0
    other = "\n".join([first, base64.b64encode(bytes(data)).decode(), last, ""])
    for wrong in (other, "", "not armour", first + "\n" + last):
        with pytest.raises(IntegrityError, match="refused: not a signature"):
            trust.check(store, known, "release", digest(manifest), Signed(good.statement, wrong))


def tampered(source: random.Random, manifest: Manifest, good: Signed, foreign: Signed) -> tuple[str, Signed]:
    """A digest of a manifest and an order that do not belong together, or were changed on the way."""
    statement = good.statement
    kind = source.randrange(6)
    if kind == 0:  # the manifest
        artifact = dataclasses.replace(manifest.artifact, sha256=source.randbytes(32).hex())
        return digest(dataclasses.replace(manifest, artifact=artifact)), good
    if kind == 1:  # the statement follows the changed manifest, the signature does not
        subject = source.randbytes(32).hex()
        return subject, Signed(dataclasses.replace(statement, subject=subject), good.signature)
    if kind == 2:
        counter = source.choice([0, 5, 7, 8, -1, 1 << 70])
        return statement.subject, Signed(dataclasses.replace(statement, counter=counter), good.signature)
    if kind == 3:
        return statement.subject, foreign
    if kind == 4:
        return statement.subject, Signed(dataclasses.replace(statement, target="rack-8"), good.signature)
    return statement.subject, Signed(statement, flipped(source, good.signature))


def flipped(source: random.Random, signature: str) -> str:
    """The signature with one bit changed in its decoded bytes, armoured again."""
    first, *body, last = signature.strip().splitlines()
    data = bytearray(base64.b64decode("".join(body)))
    data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return "\n".join([first, base64.b64encode(bytes(data)).decode(), last, ""])
