"""Signed orders: once signers are pinned on a board, it runs and keeps nothing that none of them signed.

Signatures are OpenSSH's (SSHSIG): the board's own ssh-keygen checks them, so keys may live in an ssh-agent or on a
FIDO2 token, and no cryptography is written here. See docs/adr/0010.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
import shutil
import subprocess
import tempfile
from typing import List, NamedTuple, Optional

from edgepipe.agent import rules
from edgepipe.agent.ledger import Ledger
from edgepipe.agent.orders import SIGNING_NAMESPACE, Signed
from edgepipe.agent.store import Store
from edgepipe.agent.text import clean
from edgepipe.codec import canonical
from edgepipe.errors import BoardError, DeadlineError, IntegrityError
from edgepipe.schema import NAME

_PLACES = "/usr/bin:/bin:/usr/local/bin:/opt/bin"
_MOST_SIGNERS = 64 << 10
_HEAD = b"SSHSIG\0\0\0\1"
_MOST_SIGNATURE = 16 << 10
_SECONDS = 60.0


class Checked(NamedTuple):
    """A ledger that has taken note of a statement, and who signed it; without signers, as it was, and nobody."""

    ledger: Ledger
    signer: str


def check(store: Store, ledger: Ledger, verb: str, subject: str, signed: Optional[Signed]) -> Checked:
    """Let an order pass if a pinned signer signed it for this board and it is no replay, or if no signers are pinned.

    Raises:
        IntegrityError: unsigned, tampered with, by a key that is not pinned, for another board, or a replay.
        BoardError: the board's ssh-keygen is gone.
    """
    if not ledger.signers:
        return Checked(ledger, "")
    if signed is None:
        raise IntegrityError(
            "this board takes signed orders only, and this one is not signed",
            f"{verb} on {ledger.target}",
            f"name the key to sign with: edgepipe targets signers {ledger.target} --key FILE",
        )
    rules.admit(signed.statement, verb, subject, rules.Trust(ledger.target, ledger.counter, ledger.last))
    signer = _signer(store, ledger.signers, signed)
    statement = signed.statement
    return Checked(dataclasses.replace(ledger, counter=statement.counter, last=statement.digest), signer)


def pinned(store: Store, ledger: Ledger, target: str, signers: str) -> Ledger:
    """The ledger with these signers (the text of an allowed-signers file) and the board's name; empty takes them off.

    Raises:
        IntegrityError: not a name, or not such a file. BoardError: the board has no ssh-keygen to check with.
    """
    if not signers.strip():
        return dataclasses.replace(ledger, target="", signers="")
    if not NAME.match(target):
        raise IntegrityError(f"not a target name: {target[:64]!r}", "signers")
    if len(signers.encode()) > _MOST_SIGNERS or "\0" in signers:
        raise IntegrityError(f"allowed signers must be text of at most {_MOST_SIGNERS} bytes", "signers")
    _program()
    lines = [line.split() for line in signers.splitlines() if line.strip() and not line.startswith("#")]
    if not lines or any(len(words) < 3 for words in lines):  # noqa: PLR2004  principals, type, key
        raise IntegrityError(
            "a line of the allowed signers is not `principal type key`",
            "signers",
            "see man ssh-keygen, ALLOWED SIGNERS",
        )
    for words in lines:
        _check_key(store, words)
    return dataclasses.replace(ledger, target=target, signers=signers)


def signers_digest(ledger: Ledger) -> str:
    """The sha256 of the allowed signers, to be compared; empty where none are pinned."""
    return hashlib.sha256(ledger.signers.encode()).hexdigest() if ledger.signers else ""


def _check_key(store: Store, words: List[str]) -> None:
    """Refuse a line whose key ssh-keygen can't read: it would lock everybody out.

    Options may stand between the principals and the key, and may hold spaces in quotes; the key starts at its type.
    """
    start = next((at for at, word in enumerate(words) if at and word.startswith(("ssh-", "ecdsa-", "sk-"))), None)
    text = " ".join(words[start:]) if start else ""
    with tempfile.NamedTemporaryFile("w", dir=store.path("tmp"), suffix=".pub") as file:
        file.write(text + "\n")
        file.flush()
        if not text or _run(["-l", "-f", file.name]).returncode:
            raise IntegrityError(
                f"not a public key in the allowed signers: {clean(' '.join(words), 80)}", "signers", "correct the line"
            )


def _signer(store: Store, signers: str, signed: Signed) -> str:
    """The principal that signed the statement.

    Raises:
        IntegrityError: none of those pinned.
    """
    if len(signed.signature) > _MOST_SIGNATURE:
        raise IntegrityError(f"a signature of more than {_MOST_SIGNATURE} bytes", "signature")
    _check_head(signed.signature)
    folder = tempfile.mkdtemp(dir=store.path("tmp"))
    try:
        allowed, signature = os.path.join(folder, "allowed"), os.path.join(folder, "signature")
        for path, text in ((allowed, signers), (signature, signed.signature)):
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        found = _run(["-Y", "find-principals", "-s", signature, "-f", allowed])
        names = found.stdout.decode("utf-8", "replace").splitlines()
        if found.returncode or not names:
            raise _refused("it is signed by a key that is not pinned, or not signed at all", found)
        who = names[0].split(",")[0]
        order = ["-Y", "verify", "-f", allowed, "-I", who, "-n", SIGNING_NAMESPACE, "-s", signature]
        done = _run(order, canonical(signed.statement))
        if done.returncode:
            raise _refused("the signature does not fit", done)
        return clean(who, 128)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_head(signature: str) -> None:
    """Refuse what does not begin as an SSHSIG of version 1: no signature covers that, and ssh-keygen takes 0 as well.

    Raises:
        IntegrityError: it does not.
    """
    body = "".join(line for line in signature.splitlines() if not line.startswith("-"))
    try:
        head = base64.b64decode(body, validate=True)[: len(_HEAD)]
    except ValueError:
        head = b""
    if head != _HEAD:
        raise IntegrityError("refused: not a signature", "signature", "sign it anew")


def _refused(what: str, done: "subprocess.CompletedProcess[bytes]") -> IntegrityError:
    said = clean((done.stderr or done.stdout).decode("utf-8", "replace"), 200, tail=True)
    return IntegrityError(
        f"refused: {what}", f"signature ({said})" if said else "signature", "sign it with a key that this board trusts"
    )


def _program() -> str:
    found = shutil.which("ssh-keygen", path=os.environ.get("PATH", "") + os.pathsep + _PLACES)
    if not found:
        raise BoardError(
            "the board has no ssh-keygen, so it can't check signatures",
            "signers",
            "install OpenSSH's client there (Debian: apt-get install openssh-client), 8.2 or newer",
        )
    return found


def _run(arguments: List[str], data: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(
            [_program(), *arguments],
            input=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DeadlineError("the board's ssh-keygen does not answer", "signature", "try again") from None
